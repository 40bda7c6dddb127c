"""Feature maps of any size: averages over bins, over positions and over all of an example."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array


def average_pool(x: Array, sizes: Sequence[int]) -> Array:
    """Average over bins that cover every axis of positions evenly, whatever the sizes.

    Args:
        x: [batch, ..., channels].
        sizes: the new number of positions along each axis between the first and the last. Where
            it does not divide the old one, neighboring bins share a position.
    """
    for axis, size in enumerate(sizes, start=1):
        x = _pool_axis(x, axis, size)
    return x


def _pool_axis(x: Array, axis: int, size: int) -> Array:
    old = x.shape[axis]
    if old == size:
        return x
    if old % size == 0:
        shape = (*x.shape[:axis], size, old // size, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(shape), axis=axis + 1)
    shares = jnp.asarray(bins(old, size), x.dtype)
    pooled = jnp.tensordot(x, shares, axes=(axis, 1), precision="highest")
    return jnp.moveaxis(pooled, -1, axis)


def bins(old: int, size: int) -> np.ndarray:
    """Return the matrix [size, old] of averages over `size` bins, as equal in width as can be."""
    shares = np.zeros((size, old))
    for i in range(size):
        first, last = i * old // size, -(-(i + 1) * old // size)
        shares[i, first:last] = 1 / (last - first)
    return shares


def flat(x: Array) -> Array:
    """Return [batch, width] of [batch, ...], an empty batch's too."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def positions(x: Array) -> Array:
    """Return [batch, positions, channels] of [batch, ..., channels], an empty batch's too."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def sum_per_example(x: Array) -> Array:
    """Sum over all axes but the first."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def mean_per_example(x: Array) -> Array:
    """Average over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
