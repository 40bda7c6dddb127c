"""A work directory: what was asked, what was measured, and whether it may go on."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

# What may differ between a run and its continuation: where it runs, what it keeps (also for the
# gradient), how often it speaks, what it does about a loss that is not finite, which it may just
# have stopped at, and what is a training of its own.
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is either complete or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


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


def changed_setting(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Name the first setting that differs, apart from those that may.

    Args:
        old: nested settings of the run that the directory holds.
        new: those of the run that wants to go on in it.

    Returns:
        "--flag was OLD, is now NEW", or None.
    """
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        free = name in FREE_SETTINGS or name.startswith(FREE_GROUPS)
        if not free and before.get(name) != after.get(name):
            flag = "--" + name.replace("_", "-")
            return f"{flag} was {before.get(name)}, is now {after.get(name)}"
    return None


def claim(directory: Path, config: dict[str, Any], requested: dict[str, Any]) -> bool:
    """Write `config.json`, or hold the one that is there against these settings.

    Args:
        directory: an existing directory.
        config: the settings, every None resolved.
        requested: the settings as they were asked for.

    Returns:
        Whether the directory held a run with these settings already.

    Raises:
        ValueError: naming the first setting that differs.
    """
    old = read_json(directory / "config.json")
    if old is None:
        write_json(directory / "config.json", {**config, "requested": requested})
        return False
    old.pop("requested", None)
    changed = changed_setting(old, config)
    if changed:
        raise ValueError(f"{directory} holds a run with other settings: {changed}")
    return True


def commit() -> str:
    """Name the commit that runs, marked where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


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
        line = json.dumps({**row, "wall_time": round(time.time(), 3)})
        with self.path.open("a") as file:
            file.write(line + "\n")

    def rewind(self, phase: str, seed: int, step: int) -> None:
        """Drop the lines of a phase behind a step: it is about to be trained again from there."""
        if not self.writes or not self.path.exists():
            return
        kept = [
            r for r in self.rows() if (r["phase"], r["seed"]) != (phase, seed) or r["step"] <= step
        ]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.path)

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
