"""A work directory: what was asked, what was measured, and whether it may go on."""

import contextlib
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What may differ between a run and its continuation, because no number of a training depends on
# it: where the run takes place, what it keeps and logs, how it uses memory and processes. A loss
# that is not finite may just have stopped the run. Methods and scales of a comparison are trainings
# of their own.
FREE_SETTINGS = (
    *("workdir", "log_every", "audit", "profile", "keep_last", "keep_best", "on_nonfinite"),
    *("methods", "num_best", "scales", "data.workers", "rematerialise", "steps_per_call"),
)
FREE_GROUPS = ("mesh.", "distributed.")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into `{"group.name": value}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def plain(value: Any) -> Any:
    """Turn settings into what JSON can hold."""
    return json.loads(json.dumps(value, default=str))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either complete or as it was."""
    partial = path.with_name(path.name + ".partial")
    with _naming(path):
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError name the file that cannot be written: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is either complete or not there; null stands for nan."""
    write_whole(path, (_json(content, indent=2) + "\n").encode())


def _json(content: Any, **options: Any) -> str:
    """Write JSON, which has no word for what is not finite: null stands there."""
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> Any:
    """Read a JSON file, None if there is none.

    Raises:
        ValueError: if it is no JSON.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def changed_setting(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "--") -> str | None:
    """Name the first setting that differs, apart from those that may.

    Args:
        old: nested settings of the run that the directory holds.
        new: those of the run that wants to go on in it.
        prefix: what comes before a setting's name.

    Returns:
        "--flag was OLD, is now NEW", or None.
    """
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        free = name in FREE_SETTINGS or name.startswith(FREE_GROUPS)
        if not free and before.get(name) != after.get(name):
            flag = name.replace("_", "-")
            return f"{prefix}{flag} was {before.get(name)}, is now {after.get(name)}"
    return None


def claim(
    path: Path, settings: dict[str, Any], *, otherwise: str, prefix: str = "--", **beside: Any
) -> bool:
    """Write into a folder what it is for, or hold these settings against what is written there.

    Args:
        path: the JSON file, in an existing folder.
        settings: nested, as JSON holds them.
        otherwise: what to say of the folder where they differ from what is written.
        prefix: what comes before the name of the first setting that does.
        **beside: what else is written into a new file; it is not compared.

    Returns:
        Whether the folder was claimed already.

    Raises:
        ValueError: naming the first setting that differs.
    """
    old = read_json(path)
    if old is None:
        write_json(path, {**settings, **beside})
        return False
    compared = {name: value for name, value in old.items() if name not in beside}
    changed = changed_setting(compared, settings, prefix=prefix)
    if changed:
        raise ValueError(f"{path.parent} holds {otherwise}: {changed}")
    return True


def commit() -> str:
    """Name the commit that runs, marked where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        own, silent = Path(__file__).parent, subprocess.DEVNULL
        return subprocess.check_output(command, cwd=own, stderr=silent, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class MetricsLog:
    """Appends to `metrics.jsonl`: one JSON object a line, with phase, seed, step and time.

    Of several processes only the one that is told so writes.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self.writes = path, writes

    def append(self, **row: Any) -> None:
        """Write one line, with the wall time in seconds since the epoch."""
        if not self.writes:
            return
        line = _json({**row, "wall_time": round(time.time(), 3)})
        with _naming(self.path), self.path.open("a") as file:
            file.write(line + "\n")

    def seconds(self, phase: str, seed: int | None) -> float:
        """Return how long a training has taken until its last line, interruptions left out."""
        own = [r for r in self.rows() if (r["phase"], r["seed"]) == (phase, seed)]
        return max((row.get("seconds", 0.0) for row in own), default=0.0)

    def total_seconds(self) -> float:
        """Return how long all trainings have taken together, interruptions left out."""
        trainings = {(row["phase"], row["seed"]) for row in self.rows()}
        return sum(self.seconds(*training) for training in trainings)

    def rewind(self, phase: str, seed: int | None, step: int) -> None:
        """Drop the lines of a phase behind a step: it is about to be trained again from there."""
        if not self.writes or not self.path.exists():
            return
        kept = [
            r for r in self.rows() if (r["phase"], r["seed"]) != (phase, seed) or r["step"] <= step
        ]
        write_whole(self.path, "".join(_json(row) + "\n" for row in kept).encode())

    def rows(self) -> list[dict[str, Any]]:
        """Read all complete lines; a line that a kill tore apart is left out."""
        rows = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
