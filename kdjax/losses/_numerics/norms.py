"""Norms with a gradient where they are zero: 0, the subgradient of smallest norm, and never nan."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def safe_sqrt(x: Array) -> Array:
    """Return the square root of what is not negative; its gradient at 0 is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x == 0, 0, x))


def unit_of(x: Array, axis: int | Sequence[int] | None = -1) -> Array:
    """Return the power of two next to the largest size, a constant: dividing by it rounds nothing.

    Squares of what is left neither vanish nor overflow. 1 where all are 0, or one is not finite.
    """
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    about = np.finfo(x.dtype)
    unit = jax.lax.reduce_precision(jnp.minimum(size, about.max / 4), about.nexp, 0)
    return jnp.where((unit > 0) & jnp.isfinite(size), unit, 1)


def l2_norm(x: Array, axis: int | Sequence[int] = -1, *, keepdims: bool = False) -> Array:
    """Return the Euclidean norm over one axis or several; its gradient at 0 is 0."""
    unit = unit_of(x, axis)
    norm = unit * safe_sqrt(jnp.sum(jnp.square(x / unit), axis=axis, keepdims=True))
    return norm if keepdims else jnp.squeeze(norm, axis)


def normalize(x: Array, axis: int | Sequence[int] = -1) -> Array:
    """Divide by the norm, however small; what is 0 stays 0, with gradient 0."""
    x = x / unit_of(x, axis)
    norm = safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))
    return jnp.where(norm == 0, 0, x / jnp.where(norm == 0, 1, norm))


def cosine_distance(a: Array, b: Array, axis: int = -1) -> Array:
    """Return 1 - cos(a, b) without cancellation: half the squared distance of unit vectors.

    Where one of the two is 0 there is no angle: the distance is 1, with gradient 0.
    """
    a, b = normalize(a, axis), normalize(b, axis)
    missing = ~(jnp.any(a != 0, axis=axis) & jnp.any(b != 0, axis=axis))
    return jnp.where(missing, 1, jnp.sum(jnp.square(a - b), axis=axis) / 2)


def deviations(x: Array, present: Array, axis: int = -1) -> Array:
    """Subtract the mean of the entries that are present; the absent ones become 0.

    Where all that are present are equal the deviations are exactly 0, with gradient 0.
    """
    inf = jnp.inf
    top = jnp.max(jnp.where(present, x, -inf), axis=axis, keepdims=True, initial=-inf)
    constant = top == jnp.min(jnp.where(present, x, inf), axis=axis, keepdims=True, initial=inf)
    # Shifted by the largest entry first: large equal parts would cost the deviations their digits.
    shifted = jnp.where(present, x, 0) - jax.lax.stop_gradient(jnp.where(jnp.isinf(top), 0, top))
    shifted = jnp.where(present & ~constant, shifted, 0)
    count = jnp.maximum(jnp.sum(present, axis=axis, keepdims=True, dtype=x.dtype), 1)
    return jnp.where(present, shifted - jnp.sum(shifted, axis=axis, keepdims=True) / count, 0)


def absolute(x: Array) -> Array:
    """Return |x| with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return x * jnp.sign(x)
