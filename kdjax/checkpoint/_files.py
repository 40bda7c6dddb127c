"""The folder of one training's checkpoints: a complete one has its step for a name."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path

from kdjax.checkpoint._digests import MANIFEST

UNFINISHED, REMOVED = ".unfinished", ".removed"


def steps_in(directory: Path) -> list[int]:
    """List the steps of the checkpoints in a directory, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def best_step(directory: str | Path) -> int | None:
    """Return the step of the checkpoint with the highest score, None if none has a score.

    Args:
        directory: where `save` or `saving` wrote, with scores.

    Returns:
        A step to be passed to `restore(step=...)`; the earliest of equals. Scores that are nan or
        infinite do not count.

    Example:
        >>> import tempfile
        >>> from kdjax import checkpoint
        >>> print(checkpoint.best_step(tempfile.mkdtemp()))
        None
    """
    scores = {step: _score(Path(directory) / str(step)) for step in steps_in(Path(directory))}
    scored = {step: score for step, score in scores.items() if score is not None}
    return max(scored, key=lambda step: scored[step], default=None)


def prune(directory: Path, step: int, keep: int, *, keep_best: bool = False) -> None:
    """Remove all but the newest checkpoints up to a step, and what a kill left behind."""
    for later in [s for s in steps_in(directory) if s > step]:
        remove(directory / str(later))
    kept: set[int | None] = set(steps_in(directory)[-keep:])
    if keep_best:
        kept.add(best_step(directory))
    for old in set(steps_in(directory)) - kept:
        remove(directory / str(old))
    for leftover in directory.iterdir():
        if leftover.suffix in (UNFINISHED, REMOVED):
            shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint; killed midway, it leaves nothing that looks like one."""
    if path.exists():
        removed = path.with_name(path.name + REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def on_disk(folder: Path, *, inside: bool = True) -> None:
    """Wait until the names in a folder, and what is inside, would outlive a loss of power."""
    for path in [*(folder.rglob("*") if inside else ()), folder]:
        # There are file systems whose folders cannot be asked.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def first_line(error: Exception) -> str:
    """Return the message of an exception, shortened to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / MANIFEST).read_text())["metadata"].get("score")
        return score if score is not None and math.isfinite(score) else None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        # A damaged manifest: reading that checkpoint would say so.
        return None
