"""Nothing that is another's, or damaged, is taken for a run's own without a word.

    python -m benchmarks.identity

A small run of every kind is made, then continued where something is not what it was: data or
teacher with other content, checkpoints of other trainings, remains without their `config.json`,
processes with other flags, and small files with ten kinds of damage each. An end is right
where the results are those of the undisturbed run, or one line on the error stream says what is
wrong. What is silent (status 0 with other results, or none) or a traceback is counted and named.
"""

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from experiments.hinton2015 import mnist, report, study
from kdjax import data
from kdjax.runs import compare, distill, experiment

SMALL = [
    "--epochs", "2", "--teacher.epochs", "1", "--teacher.widths", "8", "--student.widths", "4",
    "--log-every", "2", "--checkpoint-every", "2",
]  # fmt: skip
METHODS = ["--methods", "kd", "--num-best", "0"]
NEXT = bytes.maketrans(b"0123456789", b"1234567890")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "a number": lambda content: b"17",
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "no UTF-8": lambda content: b"\xff\xfe" + content,
    "no keys": lambda content: b"{}",
    "a line less": lambda content: b"".join(_without(content.splitlines(keepends=True))),
    "another digit": lambda content: content.translate(NEXT),
    "depth": lambda content: b"[" * 100_000,
}  # fmt: skip
Play = Callable[[Path], Any]
"""Disturbs a copy of a run's directory; what it gives is a context to go on in."""


class Base(NamedTuple):
    """A run that nobody disturbed: what goes on in its directory, and what must come out."""

    directory: Path
    go_on: Callable[[Path], None]
    results: Callable[[Path], Any]


def run_distill(directory: Path) -> None:
    """Distil on digits, students of two seeds."""
    distill.main([*SMALL, "--num-seeds", "2", "--workdir", str(directory)])


def run_compare(directory: Path) -> None:
    """Compare kd with labels alone."""
    compare.main([*SMALL, *METHODS, "--num-seeds", "1", "--workdir", str(directory)])


def run_study(directory: Path) -> None:
    """Try the first of the paper's scripts."""
    flags = ["mnist", "--quick", "--num-seeds", "2", "--workdir", str(directory)]
    with mock.patch.object(sys, "argv", flags):
        study.run_script("mnist", mnist.__doc__ or "", mnist.run)


def of_distill(directory: Path) -> Any:
    """Return the figures of a distillation."""
    return json.loads((directory / "summary.json").read_bytes())


def of_compare(directory: Path) -> Any:
    """Return the figures of a comparison."""
    return compare.read(directory / "comparison.json")


def of_study(directory: Path) -> Any:
    """Return the claims of the paper's first section."""
    return json.loads((directory / "mnist" / "result.json").read_bytes())["claims"]


def end_of(base: Base, play: Play, scratch: Path) -> str:
    """Play something on a copy of a run, go on there, and say how it ended."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(base.directory, scratch)
    errors = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
            play(scratch) or contextlib.nullcontext(),
        ):
            warnings.simplefilter("ignore")
            base.go_on(scratch)
        same = base.results(scratch) == base.results(base.directory)
    except (SystemExit, ValueError, OSError) as stop:
        # A function of the library raises what a script says.
        lines = (errors.getvalue() or f"error: {stop}\n").splitlines()
        told = len(lines) == 1 and lines[0].startswith("error: ")
        return "one line" if told else "traceback"
    except Exception:
        traceback.print_exc()
        return "traceback"
    return "right" if same else "silent"


def unfinished(directory: Path) -> None:
    """Make a finished distillation one that has its last student to train again."""
    (directory / "finished").unlink()
    shutil.rmtree(directory / "checkpoints" / "distilled-1")


@contextlib.contextmanager
def other_data(change_fn: Callable[[data.Dataset], data.Dataset]) -> Iterator[None]:
    """Let scripts read other data of the same name and shape."""
    load = experiment.load_dataset
    with mock.patch.object(experiment, "load_dataset", lambda asked: change_fn(load(asked))):
        yield


def contents() -> dict[str, Play]:
    """Return what may happen to data."""

    def images(found: data.Dataset) -> data.Dataset:
        return found._replace(train=found.train._replace(image=255 - found.train.image))

    def labels(found: data.Dataset) -> data.Dataset:
        return found._replace(train=found.train._replace(label=found.train.label[::-1]))

    def test(found: data.Dataset) -> data.Dataset:
        return found._replace(test=found.test._replace(image=255 - found.test.image))

    def one_label(found: data.Dataset) -> data.Dataset:
        label = found.validation.label.copy()
        label[-1] = (label[-1] + 1) % 10
        return found._replace(validation=found.validation._replace(label=label))

    def then(
        first: Callable[[Path], None], change_fn: Callable[[data.Dataset], data.Dataset]
    ) -> Play:
        def play(directory: Path) -> Any:
            first(directory)
            return other_data(change_fn)

        return play

    return {
        f"other {change.__name__}, {state}": then(first, change)
        for change in (images, labels, test, one_label)
        for state, first in (("finished", lambda _: None), ("unfinished", unfinished))
    }


def checkpoints() -> dict[str, Play]:
    """Return what may happen to checkpoints."""

    def copied(source: str, target: str) -> Play:
        def play(directory: Path) -> None:
            unfinished(directory)
            folder = directory / "checkpoints"
            shutil.rmtree(folder / target, ignore_errors=True)
            shutil.copytree(folder / source, folder / target)

        return play

    def renamed(directory: Path) -> None:
        unfinished(directory)
        folder = directory / "checkpoints" / "scratch-1"
        steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        (folder / str(steps[-1])).rename(folder / str(steps[-1] - 1))

    def left_over(*names: str) -> Play:
        def play(directory: Path) -> None:
            for path in directory.iterdir():
                if path.name not in names:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        return play

    return {
        "of another seed": copied("scratch-0", "scratch-1"),
        "of another phase": copied("scratch-0", "distilled-0"),
        "of another seed, not begun": copied("distilled-0", "distilled-1"),
        "renamed to another step": renamed,
        "left without config.json": left_over("checkpoints"),
        "a log left without config.json": left_over("metrics.jsonl"),
        "a summary left without config.json": left_over("summary.json", "finished"),
    }


def damaged(name: str, damage: Callable[[bytes], bytes], first: Play) -> Play:
    """Return a play that damages the newest file of a name, or pattern."""

    def play(directory: Path) -> None:
        first(directory)
        path = max(directory.glob(name), key=lambda p: p.stat().st_mtime)
        path.write_bytes(damage(path.read_bytes()))

    return play


def processes(scratch: Path, *own: str) -> str:
    """Start two processes, one with flags of its own, and say how they ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = [*SMALL, "--workdir", str(scratch), "--distributed.coordinator", address]
    flags += ["--distributed.num-processes", "2", "--distributed.process-id"]
    commands = [[*flags, "0"], [*flags, "1", *own]]
    head = [sys.executable, "-m", "experiments.distill"]
    started = [
        subprocess.Popen(
            [*head, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    said = "".join(process.communicate()[1] for process in started)
    if 0 in {process.returncode for process in started}:
        return "silent"
    return "one line" if "start all processes" in said and "Traceback" not in said else "traceback"


def plays(distilled: Base, compared: Base, studied: Base) -> Iterator[tuple[str, Base, Play]]:
    """Yield everything that is played: its name, on which run, and how."""
    for name, play in {**contents(), **checkpoints()}.items():
        yield name, distilled, play
    for other in (compared, studied):
        yield f"a directory of {other.directory.name}", distilled, _swapped(other.directory)
    files = (
        ("config.json", distilled, unfinished),
        ("summary.json", distilled, _nothing),
        ("metrics.jsonl", distilled, unfinished),
        ("checkpoints/scratch-0/*/record.json", distilled, unfinished),
        ("metrics.jsonl", compared, _nothing),
        ("data-digits.json", studied, _nothing),
        ("mnist/distilled/asked.json", studied, _nothing),
        ("mnist/distilled/trained/*/record.json", studied, _nothing),
        ("mnist/result.json", studied._replace(go_on=_collect), _nothing),
    )
    for file, base, first in files:
        for name, damage in DAMAGES.items():
            yield f"{file} of {base.directory.name}, {name}", base, damaged(file, damage, first)


def main() -> None:
    """Print how many plays ended how, and those that are not as they must be."""
    with tempfile.TemporaryDirectory() as scratch:
        root, again = Path(scratch), Path(scratch, "again")
        bases = (
            Base(root / "distill", run_distill, of_distill),
            Base(root / "compare", run_compare, of_compare),
            Base(root / "study", run_study, of_study),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            for base in bases:
                base.go_on(base.directory)
        ends = {name: end_of(base, play, again) for name, base, play in plays(*bases)}
        for flags in (("--temperature", "2"), ("--seed", "1")):
            ends[f"processes, {' '.join(flags)}"] = processes(root / flags[1], *flags)
    wrong = [f"{name}: {end}" for name, end in ends.items() if end in ("silent", "traceback")]
    count = Counter(ends.values())
    print(f"{len(ends)} plays: {count['one line']} end in one line, {count['right']} right,")
    print(f"{count['silent']} silent, {count['traceback']} in a traceback")
    sys.exit("\n".join(wrong) or 0)


def _collect(directory: Path) -> None:
    report.run(report.Settings(workdir=directory))


def _nothing(directory: Path) -> None:
    pass


def _swapped(other: Path) -> Play:
    """Return a play that puts another run's directory in the place."""

    def play(directory: Path) -> None:
        shutil.rmtree(directory)
        shutil.copytree(other, directory)

    return play


def _without(lines: list[bytes]) -> list[bytes]:
    """Drop the middle one of some lines."""
    return lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :]


if __name__ == "__main__":
    main()
