"""What a run says while it runs: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from kdjax._extras import needs

with needs("train"):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

Update = Callable[[int, str], None]
_SECONDS_BETWEEN_LINES = 10.0


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


@contextlib.contextmanager
def progress(label: str, start: int, total: int) -> Iterator[Update]:
    """Show how far a training has come.

    Args:
        label: what is being trained.
        start: the step that it starts from.
        total: the step that it ends at.

    Yields:
        A function of a step and a note (loss, accuracy), to be called now and then.
    """
    began = time.perf_counter()
    notes = [""]
    with _bar(label, start, total) if sys.stdout.isatty() else _lines(label, total) as show:

        def update(step: int, note: str) -> None:
            notes[0] = note
            show(step, note)

        yield update
    say(f"{label:<14} {total} steps in {time.perf_counter() - began:.1f} s  {notes[0]}")


@contextlib.contextmanager
def _bar(label: str, start: int, total: int) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=start, note="")
        yield lambda step, note: bar.update(task, completed=step, note=note)


@contextlib.contextmanager
def _lines(label: str, total: int) -> Iterator[Update]:
    last = [time.perf_counter()]

    def show(step: int, note: str) -> None:
        if step < total and time.perf_counter() - last[0] > _SECONDS_BETWEEN_LINES:
            last[0] = time.perf_counter()
            say(f"{label:<14} step {step}/{total}  {note}")

    yield show
