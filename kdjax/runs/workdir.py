"""A work directory: whose it is, what was asked and measured, and whether it may go on."""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
import time
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdjax._version import __version__

FORMAT = 2
"""Of what this version writes into a directory; 1 had neither fingerprints nor seals."""
# What may differ between a run and its continuation, because no number of a training depends on
# it: where the run takes place, what it keeps and logs, how it uses memory and processes. A loss
# that is not finite may just have stopped the run. Methods and scales of a comparison are trainings
# of their own.
FREE_SETTINGS = (
    *("workdir", "log_every", "audit", "profile", "keep_last", "keep_best", "on_nonfinite"),
    *("extend", "methods", "num_best", "scales", "data.workers", "rematerialise", "steps_per_call"),
    "teacher.store",
)
FREE_GROUPS = ("mesh.", "distributed.")
# What the file of a claimed folder holds beside settings.
_RECORDS = ("requested", "format", "kdjax", "run", "content", "trained_by")


class Claim(NamedTuple):
    """A folder that is claimed: its file, whether it was before, and what its run is known by.

    Folders of older versions have no such name.
    """

    path: Path
    resumed: bool
    run: str | None


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
    """Write a file that is either complete or as it was; a link stays one.

    Raises:
        OSError: naming the file.
    """
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        try:
            partial.write_bytes(content)
            if path.exists():
                shutil.copymode(path, partial)
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
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


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Put format and digest beside what is about to be written: `read_json` takes nothing else."""
    whole = json.loads(_json({"format": FORMAT, **content}))
    return {**whole, "sha256": _digest(whole)}


def read_json(path: Path, *, mend: str | None = None) -> dict[str, Any] | None:
    """Read a JSON object, None if there is none.

    Args:
        path: the file.
        mend: what to do where it is damaged. Default: to delete the folder.

    Raises:
        ValueError: if it is none, or another than was written.
    """
    if not path.exists():
        return None
    with reading(path, mend=mend):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {json.dumps(content)[:20]}, expected an object")
        # Files of older versions have no seal.
        seal = content.pop("sha256", "nothing" if "format" in content else None)
        if seal not in (None, _digest(content)):
            raise ValueError("it does not match its own digest")
    return content


@contextlib.contextmanager
def reading(path: Path, *, mend: str | None = None) -> Iterator[None]:
    """Turn what a damaged file does to its reader into one line.

    Raises:
        ValueError: naming the file, the reason and what to do.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"
        todo = mend or f"put a copy of it back, or delete {path.parent} to start anew"
        line = " ".join(reason.split())[:120]
        raise ValueError(f"{path} is damaged ({line}): {todo}") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def changed_setting(
    old: dict[str, Any],
    new: dict[str, Any],
    *,
    prefix: str = "--",
    free: Collection[str] = (),
    defaults: Collection[str] = (),
) -> str | None:
    """Name the first setting that differs, apart from those that may.

    Args:
        old: nested settings of the run that the directory holds.
        new: those of the run that wants to go on in it.
        prefix: what comes before a setting's name.
        free: which may, beside `FREE_SETTINGS` and `FREE_GROUPS`.
        defaults: which have their default now, as they had where `old` does not know them.

    Returns:
        "--flag was OLD, is now NEW", or None.
    """
    before, after = flatten(old), flatten(new)
    for name in sorted(before.keys() | after.keys()):
        flag = prefix + name.replace("_", "-")
        if name not in after:
            return f"{flag} was {before[name]}, which this command or version does not have"
        may = name in (*FREE_SETTINGS, *free) or name.startswith(FREE_GROUPS)
        known = name in before or name not in defaults
        if known and not may and before.get(name) != after[name]:
            return f"{flag} was {before.get(name)}, is now {after[name]}"
    return None


def claim(
    path: Path,
    settings: dict[str, Any],
    *,
    otherwise: str,
    prefix: str = "--",
    content: dict[str, Any] | None = None,
    defaults: Collection[str] = (),
    orphans: Collection[str] = (),
    **beside: Any,
) -> Claim:
    """Write into a folder what it is for, or hold these settings against what is written there.

    Args:
        path: the JSON file, in an existing folder.
        settings: nested, as JSON holds them.
        otherwise: what to say of the folder where they differ from what is written.
        prefix: what comes before the name of the first setting that does.
        content: fingerprints of what the settings' paths lead to; where they are kept, data may
            move, and be nothing else.
        defaults: settings that an older folder need not know, because they have their default.
        orphans: patterns of files that mean nothing in a folder without the JSON file.
        **beside: what else is written into a new file; it is not compared.

    Returns:
        The claim.

    Raises:
        ValueError: naming the first setting or content that differs, or the orphan.
    """
    old = read_json(path)
    if old is None:
        folder = path.parent
        if left := [found for pattern in orphans for found in folder.glob(pattern)]:
            raise ValueError(
                f"{folder} has no {path.name} to tell whose its {left[0].relative_to(folder)} is: "
                "take another folder, or delete what it holds"
            )
        made = {"kdjax": __version__, "content": content}
        run = uuid.uuid4().hex[:16]
        write_json(path, sealed({**settings, **beside, **made, "run": run}))
        return Claim(path, False, run)
    with reading(path):
        if old.get("format", 1) > FORMAT:
            raise ValueError(f"kdjax {__version__} is older than {old['kdjax']}, which wrote it")
        held = {name: value for name, value in old.items() if name not in _RECORDS}
        other = _changed_content(old.get("content"), content)
        free = [*_moved(old, settings), *(_OF_DATA if other else ())]
        changed = changed_setting(*(held, settings), prefix=prefix, free=free, defaults=defaults)
    if changed:
        raise ValueError(f"{path.parent} holds {otherwise}: {changed}")
    if other:
        raise ValueError(f"{path.parent} holds a run on other content: {other}")
    return Claim(path, True, old.get("run"))


_OF_DATA = ("data.student_examples", "epochs", "batch_size", "teacher.epochs", "num_seeds")
"""What the data decides where no flag does: where the data is other, that is the reason to name."""


def _changed_content(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str | None:
    """Name the first content that differs, where both are known."""
    if old is None or new is None:
        return None
    return changed_setting(old, new, prefix="the ", defaults=flatten(new))


def _moved(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return which paths may differ: what they lead to has a fingerprint."""
    if old.get("content") is None:
        return []
    both = flatten(old), flatten(new)
    networks = "teacher.checkpoint", "student.checkpoint"
    names = *networks, "stored_logits", "data.unlabelled", "data.file", "data.tokenizer"
    return ["data.dir", *(n for n in names if all(x.get(n) is not None for x in both))]


def extend(path: Path, **longer: Any) -> None:
    """Write what a claimed run becomes; it is not finished any more."""
    config = read_json(path)
    assert config is not None
    write_json(path, sealed({**config, **longer}))
    (path.parent / "finished").unlink(missing_ok=True)


def begin(path: Path, **by: str) -> None:
    """Note in a claimed folder by what its networks are trained from now on, and the time."""
    config = read_json(path)
    # Of an older folder it is not known what began it.
    if config is None or "format" not in config:
        return
    noted = config.get("trained_by", [])
    last = {name: value for name, value in noted[-1].items() if name != "time"} if noted else {}
    if last != by:
        now = {**by, "time": time.strftime("%Y-%m-%d %H:%M %Z")}
        write_json(path, sealed({**config, "trained_by": [*noted, now]}))


def trained_by(path: Path) -> list[dict[str, str]]:
    """Read what `begin` has noted, in order; nothing of a folder of an older version."""
    with reading(path):
        return list((read_json(path) or {}).get("trained_by", []))


@functools.cache
def commit() -> str:
    """Name the commit that runs, marked where files differ from it, as it was at the first call."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        own, silent = Path(__file__).parent, subprocess.DEVNULL
        return subprocess.check_output(command, cwd=own, stderr=silent, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class MetricsLog:
    """Appends to `metrics.jsonl`: one JSON object a line, with phase, seed, step and time.

    A line has its number among those of its training, a checksum, and the name of the run that
    wrote it, so that one that is damaged, gone or another's is missed. Of several processes only
    the one that is told so writes.
    """

    def __init__(self, path: Path, *, writes: bool = True, run: str | None = None):
        self.path, self.writes, self.run = path, writes, run
        self._last: dict[tuple[str, int | None], int] | None = None
        self._read: tuple[bytes, list[dict[str, Any]]] = b"", []

    def append(self, **row: Any) -> None:
        """Write one line, with the wall time in seconds since the epoch."""
        if not self.writes:
            return
        if self._last is None:
            self._last = {}
            for old in self.rows():
                self._last[_training(old)] = self._number(old)
        number = self._last[_training(row)] = self._number(row)
        numbered = {**row, "wall_time": round(time.time(), 3), "row": number}
        with naming(self.path), self.path.open("a") as file:
            file.write(self._line(numbered))

    def seconds(self, phase: str, seed: int | None) -> float:
        """Return how long a training has taken until its last line, interruptions left out."""
        return self._seconds().get((phase, seed), 0.0)

    def total_seconds(self) -> float:
        """Return how long all trainings have taken together, interruptions left out."""
        return sum(self._seconds().values())

    def rewind(self, phase: str, seed: int | None, step: int) -> None:
        """Drop the lines of a phase behind a step: it is about to be trained again from there."""
        if not self.writes or not self.path.exists():
            return
        kept = [r for r in self.rows() if _training(r) != (phase, seed) or r["step"] <= step]
        write_whole(self.path, "".join(map(self._line, kept)).encode())
        self._last = None

    def rows(self) -> list[dict[str, Any]]:
        """Read all sound lines; one that a kill tore apart, or that is damaged, is left out."""
        content = self.path.read_bytes() if self.path.exists() else b""
        # Lines that were read before are not parsed again.
        known, rows = self._read if content.startswith(self._read[0]) else (b"", [])
        ended = content.rfind(b"\n") + 1
        rows = rows + self._sound(content[len(known) : ended])
        self._read = content[:ended], rows
        return [dict(row) for row in rows + self._sound(content[ended:])]

    def whole(
        self, phase: str, seed: int | None, step: int, *, kept: Path | None = None
    ) -> list[dict[str, Any]]:
        """Return all lines of a training, which end at a step.

        Args:
            phase: of the training.
            seed: of the training.
            step: its last.
            kept: where its checkpoints are. Default: a folder beside the log.

        Raises:
            ValueError: if one of the lines is damaged or gone.
        """
        kept = kept or self.path.parent / "checkpoints" / f"{phase}-{seed}"
        own = [r for r in self.rows() if _training(r) == (phase, seed)]
        # Lines of older versions have no number.
        found = (own[-1]["step"], own[-1].get("row", len(own))) if own else None
        if self.writes and found != (step, len(own)):
            raise ValueError(
                f"{self.path} has lost lines of {phase}, seed {seed}: put a copy of it back, or "
                f"delete {kept} to train that again"
            )
        return own

    def _seconds(self) -> dict[tuple[str, int | None], float]:
        """Return how long each training has taken."""
        taken: dict[tuple[str, int | None], float] = {}
        for row in self.rows():
            taken[_training(row)] = max(taken.get(_training(row), 0.0), row.get("seconds", 0.0))
        return taken

    def _number(self, row: dict[str, Any]) -> int:
        """Return the number of a row among those of its training, the next where it has none."""
        assert self._last is not None
        return int(row.get("row", self._last.get(_training(row), 0) + 1))

    def _line(self, row: dict[str, Any]) -> str:
        whole = {**row, "run": self.run}
        return _json({**whole, "check": _checksum(whole)}) + "\n"

    def _sound(self, content: bytes) -> list[dict[str, Any]]:
        rows = []
        for line in content.splitlines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError, AttributeError, RecursionError
            ):
                rows.append(self._checked(json.loads(line)))
        return rows

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row as it was given; raise a ValueError where it is damaged or another run's."""
        if row.pop("check", None) not in (_checksum(row), None):
            raise ValueError("damaged")
        if self.run not in (row.pop("run", self.run), None):
            raise ValueError("of another run")
        _training(row), int(row["step"])
        return row


def _checksum(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(_json(row).encode()):08x}"


def _training(row: dict[str, Any]) -> tuple[str, int | None]:
    """Return whose a row is."""
    return row["phase"], row["seed"]
