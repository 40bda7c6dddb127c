"""Arrays inside a compiled step: kept where they live, gathered where they are used."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from kdjax.sharding._mesh import BATCH_AXES, split_by
from kdjax.types import PyTree

LayoutFn = Callable[[PyTree], PyTree]
"""Makes a tree of shardings for a tree of arrays or shapes: `shardings` with its mesh filled in."""

_NOWHERE = object()
_constrained: Callable[[PyTree, PyTree], PyTree] = jax.lax.with_sharding_constraint


def hold(tree: PyTree, layout_fn: LayoutFn | None) -> PyTree:
    """Keep the arrays of a compiled function where they live.

    Args:
        tree: arrays that are traced.
        layout_fn: says where each lives; None leaves it to the compiler.

    Returns:
        The same arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> sharding.hold({"w": jnp.ones(4)}, None)["w"].shape
        (4,)
    """
    return tree if layout_fn is None else _constrained(tree, layout_fn(tree))


def layout_of(tree: PyTree) -> PyTree:
    """Return where the arrays of a tree are, for `gather`; NumPy's are nowhere in particular.

    Example:
        >>> import numpy as np
        >>> from kdjax import sharding
        >>> sorted(sharding.layout_of({"w": np.ones(4)}))
        ['w']
    """
    return jax.tree.map(lambda x: getattr(x, "sharding", _NOWHERE), tree)


def gather(tree: PyTree, layout: PyTree | LayoutFn | None) -> PyTree:
    """Make arrays whole along the axes that split the batch, as what a network computes with.

    Otherwise the compiler might gather the batch instead, and all would compute the same.

    Args:
        tree: arrays that are traced.
        layout: where each lives, or a function that says so; None changes nothing, and what has no
            `NamedSharding` is left alone.

    Returns:
        The same arrays; along `tensor` they are split as they were.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> mesh = sharding.make_mesh()
        >>> sharding.gather({"w": jnp.ones(4)}, None)["w"].shape
        (4,)
    """
    if layout is None:
        return tree

    def whole(x: Any, sharding: Any) -> Any:
        return _constrained(x, _used(sharding)) if _is_split(sharding) else x

    return jax.tree.map(whole, tree, layout(tree) if callable(layout) else layout)


def gathered_again(
    loss_fn: Callable[..., Any], params: PyTree, layout_fn: LayoutFn | None
) -> Callable[..., Any]:
    """Gather what a loss gathers a second time for its gradient, instead of keeping it.

    Between the two no device holds more of the parameters than its share.

    Args:
        loss_fn: a function that calls `gather`.
        params: the parameters that it gathers.
        layout_fn: where they live; where none is split, nothing changes.

    Returns:
        The same function.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import sharding
        >>> loss_fn = sharding.gathered_again(
        ...     lambda params: jnp.sum(params**2), jnp.ones(3), None
        ... )
        >>> print(jax.grad(loss_fn)(jnp.ones(3)))
        [2. 2. 2.]
    """
    split = layout_fn is not None and any(map(_is_split, jax.tree.leaves(layout_fn(params))))
    return jax.checkpoint(loss_fn, policy=_is_computed) if split else loss_fn


def _is_computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """Return whether a value is kept for the gradient: all but what was merely moved."""
    return str(primitive.name) != "sharding_constraint"


def _names(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _used(sharding: NamedSharding) -> NamedSharding:
    """Drop the axes that split the batch."""

    def without(entry: Any) -> Any:
        return tuple(name for name in _names(entry) if name and name not in BATCH_AXES) or None

    return NamedSharding(sharding.mesh, split_by(*map(without, sharding.spec)))


def _is_split(sharding: Any) -> bool:
    """Return whether an axis that splits the batch splits an array of this layout too."""
    return isinstance(sharding, NamedSharding) and any(
        name in BATCH_AXES for entry in sharding.spec for name in _names(entry)
    )
