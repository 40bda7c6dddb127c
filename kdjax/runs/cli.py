"""From the command line to settings, and from a user's mistake to one line on the error stream."""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from kdjax._extras import MissingPackage, needs
from kdjax.runs.settings import DistributedSettings

with needs("train"):
    import tyro

SettingsT = TypeVar("SettingsT")


def main(
    settings_type: type[Any],
    prog: str,
    description: str,
    check_fn: Callable[[Any], None],
    run_fn: Callable[[Any, str], None],
    args: Sequence[str] | None = None,
    *,
    prefix: str = "",
) -> None:
    """Run a script that leaves a work directory behind.

    Args:
        settings_type: a dataclass whose fields are the flags; it has `workdir`, `data.name`
            and `distributed`.
        prog: how the script was started, such as `kdjax distill`.
        description: what it does, a docstring; its first line is shown.
        check_fn: raises a ValueError that names the first flag out of range.
        run_fn: does the work: (settings, command that goes on with it).
        args: the flags; those of the process by default.
        prefix: of the folder's name in runs/, where no work directory was asked for.

    Raises:
        SystemExit: as `parse` and `plain_errors` do.
    """
    args = list(sys.argv[1:] if args is None else args)
    settings = parse(settings_type, prog, description.split("\n", 1)[0], args)
    if settings.workdir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        workdir = Path("runs") / f"{prefix}{settings.data.name.replace('/', '-')}-{stamp}"
        settings = dataclasses.replace(settings, workdir=workdir)
        args = [*args, "--workdir", str(workdir)]
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    command = shlex.join([*prog.split(), *args])
    with together(settings.distributed) as join, plain_errors(resume_with=command):
        check_fn(settings)
        join()
        run_fn(settings, command)


def parse(
    settings_type: type[SettingsT], prog: str, description: str, args: Sequence[str] | None = None
) -> SettingsT:
    """Read settings from flags.

    Args:
        settings_type: a dataclass whose fields, with their docstrings, are the flags.
        prog: the command, for the help page.
        description: what the command does.
        args: the flags; those of the process by default.

    Returns:
        The settings.

    Raises:
        SystemExit: with status 0 after `--help`, with 2 and one line after a wrong flag.
    """
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            return tyro.cli(settings_type, prog=prog, description=description, args=args)
    except SystemExit as stop:
        if stop.code:
            fail(f"{_one_line(page.getvalue())} (see {prog} --help)")
        raise
    except BrokenPipeError:
        # The help page went into `head`, which has seen enough; Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Print one line on the error stream and leave.

    Args:
        message: what went wrong and what to do.
        status: the exit status, 2 for a mistake of the user.

    Raises:
        SystemExit: always.
    """
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


@contextlib.contextmanager
def plain_errors(*, resume_with: str) -> Iterator[None]:
    """Turn what a user can cause (a wrong value, a missing file, a full disk, Ctrl-C) into a line.

    Args:
        resume_with: the command that goes on after an interruption.

    Raises:
        SystemExit: with 2 for a mistake, 1 for a training that diverged, 130 after an interruption.
    """
    try:
        yield
    except (ValueError, OSError, MissingPackage) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(f"interrupted; go on with: {resume_with}", status=130)
    except Exception as error:
        # Here and not above: flags are parsed before the seconds that this import takes.
        from kdjax import loop

        if isinstance(error, loop.NonFiniteLoss):
            fail(f"{error}; the checkpoints before it are kept", status=1)
        if isinstance(error, loop.Stopped):
            fail(f"{error}, saved; go on with: {resume_with}", status=130)
        raise


@contextlib.contextmanager
def together(settings: DistributedSettings) -> Iterator[Callable[[], None]]:
    """Make this process one of several, if the settings say so; only process 0 prints.

    Args:
        settings: the flags under `--distributed`.

    Yields:
        A function that joins the processes, to be called before anything touches a device.
    """
    with contextlib.ExitStack() as stack:

        def join() -> None:
            if not settings.auto and settings.coordinator is None:
                return
            # Here and not above: flags are parsed before the seconds that this import takes.
            from kdjax import distributed

            stack.enter_context(distributed.leaving())
            distributed.initialize(
                coordinator=settings.coordinator,
                num_processes=settings.num_processes,
                process_id=settings.process_id,
                timeout=settings.timeout,
            )
            if not distributed.is_leader():
                # The descriptor and not sys.stdout: collectives in C++ announce themselves there.
                sys.stdout.flush()
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        yield join


def _one_line(page: str) -> str:
    """Condense tyro's panel: the message, and the flag that was probably meant.

    The panel has a frame of other characters where the error stream is UTF-8, colours on a
    terminal, and is a title, the message and advice, with rules between them.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│]", "", page)
    parts: list[list[str]] = [[]]
    for line in map(str.strip, plain.splitlines()):
        if re.fullmatch(r"[-─]+|─ .+ ─+", line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    message = " ".join(parts[min(1, len(parts) - 1)]).split(" Got errors:")[0]
    meant = re.search(r"Perhaps you meant:\s+(--\S+)", plain)
    return message.rstrip(".") + (f"; perhaps you meant {meant.group(1)}" if meant else "")
