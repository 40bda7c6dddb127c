"""Compiled loops, and where XLA's are slow."""

from collections.abc import Callable
from typing import Any

import jax

from kdjax.types import PyTree


def loops_well(function: Callable[..., Any], *args: PyTree, platform: str | None = None) -> bool:
    """Whether a function is as fast inside a compiled loop as on its own.

    XLA for CPUs brings convolutions into the form of its fast kernels outside of loops alone
    (https://github.com/jax-ml/jax/issues/12868); the gradient of their weights takes some thirty
    times as long inside of one.

    Args:
        function: any that JAX can trace.
        *args: its arguments, or their shapes.
        platform: where it runs, JAX's default backend where None.

    Returns:
        False if it has convolutions and runs on CPUs.
    """
    if (platform or jax.default_backend()) != "cpu":
        return True
    return "conv_general_dilated" not in str(jax.make_jaxpr(function)(*args))


def scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], init: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
    """Do what `jax.lax.scan` does, without a loop where loops are slow.

    There the turns are compiled one after the other: the time to compile grows with their number,
    and XLA does not use the memory of one turn again for the next.

    Args:
        body: `(carry, x) -> (carry, y)`.
        init: the first carry.
        xs: arrays [turns, ...].

    Returns:
        The last carry, and the ys, [turns, ...].
    """
    turns = jax.tree.leaves(xs)[0].shape[0]
    first = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), xs)
    return jax.lax.scan(body, init, xs, unroll=1 if loops_well(body, init, first) else turns)
