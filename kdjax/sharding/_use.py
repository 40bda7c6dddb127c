"""Arrays inside a compiled step: kept where they live, gathered where they are used."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.sharding._mesh import BATCH_AXES
from kdjax.types import PyTree

LayoutFn = Callable[[PyTree], PyTree]
"""Makes a tree of shardings for a tree of arrays or shapes: `shardings` with its mesh filled in."""

_NOWHERE = object()


def hold(tree: PyTree, layout_fn: LayoutFn | None) -> PyTree:
    """Keep the arrays of a compiled function where they live.

    Args:
        tree: arrays that are traced.
        layout_fn: says where each lives; None leaves it to the compiler.

    Returns:
        The same arrays.
    """
    if layout_fn is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout_fn(tree))


def layout_of(tree: PyTree) -> PyTree:
    """Return where the arrays of a tree are, for `gather`; NumPy's are nowhere in particular."""
    return jax.tree.map(lambda x: getattr(x, "sharding", _NOWHERE), tree)


def gather(tree: PyTree, layout: PyTree) -> PyTree:
    """Make arrays whole along the axes that split the batch, as what a network computes with.

    Otherwise the compiler might gather the batch instead, and all would compute the same.

    Args:
        tree: arrays that are traced.
        layout: where each lives; what has no `NamedSharding` is left alone.

    Returns:
        The same arrays; along `tensor` they are split as they were.
    """

    def whole(x: Any, sharding: Any) -> Any:
        if not _is_split(sharding):
            return x
        return jax.lax.with_sharding_constraint(x, _used(sharding))

    return jax.tree.map(whole, tree, layout)


def gathering(loss_fn: Callable[..., Any], layout_fn: LayoutFn | None) -> Callable[..., Any]:
    """Gather a function's parameters before it uses them, and again for its gradient.

    Between the two no device holds more of them than its share.

    Args:
        loss_fn: a function of parameters and other arguments.
        layout_fn: where the parameters live; None changes nothing.

    Returns:
        The same function.
    """
    if layout_fn is None:
        return loss_fn

    def gathered_loss(params: PyTree, *args: Any) -> Any:
        return loss_fn(gather(params, layout_fn(params)), *args)

    again = jax.checkpoint(gathered_loss, policy=_is_computed)

    def chosen(params: PyTree, *args: Any) -> Any:
        split = any(map(_is_split, jax.tree.leaves(layout_fn(params))))
        return (again if split else loss_fn)(params, *args)

    return chosen


def _is_computed(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a value is kept for the gradient: all but what was merely moved."""
    return primitive.name != "sharding_constraint"


def _used(sharding: NamedSharding) -> NamedSharding:
    """Drop the axes that split the batch."""

    def without(entry: Any) -> Any:
        names = entry if isinstance(entry, tuple) else (entry,)
        return tuple(name for name in names if name is not None and name not in BATCH_AXES) or None

    return NamedSharding(sharding.mesh, PartitionSpec(*map(without, sharding.spec)))


def _is_split(sharding: Any) -> bool:
    """Whether an axis that splits the batch splits an array of this layout too."""
    return isinstance(sharding, NamedSharding) and any(
        name in BATCH_AXES
        for entry in sharding.spec
        for name in (entry if isinstance(entry, tuple) else (entry,))
    )
