"""Digests of arrays and files: what a process holds it vouches for, and together that is all."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.distributed import gathered, is_whole
from kdjax.types import PyTree

MANIFEST = "record.json"


class Leaf(TypedDict, total=False):
    """An array: `sha256`, or where no process held it whole that of its `shards`, by bounds."""

    type: str
    sha256: str
    shards: dict[str, str]


def params_sha256(tree: PyTree) -> str:
    """Digest all arrays of a tree with their paths, dtypes and shapes.

    Args:
        tree: arrays; for example the parameters of a network. Where they are split over processes,
            all processes must call.

    Returns:
        64 hexadecimal digits, equal for equal bytes on any machine.

    Example:
        >>> import numpy as np
        >>> from kdjax import checkpoint
        >>> len(checkpoint.params_sha256({"w": np.arange(2.0)}))
        64
    """
    leaves = leaves_of(tree).items()
    return digest(
        {n: {"type": type_of(x), "sha256": _sha256(gathered(_numbers(x)))} for n, x in leaves}
    )


def describe(tree: PyTree) -> dict[str, Leaf]:
    """Map the path of every leaf to its type and the digests of what this process holds of it."""
    leaves = leaves_of(tree).items()
    return {name: {"type": type_of(x), **_digests(_numbers(x))} for name, x in leaves}


def merged(parts: list[dict[str, Leaf]]) -> dict[str, Leaf]:
    """Merge what the processes say about the same leaves."""
    leaves = parts[0]
    for part in parts[1:]:
        for name, leaf in part.items():
            if "shards" in leaf:
                leaves[name]["shards"] |= leaf["shards"]
    return leaves


def disagreement(tree: PyTree, leaves: dict[str, Leaf]) -> str | None:
    """Find the first array that is not what was saved.

    Where no process holds an array whole and it is split in another way than when it was saved, it
    is put together first, one array at a time; all processes must call.

    Args:
        tree: arrays.
        leaves: what `describe` said of them when they were saved.

    Returns:
        The path of the first leaf that differs as far as this process can tell, or None.
    """
    found = leaves_of(tree)
    wrong = [
        name
        for name in sorted(leaves.keys() | found.keys())
        if name not in leaves or name not in found or not _agrees(found[name], leaves[name])
    ]
    return wrong[0] if wrong else None


def file_digests(path: Path, *, part: int = 0, parts: int = 1) -> dict[str, str | None]:
    """Map every file of a checkpoint but its manifest to its digest.

    Args:
        path: the checkpoint.
        part: which of every `parts` files are read here; others map to None.
        parts: how many processes share the work.
    """
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest() if i % parts == part else None
        for i, name in enumerate(n for n in names if n != MANIFEST)
    }


def digest(content: dict[str, Any]) -> str:
    """Digest what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def leaves_of(tree: PyTree) -> dict[str, Any]:
    """Return every leaf by its path, written with slashes."""
    leaves, write = jax.tree_util.tree_leaves_with_path(tree), jax.tree_util.keystr
    return {write(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def type_of(leaf: Any) -> str:
    """Write dtype and shape."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def _digests(numbers: Any) -> Leaf:
    if is_whole(numbers):
        return {"sha256": _sha256(np.asarray(numbers))}
    shards = [shard for shard in numbers.addressable_shards if shard.replica_id == 0]
    found = {_bounds(x.index, numbers.shape): _sha256(np.asarray(x.data)) for x in shards}
    return {"shards": found}


def _agrees(leaf: Any, saved: Leaf) -> bool:
    if type_of(leaf) != saved["type"]:
        return False
    numbers = _numbers(leaf)
    if not is_whole(numbers) and saved.get("shards", {}).keys() == _all_bounds(numbers):
        return all(
            saved["shards"][_bounds(shard.index, numbers.shape)] == _sha256(np.asarray(shard.data))
            for shard in numbers.addressable_shards
        )
    whole = gathered(numbers)
    if "sha256" in saved:
        return _sha256(whole) == saved["sha256"]
    return all(_sha256(whole[_index(p)]) == found for p, found in saved["shards"].items())


def _all_bounds(array: jax.Array) -> set[str]:
    """Return the bounds of what all processes together hold: the same in each of them."""
    indices = array.sharding.devices_indices_map(array.shape).values()
    return {_bounds(index, array.shape) for index in indices}


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    pairs = (part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop in pairs)


def _index(bounds: str) -> tuple[slice, ...]:
    return tuple(slice(*map(int, part.split(":"))) for part in bounds.split(",") if part)


def _numbers(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
