"""Saving and restoring, with a digest per array: what comes back is what was written, or an error.

Orbax writes the arrays and makes every checkpoint appear at once or not at all. It does not notice
every damaged byte, so each leaf has a SHA-256 of ours beside it, checked on the way back.
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

_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and an older one is used in its place."""


class CheckpointError(ValueError):
    """No checkpoint of a directory can be used."""


def save(directory: str | Path, step: int, tree: PyTree, *, keep: int = 2) -> None:
    """Write a checkpoint that is either complete or not there, then remove old ones.

    Args:
        directory: where the checkpoints of one training live; made if need be.
        step: names the checkpoint.
        tree: arrays, typed PRNG keys included.
        keep: how many of the newest checkpoints stay; with two, one can be damaged.

    Raises:
        OSError: if it cannot be written; earlier checkpoints are untouched.
    """
    directory = Path(directory).absolute()
    _write(directory / str(step), tree, {"step": step})
    for old in _steps(directory)[:-keep]:
        shutil.rmtree(directory / str(old), ignore_errors=True)
    for leftover in directory.glob(f"*{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def restore(directory: str | Path, like: PyTree) -> tuple[int, PyTree] | None:
    """Read the newest checkpoint that is sound.

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
    steps = _steps(directory) if directory.is_dir() else []
    for step in reversed(steps):
        try:
            record = _read_record(directory / str(step))
        except _Damaged as damage:
            _warn(directory, step, damage)
            continue
        _check_structure(directory / str(step), record["leaves"], like)
        try:
            return step, _read_arrays(directory / str(step), record["leaves"], like)
        except _Damaged as damage:
            _warn(directory, step, damage)
    if steps:
        raise CheckpointError(
            f"all checkpoints in {directory} are damaged ({', '.join(map(str, steps))}): "
            "delete that folder to start anew"
        )
    return None


def save_variables(directory: str | Path, variables: Variables, metadata: dict[str, Any]) -> None:
    """Write a network, replacing what was there.

    Args:
        directory: the network's own folder.
        variables: nested dictionaries of arrays.
        metadata: what JSON can hold; it comes back as it was.

    Raises:
        OSError: if it cannot be written.
    """
    directory = Path(directory).absolute()
    fresh = directory.with_name(directory.name + ".new")
    tree = {"params": variables.params, "state": variables.state}
    _write(fresh, jax.tree.map(np.asarray, tree), metadata)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


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
    if not (directory / "record").is_dir():
        raise FileNotFoundError(f"{directory} holds no network")
    try:
        record = _read_record(directory)
        tree = _read_arrays(directory, record["leaves"], None)
    except _Damaged as damage:
        raise CheckpointError(f"the network in {directory} is damaged: {damage}") from damage
    return Variables(tree.get("params", {}), tree.get("state", {})), record["metadata"]


def params_sha256(tree: PyTree) -> str:
    """Digest all arrays of a tree with their paths, dtypes and shapes.

    Args:
        tree: arrays; for example the parameters of a network.

    Returns:
        64 hexadecimal digits, equal for equal bytes on any machine.
    """
    return _digest_of_record(_describe(tree))


class _Damaged(Exception):
    """Why a checkpoint cannot be trusted."""


def _write(path: Path, tree: PyTree, metadata: dict[str, Any]) -> None:
    leaves = _describe(tree)
    record = {"leaves": leaves, "metadata": metadata}
    args = ocp.args.Composite(
        arrays=ocp.args.StandardSave(tree),
        record=ocp.args.JsonSave({**record, "sha256": _digest_of_record(record)}),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whatever has this name already was damaged, or restore would have gone on from it.
        shutil.rmtree(path, ignore_errors=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=args)
    except Exception as error:
        # Tensorstore reports a full disk in exceptions of its own.
        raise OSError(f"cannot write {path}: {_first_line(error)}") from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = dict(checkpointer.restore(path, args=args)["record"])
        digest = record.pop("sha256")
    except Exception as error:
        raise _Damaged(f"its record cannot be read ({_first_line(error)})") from error
    if digest != _digest_of_record(record):
        raise _Damaged("its record does not match its own digest")
    return record


def _read_arrays(path: Path, leaves: dict[str, Any], like: PyTree | None) -> PyTree:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            target = None if like is None else jax.tree.map(_abstract, like)
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
            tree = checkpointer.restore(path, args=args)["arrays"]
        found = _describe(tree)
    except Exception as error:
        raise _Damaged(f"its arrays cannot be read ({_first_line(error)})") from error
    for name in leaves:
        if found.get(name) != leaves[name]:
            raise _Damaged(f"the bytes of {name} do not match their digest")
    return tree


def _check_structure(path: Path, leaves: dict[str, Any], like: PyTree) -> None:
    """Raise a ValueError that names the first array that only one side has, or in another shape."""
    expected = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for keys, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    stored = {name: leaf["type"] for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise ValueError(
                f"{path} holds {name} as {stored.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}"
            )


def _describe(tree: PyTree) -> dict[str, dict[str, str]]:
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): {
            "type": f"{leaf.dtype}{list(leaf.shape)}",
            "sha256": hashlib.sha256(_bytes(leaf)).hexdigest(),
        }
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _bytes(leaf: Any) -> bytes:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.ascontiguousarray(leaf).tobytes()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _digest_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _warn(directory: Path, step: int, damage: _Damaged) -> None:
    warnings.warn(
        f"the checkpoint of step {step} in {directory} is damaged and not used: {damage}",
        CheckpointWarning,
        stacklevel=3,
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
