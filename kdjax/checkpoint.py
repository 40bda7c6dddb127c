"""Saving and restoring, with digests: what comes back is what was written, or an error.

Orbax writes and reads the arrays. It does not notice every damaged byte, and is loud about those it
does, so a record of ours beside them holds a SHA-256 of every file, checked before Orbax sees it,
and one of every leaf, checked on what Orbax made of it. A checkpoint is a folder `<step>`: it gets
that name when it is complete.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kdjax.types import PyTree, Variables

_ARRAYS, _RECORD = "arrays", "record.json"
_UNFINISHED, _REMOVED = ".unfinished", ".removed"


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and an older one is used in its place."""


class CheckpointError(ValueError):
    """No checkpoint of a directory can be used."""


def save(directory: str | Path, step: int, tree: PyTree, *, keep: int = 2) -> None:
    """Write a checkpoint that is either complete or not there, then remove old ones.

    Checkpoints of later steps are removed too: training came back to this step without them,
    because they were damaged.

    Args:
        directory: where the checkpoints of one training live; made if need be.
        step: names the checkpoint; one that has the name already is replaced.
        tree: arrays, typed PRNG keys included.
        keep: how many of the newest checkpoints stay; with two, one can be damaged.

    Raises:
        OSError: if it cannot be written; earlier checkpoints are untouched.
        ValueError: if `keep` is below two.
    """
    if keep < 2:
        raise ValueError(f"save: keep is {keep}, expected 2 or more, so that one can be damaged")
    directory = Path(directory).absolute()
    _write(directory / str(step), tree, {"step": step})
    _prune(directory, step, keep)


def restore(directory: str | Path, like: PyTree) -> tuple[int, PyTree] | None:
    """Read the newest checkpoint that is sound, and warn of newer ones that are not.

    Args:
        directory: where `save` wrote.
        like: arrays or `jax.ShapeDtypeStruct`s of the expected structure; their shardings say
            where the restored arrays go, whatever mesh they were written from.

    Returns:
        The step and the tree, or None if there is no checkpoint.

    Raises:
        CheckpointError: if there are checkpoints and none is sound.
        ValueError: if a sound one holds other arrays than `like`.
    """
    directory = Path(directory).absolute()
    steps = _steps(directory)
    for step in reversed(steps):
        path = directory / str(step)
        try:
            leaves = _read_record(path)["leaves"]
            _check_structure(path, leaves, like)
            return step, _read_arrays(path, leaves, jax.tree.map(_abstract, like))
        except _Damaged as damage:
            warnings.warn(
                f"the checkpoint of step {step} in {directory} is damaged and not used: {damage}",
                CheckpointWarning,
                stacklevel=2,
            )
    if steps:
        raise CheckpointError(
            f"all checkpoints in {directory} are damaged (steps {', '.join(map(str, steps))}): "
            "delete that folder to start anew"
        )
    return None


def save_variables(directory: str | Path, variables: Variables, metadata: dict[str, Any]) -> None:
    """Write a network, replacing the one that was there at once.

    Args:
        directory: the network's own folder.
        variables: nested dictionaries of arrays.
        metadata: what JSON can hold; it comes back as it was.

    Raises:
        OSError: if it cannot be written; the network that was there is untouched.
    """
    directory = Path(directory).absolute()
    version = max(_steps(directory), default=-1) + 1
    _write(directory / str(version), jax.tree.map(np.asarray, variables._asdict()), metadata)
    _prune(directory, version, keep=1)


def load_variables(directory: str | Path) -> tuple[Variables, dict[str, Any]]:
    """Read a network.

    Args:
        directory: where `save_variables` wrote it.

    Returns:
        The variables as NumPy arrays, and the metadata.

    Raises:
        FileNotFoundError: if there is no network.
        CheckpointError: if it is damaged.
    """
    directory = Path(directory).absolute()
    versions = _steps(directory)
    if not versions:
        raise FileNotFoundError(f"{directory} holds no network")
    path = directory / str(versions[-1])
    try:
        record = _read_record(path)
        tree = _read_arrays(path, record["leaves"], None)
    except _Damaged as damage:
        raise CheckpointError(f"the network in {path} is damaged: {damage}") from damage
    return Variables(**tree), record["metadata"]


def params_sha256(tree: PyTree) -> str:
    """Digest all arrays of a tree with their paths, dtypes and shapes.

    Args:
        tree: arrays; for example the parameters of a network.

    Returns:
        64 hexadecimal digits, equal for equal bytes on any machine.
    """
    return _digest(_describe(tree))


class _Damaged(Exception):
    """Why a checkpoint cannot be trusted."""


def _write(path: Path, tree: PyTree, metadata: dict[str, Any]) -> None:
    """Write arrays and record under a passing name, then give them theirs."""
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished / _ARRAYS, args=ocp.args.StandardSave(tree))
        record = {"leaves": _describe(tree), "files": _files(unfinished), "metadata": metadata}
        sealed = {**record, "sha256": _digest(record)}
        (unfinished / _RECORD).write_text(json.dumps(sealed, indent=1))
        _remove(path)
        unfinished.rename(path)
    except Exception as error:
        # Orbax and TensorStore report a full disk in exceptions of their own.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot write {path}: {_first_line(error)}") from error


def _read_record(path: Path) -> dict[str, Any]:
    """Read the record of a checkpoint after holding every file against it."""
    try:
        content, found = (path / _RECORD).read_bytes(), _files(path)
    except OSError as error:
        raise _Damaged(f"it cannot be read ({_first_line(error)})") from error
    try:
        record = json.loads(content)
        digest = record.pop("sha256")
    except (ValueError, KeyError) as error:
        raise _Damaged(f"{_RECORD} is not the JSON that was written") from error
    if digest != _digest(record):
        raise _Damaged(f"{_RECORD} does not match its own digest")
    for name, expected in record["files"].items():
        if found.get(name) != expected:
            problem = "does not match its digest" if name in found else "is missing"
            raise _Damaged(f"{name} {problem}")
    return record


def _read_arrays(path: Path, leaves: dict[str, Any], like: PyTree | None) -> PyTree:
    """Read the arrays and hold every leaf against its digest."""
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(path / _ARRAYS, args=ocp.args.StandardRestore(like))
    except Exception as error:
        raise _Damaged(f"its arrays cannot be read ({_first_line(error)})") from error
    found = _describe(tree)
    for name in sorted(leaves.keys() | found.keys()):
        if found.get(name) != leaves.get(name):
            raise _Damaged(f"{name} does not match its digest")
    return tree


def _check_structure(path: Path, leaves: dict[str, Any], like: PyTree) -> None:
    """Raise a ValueError that names the first array that only one side has, or in another shape."""
    expected = {_name(keys): _type(x) for keys, x in jax.tree_util.tree_leaves_with_path(like)}
    stored = {name: leaf["type"] for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise ValueError(
                f"restore: the checkpoint {path} holds {name} as {stored.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}"
            )


def _describe(tree: PyTree) -> dict[str, dict[str, str]]:
    """Map the path of every leaf to its type and digest."""
    return {
        _name(keys): {"type": _type(leaf), "sha256": hashlib.sha256(_bytes(leaf)).hexdigest()}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _files(path: Path) -> dict[str, str]:
    """Map every file of a checkpoint but the record to its digest."""
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in names
        if name != _RECORD
    }


def _name(keys: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _bytes(leaf: Any) -> bytes:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    # Otherwise Orbax would ask for the devices that the arrays were written from.
    here = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _prune(directory: Path, step: int, keep: int) -> None:
    """Remove all but the newest checkpoints up to a step, and what a kill left behind."""
    kept = [s for s in _steps(directory) if s <= step][-keep:]
    for old in set(_steps(directory)) - set(kept):
        _remove(directory / str(old))
    for leftover in directory.iterdir():
        if leftover.suffix in (_UNFINISHED, _REMOVED):
            shutil.rmtree(leftover, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed midway, it leaves nothing that looks like one."""
    if path.exists():
        removed = path.with_name(path.name + _REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
