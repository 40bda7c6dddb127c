"""Norms with a gradient where they are zero: 0, the subgradient of smallest norm, and never nan."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def safe_sqrt(x: Array) -> Array:
    """Return the square root of what is not negative; its gradient at 0 is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x == 0, 0, x))


def l2_norm(x: Array, axis: int | Sequence[int] = -1, *, keepdims: bool = False) -> Array:
    """Return the Euclidean norm over one axis or several; its gradient at 0 is 0."""
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims))


def normalize(x: Array, axis: int | Sequence[int] = -1, *, eps: float = 1e-12) -> Array:
    """Divide by the norm, or by eps where it is smaller; what is 0 stays 0, with gradient 0."""
    norm = l2_norm(x, axis, keepdims=True)
    return jnp.where(norm == 0, 0, x / jnp.maximum(norm, eps))


def cosine_distance(a: Array, b: Array, axis: int = -1, *, eps: float = 1e-12) -> Array:
    """Return 1 - cos(a, b) without cancellation: half the squared distance of unit vectors.

    Where one of the two is 0 there is no angle: the distance is 1, with gradient 0.
    """
    a, b = normalize(a, axis, eps=eps), normalize(b, axis, eps=eps)
    missing = ~(jnp.any(a != 0, axis=axis) & jnp.any(b != 0, axis=axis))
    return jnp.where(missing, 1, jnp.sum(jnp.square(a - b), axis=axis) / 2)


def deviations(x: Array, present: Array, axis: int = -1) -> Array:
    """Subtract the mean of the entries that are present; the absent ones become 0.

    Where all that are present are equal the deviations are exactly 0, with gradient 0.
    """
    top = jnp.max(jnp.where(present, x, -jnp.inf), axis=axis, keepdims=True)
    constant = top == jnp.min(jnp.where(present, x, jnp.inf), axis=axis, keepdims=True)
    # Shifted by the largest entry first: large equal parts would cost the deviations their digits.
    shifted = jnp.where(present, x, 0) - jax.lax.stop_gradient(jnp.where(jnp.isinf(top), 0, top))
    shifted = jnp.where(present & ~constant, shifted, 0)
    count = jnp.maximum(jnp.sum(present, axis=axis, keepdims=True), 1)
    return jnp.where(present, shifted - jnp.sum(shifted, axis=axis, keepdims=True) / count, 0)


def absolute(x: Array) -> Array:
    """Return |x| with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return x * jnp.sign(x)
