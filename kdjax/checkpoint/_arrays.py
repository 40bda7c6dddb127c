"""One checkpoint, written and read by all processes: Orbax's arrays and a manifest of digests."""

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from kdjax._extras import needs
from kdjax.checkpoint import _digests
from kdjax.checkpoint._digests import MANIFEST, Leaf, digest, file_digests
from kdjax.checkpoint._files import UNFINISHED, first_line, on_disk, remove
from kdjax.distributed import exchange, is_leader
from kdjax.types import PyTree

with needs("train"):
    import orbax.checkpoint as ocp

ARRAYS = "arrays"
_turns: dict[Path, Iterator[int]] = defaultdict(itertools.count)


class Damaged(Exception):
    """Why a checkpoint cannot be trusted."""

    called = "damaged"


class Foreign(Damaged):
    """Why a sound checkpoint is not the one that is wanted: it was written for something else."""

    called = "of another training"


def write(path: Path, tree: PyTree, metadata: dict[str, Any]) -> None:
    """Write arrays and manifest under a passing name, then give them theirs."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        if is_leader():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
        with _checkpointer(path) as checkpointer:
            saved = jax.tree.map(_once, tree)
            checkpointer.save(unfinished / ARRAYS, args=ocp.args.StandardSave(saved))
        processes = _share()
        mine = {"leaves": _digests.describe(tree), "files": file_digests(unfinished, **processes)}
        parts = [json.loads(text) for text in exchange(f"write {path.parent}", json.dumps(mine))]
        if is_leader():
            files = {n: d for part in parts for n, d in part["files"].items() if d is not None}
            leaves = _digests.merged([part["leaves"] for part in parts])
            manifest = {"leaves": leaves, "files": files, "metadata": metadata}
            sealed = {**manifest, "sha256": digest(manifest)}
            (unfinished / MANIFEST).write_text(json.dumps(sealed, indent=1))
            on_disk(unfinished)
            remove(path)
            unfinished.rename(path)
            on_disk(path.parent, inside=False)
        exchange(f"write {path.parent}", "done")
    except Exception as error:
        # Orbax and TensorStore report a full disk in exceptions of their own.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot write {path}: {_reason(error)}") from error


def _once(leaf: Any) -> Any:
    """Return one device's copy of what all devices of a process hold: Orbax cuts it among them.

    That is a program to compile for each shape.
    """
    alone = isinstance(leaf, jax.Array) and jax.process_count() == 1 and leaf.is_fully_replicated
    return leaf.addressable_data(0) if alone else leaf


def read_manifest(path: Path, *, whose: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check every file against it, each process its share.

    Args:
        path: the checkpoint.
        whose: what its metadata must say.

    Raises:
        Damaged: in all processes, if one of them found a damage.
        Foreign: in all processes, if it says something else than `whose`.
    """
    manifest, damage = {}, ""
    try:
        manifest = _checked_manifest(path)
    except Damaged as found:
        damage = str(found)
    _agree(path, damage)
    for name, wanted in (whose or {}).items():
        own = manifest["metadata"].get(name)
        if own != wanted:
            raise Foreign(f"its {name} is {own}, not {wanted}")
    return manifest


def read_arrays(path: Path, leaves: dict[str, Leaf], like: PyTree | None) -> PyTree:
    """Read the arrays and check every leaf against its digest.

    Raises:
        Damaged: in all processes, if one of them found a damage.
    """
    tree, damage = None, ""
    try:
        with _checkpointer(path) as checkpointer:
            tree = checkpointer.restore(path / ARRAYS, args=ocp.args.StandardRestore(like))
        wrong = _digests.disagreement(tree, leaves)
        damage = f"{wrong} does not match its digest" if wrong else ""
    except Exception as error:
        damage = f"its arrays cannot be read ({first_line(error)})"
    _agree(path, damage)
    return tree


def _agree(path: Path, damage: str) -> None:
    for found in exchange(f"read {path.parent}", damage):
        if found:
            raise Damaged(found)


def _checked_manifest(path: Path) -> dict[str, Any]:
    try:
        content, found = (path / MANIFEST).read_bytes(), file_digests(path, **_share())
    except OSError as error:
        raise Damaged(f"it cannot be read ({first_line(error)})") from error
    try:
        manifest: dict[str, Any] = json.loads(content)
        seal = manifest.pop("sha256")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not the JSON that was written") from error
    if seal != digest(manifest):
        raise Damaged(f"{MANIFEST} does not match its own digest")
    for name, expected in manifest["files"].items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name] not in (expected, None):
            raise Damaged(f"{name} does not match its digest")
    return manifest


def _share() -> dict[str, int]:
    return {"part": jax.process_index(), "parts": jax.process_count()}


@contextlib.contextmanager
def _checkpointer(path: Path) -> Iterator[ocp.Checkpointer]:
    """Open Orbax, with barriers that need no device: a thread must not use one beside the step."""
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        options = ocp.options.MultiprocessingOptions(
            primary_host=0,
            active_processes=set(range(jax.process_count())),
            barrier_sync_key_prefix=f"{path}/{next(_turns[path])}",
        )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    with _quiet(), ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        yield checkpointer


def _reason(error: Exception) -> str:
    """Return why a write failed: in the words of the system where they are somewhere in it."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
    said = (words for words in map(os.strerror, numbers) if words in str(error))
    return next(said, first_line(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the stack traces of a failure that its threads print on the error stream.

    The failure itself is raised. Writes that were under way beside it fail too, or find their event
    loop gone, then or later; asyncio and TensorStore report what nobody asks them for.
    """
    logger, tasks = logging.getLogger("absl"), logging.getLogger("asyncio")
    show, uncaught = sys.unraisablehook, sys.excepthook

    def hook(unraisable: Any) -> None:
        if not _is_late(unraisable.exc_value) and "async_serialize" not in repr(unraisable.object):
            show(unraisable)

    def printed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not _is_late(error):
            uncaught(kind, error, trace)

    logger.addFilter(_not_of_orbax)
    tasks.addFilter(_not_of_a_write)
    sys.unraisablehook, sys.excepthook = hook, printed
    try:
        yield
        tasks.removeFilter(_not_of_a_write)
        sys.unraisablehook, sys.excepthook = show, uncaught
    finally:
        logger.removeFilter(_not_of_orbax)


def _is_late(error: BaseException | None) -> bool:
    return str(error) == "Event loop is closed"


def _not_of_a_write(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return "never retrieved" not in said or "orbax" not in said


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
