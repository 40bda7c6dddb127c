"""Where every array of a tree lives: by rules on its path, by its annotation, or by its size."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.sharding._mesh import MeshAxes, put, split_by
from kdjax.sharding._use import LayoutFn
from kdjax.types import PyTree

Rules = Sequence[tuple[str, PartitionSpec]]
"""Patterns that are searched for in an array's path, and how such an array is split."""

LOGICAL_AXES: Mapping[str, MeshAxes] = {
    "embed": "fsdp", "mlp": "tensor", "heads": "tensor", "joined_kv": "tensor", "vocab": "tensor",
}  # fmt: skip
"""What the axis names that Flax's own examples annotate with mean on our mesh."""

_MIN_SIZE = 1024


def shardings(
    tree: PyTree,
    mesh: Mesh,
    rules: Rules = (),
    *,
    axes: Mapping[str, MeshAxes] = LOGICAL_AXES,
    min_size: int = _MIN_SIZE,
) -> PyTree:
    """Return where every array of a tree lives.

    The first of these that applies decides:

    1. Scalars and PRNG keys are on every device.
    2. The first rule whose pattern is found in the path. Paths are joined by "/", as in
       "params/student/head/kernel"; those of optimizer moments end in the parameter's. A rule with
       more entries than the array has axes is passed over.
    3. The names of a Flax annotation: `nn.with_partitioning`, `nn.with_logical_partitioning`, or
       NNX metadata that came through `kdjax.models.from_nnx`.
    4. The largest axis that `fsdp` divides is split over it. Arrays of fewer than `min_size`
       numbers are on every device.

    An axis is never split into parts of unequal size: mesh axes that do not divide it are dropped.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s: a training's state, a teacher's variables, ...
        mesh: see `make_mesh`.
        rules: such as `RESNET_RULES`.
        axes: what names in rules, annotations and step 4 mean on the mesh. Names that are not here
            mean the mesh's axis of that name, or none. `{"fsdp": ("data", "fsdp")}` splits a
            teacher over devices that each hold the whole student.
        min_size: see step 4.

    Returns:
        A tree of the same structure with a `jax.sharding.NamedSharding` for every array.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.shardings({"bias": jnp.ones(2)}, mesh)["bias"].is_fully_replicated
        True
    """

    def layout(path: tuple[Any, ...], leaf: Any) -> Any:
        value, names, meaning = leaf, None, axes
        if isinstance(leaf, nn.Partitioned):
            value, names, meaning = leaf.value, leaf.names, {**axes, **_flax_rules(leaf)}
        spec = split_by()
        if value.ndim and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            found = _ruled(_join(path), value.ndim, rules)
            if found is not None:
                spec = _fitted(found, value.shape, mesh, axes)
            elif names is not None:
                spec = _fitted(names, value.shape, mesh, meaning)
            elif math.prod(value.shape) >= min_size:
                spec = _by_size(value.shape, mesh, axes)
        sharding = NamedSharding(mesh, spec)
        return leaf.replace_boxed(sharding) if isinstance(leaf, nn.Partitioned) else sharding

    return jax.tree_util.tree_map_with_path(
        layout, tree, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def place(
    tree: PyTree,
    mesh: Mesh,
    rules: Rules = (),
    *,
    axes: Mapping[str, MeshAxes] = LOGICAL_AXES,
    min_size: int = _MIN_SIZE,
    dtype: Any = None,
) -> PyTree:
    """Move arrays to where `shardings` says, such as the variables of a teacher.

    Args:
        tree: arrays of NumPy or jax.
        mesh: see `make_mesh`.
        rules: see `shardings`.
        axes: see `shardings`.
        min_size: see `shardings`.
        dtype: what floating-point arrays are stored in, None to leave them as they are.

    Returns:
        The arrays, on the mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> tree = {"kernel": jnp.ones((4, 2))}
        >>> sharding.place(tree, sharding.make_mesh(), dtype=jnp.bfloat16)["kernel"].dtype
        dtype(bfloat16)
    """

    def cast(x: Any) -> Any:
        wanted = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if wanted else x

    tree = jax.tree.map(cast, tree)
    return put(tree, shardings(tree, mesh, rules, axes=axes, min_size=min_size))


def initialize(make_fn: Callable[..., PyTree], *args: Any, layout_fn: LayoutFn) -> PyTree:
    """Make arrays where they will live: no device ever holds them all.

    Args:
        make_fn: makes them; it is compiled.
        *args: its arguments.
        layout_fn: where each will live, as in
            `functools.partial(shardings, mesh=mesh, rules=RESNET_RULES)`.

    Returns:
        What `make_fn` returns.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> layout = lambda tree: sharding.shardings(tree, mesh)
        >>> make = lambda key: jax.random.normal(key, (4, 2))
        >>> sharding.initialize(make, jax.random.key(0), layout_fn=layout).shape
        (4, 2)
    """
    layout = layout_fn(jax.eval_shape(make_fn, *args))
    return jax.jit(make_fn, out_shardings=layout)(*args)


def abstract(make_fn: Callable[..., PyTree], *args: Any, layout_fn: LayoutFn) -> PyTree:
    """Describe what `initialize` would make, without making it: what a checkpoint is read into.

    Args:
        make_fn: see `initialize`.
        *args: see `initialize`.
        layout_fn: see `initialize`.

    Returns:
        A `jax.ShapeDtypeStruct` with its sharding for every array.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> layout = lambda tree: sharding.shardings(tree, mesh)
        >>> make = lambda key: jax.random.normal(key, (4, 2))
        >>> sharding.abstract(make, jax.random.key(0), layout_fn=layout).shape
        (4, 2)
    """
    describe: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct
    shapes = jax.eval_shape(make_fn, *args)
    return jax.tree.map(
        lambda x, at: describe(x.shape, x.dtype, sharding=at), shapes, layout_fn(shapes)
    )


def _join(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _ruled(path: str, ndim: int, rules: Rules) -> PartitionSpec | None:
    for pattern, spec in rules:
        if len(spec) <= ndim and re.search(pattern, path):
            return spec
    return None


def _flax_rules(box: nn.Partitioned[Any]) -> dict[str, MeshAxes]:
    """Return what an annotation itself, or Flax's context around us, says that names mean."""
    own = getattr(box, "rules", None) or ()
    return dict(reversed([*own, *nn.get_logical_axis_rules()]))


def _fitted(
    spec: Iterable[Any], shape: tuple[int, ...], mesh: Mesh, axes: Mapping[str, MeshAxes]
) -> PartitionSpec:
    """Turn names into mesh axes: those that divide, that are of this mesh, and each once."""
    entries: list[MeshAxes] = []
    used: set[str] = set()
    for size, names in zip(shape, spec, strict=False):
        kept: list[str] = []
        for axis in _mesh_axes(names, mesh, axes):
            parts = math.prod(mesh.shape[name] for name in (*kept, axis))
            if axis not in used and size % parts == 0:
                kept.append(axis)
                used.add(axis)
        entries.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    while entries and entries[-1] is None:
        entries.pop()
    return split_by(*entries)


def _by_size(shape: tuple[int, ...], mesh: Mesh, axes: Mapping[str, MeshAxes]) -> PartitionSpec:
    """Split the largest of the axes that take the most parts."""
    choices = [_fitted([*[None] * i, "fsdp"], shape, mesh, axes) for i in range(len(shape))]

    def rank(i: int) -> tuple[int, int]:
        local = NamedSharding(mesh, choices[i]).shard_shape(shape)
        return shape[i] // max(1, local[i]), shape[i]

    return choices[max(range(len(shape)), key=rank)]


def _mesh_axes(names: Any, mesh: Mesh, axes: Mapping[str, MeshAxes]) -> list[str]:
    """Return the mesh axes of more than one device that an entry of a specification names."""
    found: list[str] = []
    for name in names if isinstance(names, tuple) else (names,):
        meant = axes.get(name, name)
        found += meant if isinstance(meant, tuple) else [meant or ""]
    return [axis for axis in found if mesh.shape.get(axis, 1) > 1]
