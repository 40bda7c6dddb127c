"""From the command line to settings, and from a user's mistake to one line on the error stream."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import os
import shlex
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from kdjax._extras import MissingPackage, check_run

SettingsT = TypeVar("SettingsT")


class Limit(NamedTuple):
    """What a value must be: in words, and as a function of a value that is not None.

    The words may be made of the value, to say which part of it is wrong and what is near.
    """

    expected: str | Callable[[Any], str]
    holds: Callable[[Any], bool]


def flag(about: str, limit: Limit | None = None, *, default: Any = None, alias: str = "") -> Any:
    """Declare a field of a settings dataclass that is a flag.

    Args:
        about: its line of help.
        limit: what it must be; of a tuple, every entry.
        default: its value where the flag is not given.
        alias: another name of the flag.

    Returns:
        A dataclass field.
    """
    metadata = {"about": about, "limit": limit, "alias": alias}
    return dataclasses.field(default=default, metadata=metadata)


def group(settings_type: type[SettingsT]) -> SettingsT:
    """Declare a field that is a group of flags: those of another dataclass, after a dot."""
    return dataclasses.field(default_factory=settings_type)


def parse(
    settings_type: type[SettingsT], program: str, description: str, args: Sequence[str] | None
) -> SettingsT:
    """Read settings from flags.

    Args:
        settings_type: a dataclass whose fields are made by `flag` and `group`.
        program: the command, for the help page.
        description: what the command does, a docstring; its first line is shown.
        args: the flags; those of the process where None.

    Returns:
        The settings.

    Raises:
        SystemExit: with status 0 after `--help`, with 2 and one line after a wrong flag.
    """
    args = list(sys.argv[1:] if args is None else args)
    parser = _Parser(
        prog=program,
        usage=f"{program} [--FLAG VALUE ...]",
        description=description.strip().split("\n", 1)[0],
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show this page.")
    _declare(parser, settings_type, "")
    given, unknown = parser.parse_known_args([_dashed(arg) for arg in args])
    if hasattr(given, "help"):
        _show(parser.format_help())
    if unknown:
        meant = _meant(settings_type, unknown)
        parser.error(f"Unrecognized options: {', '.join(unknown)}{meant}")
    return _build(settings_type, vars(given), "")


def read(
    settings_type: type[SettingsT],
    program: str,
    description: str,
    args: Sequence[str] | None,
    *,
    folder: str | None = None,
) -> tuple[SettingsT, str]:
    """Read the settings of a script that leaves a work directory behind.

    Args:
        settings_type: as for `parse`, with a field `workdir`.
        program: what was run, such as "python -m experiments.distill".
        description: what it does.
        args: the flags; those of the process where None.
        folder: how the name of a new folder in runs/ begins, where no other was asked for.

    Returns:
        The settings, and the command that goes on with the same work directory.
    """
    args = list(sys.argv[1:] if args is None else args)
    settings: Any = parse(settings_type, program, description, args)
    if settings.workdir is None and folder is not None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        workdir = Path("runs") / f"{folder}{settings.data.title}-{stamp}"
        settings = dataclasses.replace(settings, workdir=workdir)
        args = [*args, "--workdir", str(workdir)]
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    return settings, f"{program} {shlex.join(args)}".strip()


def check(settings: Any, prefix: str = "--") -> None:
    """Raise a ValueError that names the flag of the first setting outside its limit."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        name = prefix + field.name.replace("_", "-")
        limit = field.metadata.get("limit")
        if dataclasses.is_dataclass(value):
            check(value, name + ".")
        elif limit and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            for wrong in [each for each in values if not limit.holds(each)]:
                words = limit.expected
                require(False, name, words if isinstance(words, str) else words(wrong), value)


def names(settings_type: type[Any], prefix: str = "") -> list[str]:
    """Return the names of all flags of a settings dataclass, such as "--data.name"."""
    found = []
    for _, hint, name in _fields(settings_type, prefix):
        found += names(hint, name + ".") if _is_group(hint) else [f"--{name}"]
    return found


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise a ValueError that names the flag unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got}")


def nearest(word: str, known: Collection[str]) -> str:
    """Say which of some names was probably meant, or what they are, in their order."""
    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(near)}" if near else f"choose from {', '.join(known)}"


def fail(message: str, *, status: int = 2) -> NoReturn:
    """Print one line on the error stream and leave.

    Args:
        message: what went wrong and what to do.
        status: the exit status, 2 for a mistake of the user.

    Raises:
        SystemExit: always.
    """
    # Not all white space: a command in the message must run as it stands.
    print("error: " + " ".join(message.splitlines()), file=sys.stderr)
    raise SystemExit(status)


@contextlib.contextmanager
def plain_errors(settings: Any = None, *, resume_with: str) -> Iterator[None]:
    """Turn what a user can cause (a wrong value, a missing file, a full disk, Ctrl-C) into a line.

    Args:
        settings: as the flags gave them; a flag whose path is in trouble is named.
        resume_with: the command that goes on after an interruption.

    Raises:
        SystemExit: with 2 for a mistake, 1 for a training that diverged, 130 after an interruption.
    """
    try:
        check_run()
        yield
    except OSError as error:
        fail(_with_flag(_of_file(error, settings), settings))
    except (ValueError, MissingPackage) as error:
        fail(_with_flag(str(error), settings))
    except MemoryError as error:
        fail(f"there is not enough memory: {error}")
    except KeyboardInterrupt:
        fail(f"interrupted; go on with: {resume_with}", status=130)
    except Exception as error:
        # Here and not above: flags are parsed before the seconds that this import takes.
        from kdjax import loop

        if isinstance(error, loop.NonFiniteLoss):
            fail(f"{error}; the checkpoints before it are kept", status=1)
        if isinstance(error, loop.Stopped):
            fail(f"{error}, saved; go on with: {resume_with}", status=130)
        if "RESOURCE_EXHAUSTED" in str(error):
            fail(f"there is not enough memory: {str(error).splitlines()[0]}")
        raise


def _of_file(error: OSError, settings: Any) -> str:
    """Say what is wrong with which file; where a write names none, it is one of the run's own."""
    if error.strerror is None:
        return str(error)
    where = error.filename or getattr(settings, "workdir", None)
    return f"{where}: {error.strerror}" if where else error.strerror


def _with_flag(message: str, settings: Any) -> str:
    """Put before a message the flag whose path it talks of, unless it names one."""
    if "--" in message:
        return message
    for name, path in _paths(settings, "--"):
        if str(path) in message or str(path.absolute()) in message:
            return f"{name} {path}: {message}"
    return message


def _paths(settings: Any, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield the flags that hold paths."""
    for field in dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ():
        value, name = getattr(settings, field.name), prefix + field.name.replace("_", "-")
        if isinstance(value, Path):
            yield name, value
        else:
            yield from _paths(value, name + ".")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of a help text apart."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = (super(_Formatter, self)._split_lines(line, width) for line in text.split("\n"))
        return [part for parts in lines for part in parts]


def _dashed(arg: str) -> str:
    """Take `--soft_weight=1` for `--soft-weight=1`."""
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") else arg


def _declare(parser: Any, settings_type: type[Any], prefix: str) -> None:
    """Add a dataclass's flags to a parser, those of its groups under a heading of their own."""
    inner = []
    for field, hint, name in _fields(settings_type, prefix):
        if _is_group(hint):
            inner.append((name, hint))
        else:
            _add(parser, name, hint, field)
    for name, hint in inner:
        about = (hint.__doc__ or "").split("\n", 1)[0]
        _declare(parser.add_argument_group(name, about), hint, name + ".")


def _is_group(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _fields(settings_type: type[Any], prefix: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield the fields of a dataclass with their types and the names of their flags."""
    hints = typing.get_type_hints(settings_type)
    for field in dataclasses.fields(settings_type):
        yield field, hints[field.name], prefix + field.name.replace("_", "-")


def _add(parser: Any, name: str, hint: Any, field: "dataclasses.Field[Any]") -> None:
    about = field.metadata["about"].replace("%", "%%")
    names = [f"--{name}", *filter(None, [field.metadata["alias"]])]
    if hint is bool:
        head, dot, last = name.rpartition(".")
        parser.add_argument(*names, dest=name, action="store_true", help=about)
        off = f"--{head}{dot}no-{last}"
        parser.add_argument(off, dest=name, action="store_false", help=argparse.SUPPRESS)
        return
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kind = next(x for x in typing.get_args(hint) if x is not type(None)) if optional else hint
    several = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if several else kind
    if field.default is not None and field.default != ():
        default: Any = field.default
        shown = " ".join(map(str, default)) if several else default
        about += f" (default: {shown})".replace("%", "%%")
    parser.add_argument(
        *names,
        dest=name,
        type=functools.partial(_value, kind, optional),
        nargs="*" if several else None,
        metavar=_metavar(kind),
        help=about,
    )


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    known = {bool: "{True,False}", str: "TEXT"}
    return known[kind] if kind in known else str(kind.__name__).upper()


def _value(kind: Any, optional: bool, text: str) -> Any:
    """Turn a word of the command line into a value; "None" stands for the default."""
    if optional and text == "None":
        return None
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got ''")
    choices = ("True", "False") if kind is bool else typing.get_args(kind)
    if choices:
        if text not in choices:
            told = nearest(text, choices)
            raise argparse.ArgumentTypeError(f"invalid choice {text!r}, {told}")
        return text == "True" if kind is bool else text
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def _build(settings_type: type[SettingsT], given: dict[str, Any], prefix: str) -> SettingsT:
    values: dict[str, Any] = {}
    for field, hint, name in _fields(settings_type, prefix):
        if _is_group(hint):
            values[field.name] = _build(hint, given, name + ".")
        elif name in given:
            value = given[name]
            several = tuple(value) if isinstance(value, list) else value
            values[field.name] = None if several == (None,) else several
    return settings_type(**values)


def _meant(settings_type: type[Any], unknown: Sequence[str]) -> str:
    """Name the flags that were probably meant."""
    known = names(settings_type)
    flags = [arg.partition("=")[0] for arg in unknown if arg.startswith("--")]
    near = [match for name in flags for match in _near(name, known)]
    return f"; perhaps you meant {', '.join(near)}" if near else ""


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Return the flags of the same group that are written almost so; without one, of any."""
    group, dot, own = name.rpartition(".")
    parts = [(flag, *flag.removeprefix("--").rpartition(".")) for flag in known]
    if dot and (inner := {part: flag for flag, of, _, part in parts if f"--{of}" == group}):
        return [inner[match] for match in difflib.get_close_matches(own, inner, n=1)]
    if dot:
        return difflib.get_close_matches(name, known, n=1)
    tails = list(dict.fromkeys(part for *_, part in parts))
    match = difflib.get_close_matches(name.removeprefix("--"), tails, n=1)
    return [flag for flag, *_, part in parts if part in match]


def _show(page: str) -> NoReturn:
    """Print the help page and leave, also where a reader such as `head` stops before its end."""
    try:
        print(page, end="", flush=True)
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)
