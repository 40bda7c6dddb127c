"""Divergences from mixtures that keep their digits: the mathematics of divergences.

Classes are on the last axis; -inf marks one without mass. The textbook sum of p (log p - log m)
loses its digits where p and m nearly agree, as in `exact`, and the logarithm of a mixture of
probabilities that underflow is nan. Here sums run over p * phi(log(m / p)), with
phi(r) = exp(r) - 1 - r, which have no negative terms, and log(m / p) comes from log q - log p.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses._numerics import exact


def kl(log_p: Array, log_q: Array) -> Array:
    """Return KL(p || q) over the last axis."""
    return skewed_kl(log_p, log_q, jnp.zeros((*log_p.shape[:-1], 1), log_p.dtype))


def skewed_kl(log_p: Array, log_q: Array, share: Array) -> Array:
    """Return KL(p || m) over the last axis, m = share * p + (1 - share) * q; KL(p || q) at share 0.

    What the two masses differ by belongs to the definition and is added, unless it is rounding:
    both are 1 as nearly as a sum of so many numbers can tell.
    """
    terms, impossible = _terms(log_p, log_q, share)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    rounding = (32 + 4 * math.sqrt(p.shape[-1])) * np.finfo(p.dtype).eps
    apart = jnp.maximum(*(jnp.abs(jnp.sum(x, axis=-1) - 1) for x in (p, q)))
    excess = jnp.sum(p - q, axis=-1)
    excess = excess - jax.lax.stop_gradient(jnp.where(apart <= rounding, excess, 0))
    value = jnp.sum(terms, axis=-1) + (1 - jnp.squeeze(share, -1)) * excess
    return value + jnp.where(jnp.any(impossible, axis=-1), jnp.inf, 0)


def jensen_shannon(log_p: Array, log_q: Array, share: Array) -> Array:
    """Return share * KL(p || m) + (1 - share) * KL(q || m), for a share inside (0, 1).

    The mixture m is share * p + (1 - share) * q.

    The masses cancel class by class, so that this is the definition whatever they are.
    """
    from_p, _ = _terms(log_p, log_q, share)
    from_q, _ = _terms(log_q, log_p, 1 - share)
    return jnp.sum(share * from_p + (1 - share) * from_q, axis=-1)


def weighted_kl(log_p: Array, log_q: Array, reverse_weight: Array) -> Array:
    """Return (1 - w) * KL(p || q) + w * KL(q || p), a part of weight 0 left out."""
    weights = (1 - reverse_weight, reverse_weight)
    parts = (kl(log_p, log_q), kl(log_q, log_p))
    # An infinite part of weight zero would be nan.
    pairs = zip(weights, parts, strict=True)
    forward, reverse = (jnp.where(w == 0, 0, w * jnp.where(w == 0, 0, x)) for w, x in pairs)
    return forward + reverse


def probability_gap(log_p: Array, log_q: Array) -> Array:
    """Return |p - q| class by class, exact to its last digits where the two are close."""
    both, gap = _log_gap(log_p, log_q)
    larger = jnp.exp(jnp.where(both, jnp.maximum(log_p, log_q), 0))
    apart = jnp.exp(log_p) + jnp.exp(log_q)  # one of them is 0
    return jnp.where(both, -larger * jnp.expm1(-jnp.abs(gap)), apart)


def _log_gap(log_p: Array, log_q: Array) -> tuple[Array, Array]:
    """Return where both have mass; and log q - log p there, 0 elsewhere."""
    both = ~(jnp.isneginf(log_p) | jnp.isneginf(log_q))
    return both, jnp.where(both, jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0), 0)


def _terms(log_p: Array, log_q: Array, share: Array) -> tuple[Array, Array]:
    """Return p * phi(log(m / p)) = m - p - p * log(m / p), m = share * p + (1 - share) * q.

    Returns:
        [..., num_classes], finite; and where the value is infinite: p has mass and m has none.
    """
    both, gap = _log_gap(log_p, log_q)
    alone = ~jnp.isneginf(log_p) & jnp.isneginf(log_q)
    impossible = alone & (share == 0)
    skew = jnp.where(alone & ~impossible, _log(share), 0)
    ratio = jnp.where(both, _log_mean(gap, share), skew)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    small = (both | alone) & (jnp.abs(ratio) <= 0.5)
    series = exact.phi_near_zero(jnp.where(small, ratio, 0))
    large = (1 - share) * (q - p) - p * ratio
    return jnp.where(impossible, 0, jnp.where(small, p * series, large)), impossible


def _log_mean(gap: Array, share: Array) -> Array:
    """Return log(share + (1 - share) * exp(gap)), with all digits where it is near 0."""
    growth = (1 - share) * jnp.expm1(jnp.minimum(gap, 20))
    near = (growth > -0.7) & (gap < 20)
    far = jnp.logaddexp(_log(share), _log(1 - share) + gap)
    return jnp.where(near, jnp.log1p(jnp.where(near, growth, 0)), far)


def _log(share: Array) -> Array:
    """Return the logarithm, -inf at 0 without an infinite derivative."""
    none = share == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, share)))
