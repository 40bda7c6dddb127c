"""The mesh itself, and batches on it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.types import PyTree

AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh: copies, split parameters, and split layers."""

BATCH_AXES = ("data", "fsdp")
"""The axes that split a batch."""

MeshAxes = str | tuple[str, ...] | None
split_by: Callable[..., PartitionSpec] = PartitionSpec
"""Makes a `PartitionSpec` of what splits each axis of an array: mesh axes, or None."""


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Arrange devices, of all processes.

    Args:
        data: devices along the axis that splits the batch; -1 takes all that the others leave.
        fsdp: devices along the axis that splits batch and parameters.
        tensor: devices along the axis that splits wide layers.

    Returns:
        A mesh with the axes `data`, `fsdp` and `tensor`.

    Raises:
        ValueError: if the product is more than the number of devices, or leaves a process without
            one. Fewer are allowed: the mesh has the first ones.

    Example:
        >>> from kdjax import sharding
        >>> sharding.make_mesh().axis_names
        ('data', 'fsdp', 'tensor')
    """
    num_devices, others = jax.device_count(), fsdp * tensor
    if data == -1 and others >= 1 and num_devices % others == 0:
        data = num_devices // others
    asked = f"make_mesh: a mesh of {data} x {fsdp} x {tensor} (data x fsdp x tensor)"
    if min(data, fsdp, tensor) < 1 or data * others > num_devices:
        raise ValueError(f"{asked} does not fit on {num_devices} devices")
    devices = jax.devices()[: data * others]
    idle = set(range(jax.process_count())) - {device.process_index for device in devices}
    if idle:
        raise ValueError(f"{asked} has no device of process {min(idle)}")
    # Under Explicit axes, the default, Linen's Dropout fails.
    return jax.make_mesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the layout of an array that every device holds whole.

    Example:
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.replicated(mesh).is_fully_replicated
        True
    """
    return NamedSharding(mesh, split_by())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the layout of an array whose first axis, the batch, is split.

    Example:
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.batch_sharding(mesh).spec[0]
        ('data', 'fsdp')
    """
    return NamedSharding(mesh, split_by(BATCH_AXES))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every array to every device of the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.replicate({"w": jnp.ones(2)}, mesh)["w"].is_fully_replicated
        True
    """
    return put(tree, replicated(mesh))


def put(tree: PyTree, sharding: Any) -> PyTree:
    """Lay arrays out on a mesh, also on one that spans processes.

    Args:
        tree: arrays that all processes hold, or that are on the mesh already.
        sharding: a layout for all of them, or a tree of layouts.

    Returns:
        The arrays, on the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.put(jnp.ones((16, 2)), sharding.batch_sharding(mesh)).shape
        (16, 2)
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put takes no layout with devices of other processes for typed keys.
    return jax.jit(lambda arrays: arrays, out_shardings=sharding)(tree)


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Make global arrays out of this process's share of a batch.

    Args:
        batch: NumPy arrays, [examples of this process, ...]: the rows `local_rows` of the batch.
            What has another first axis, or none, is one for the whole batch, the same in every
            process.
        mesh: the mesh to split them over.

    Returns:
        Arrays [examples of all processes, ...], split over `data` and `fsdp`.

    Example:
        >>> import numpy as np
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.shard_batch({"image": np.zeros((16, 8, 8, 1))}, mesh)["image"].shape
        (16, 8, 8, 1)
    """
    leaves = jax.tree.leaves(batch)
    sizes = [x.shape[0] for x in leaves if getattr(x, "shape", ())]
    size = max(sizes, key=sizes.count, default=0)
    split, whole = batch_sharding(mesh), replicated(mesh)
    layout = jax.tree.map(
        lambda x: split if getattr(x, "shape", ())[:1] == (size,) else whole, batch
    )
    if jax.process_count() == 1:
        placed: dict[str, jax.Array] = jax.device_put(batch, layout)
        return placed
    return {
        name: put(x, whole) if layout[name] is whole else _global(np.asarray(x), mesh, split)
        for name, x in batch.items()
    }


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return which rows of a batch the devices of this process hold, in order.

    They need not be next to one another, and processes that split an axis other than the batch
    hold the same ones.

    Args:
        mesh: the mesh that splits the batch.
        batch_size: examples in a batch, over all processes.

    Returns:
        Row numbers, [examples of this process].

    Example:
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> len(sharding.local_rows(mesh, 16))  # where there is one process
        16
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = {index[0].indices(batch_size)[:2] for index in indices if index is not None}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(bounds)])


def _global(local: np.ndarray, mesh: Mesh, sharding: NamedSharding) -> jax.Array:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    # The share of one device is known from how many different ones this process holds.
    size = len(local) // len(local_rows(mesh, parts)) * parts
    rows = local_rows(mesh, size)

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(size)
        first = int(np.searchsorted(rows, start))
        return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), sharding, part)


def check_batch_size(batch_size: int, mesh: Mesh, *, num_micro_batches: int = 1) -> None:
    """Raise unless the batch divides over the mesh, and over micro-batches on it.

    Args:
        batch_size: examples in a global batch.
        mesh: the mesh that splits it.
        num_micro_batches: the parts that the gradient is accumulated over.

    Raises:
        ValueError: with the nearest sizes that divide.

    Example:
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.check_batch_size(64, mesh)
    """
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    unit = devices * num_micro_batches
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        sizes = f"{below} and {below + unit}" if below > 0 else f"{unit} and its multiples"
        parts = f" in {num_micro_batches} micro-batches" if num_micro_batches > 1 else ""
        raise ValueError(
            f"a batch of {batch_size} does not divide over {devices} devices{parts}; "
            f"sizes that fit: {sizes}"
        )
