"""Divergences from mixtures that keep their digits: the mathematics behind `_divergences`.

Classes are on the last axis; -inf marks one without mass. The textbook sum of p (log p - log m)
loses its digits where p and m nearly agree, as in `_exact`, and the logarithm of a mixture of
probabilities that underflow is nan. Here sums run over p * phi(log(m / p)), with
phi(r) = exp(r) - 1 - r, which have no negative terms, and log(m / p) comes from log q - log p.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _exact

Array = jax.Array


def as_pair(
    function: str, student: Any, teacher: Any, axis: int, where: Array | None
) -> tuple[Array, Array]:
    """Return student's and teacher's log-probabilities, checked, with the class axis at the end.

    Raises:
        TypeError: if one is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ, or `where` does not fit.
    """
    names = ("student_log_probs", "teacher_log_probs")
    pair = _checks.as_pair(function, names, student, teacher)
    first, second = (_checks.select_classes(function, x, where, axis) for x in pair)
    return first, second


def as_fraction(function: str, name: str, value: Any, x: Array) -> Array:
    """Return a share in [0, 1] as an array with a class axis of one, [..., 1].

    Args:
        function: the public function, for the message.
        name: its argument, likewise.
        value: a number, checked; or an array, scalar or one entry per example.
        x: an array with the class axis at the end.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is a number out of range, or has another shape.
    """
    _checks.check_number(function, name, value, low=0.0, high=1.0)
    array, batch = jnp.asarray(value, x.dtype), x.shape[:-1]
    if array.shape not in ((), batch):
        raise ValueError(
            f"{function}: {name} has shape {array.shape}, expected () or {batch}, "
            "one for each example"
        )
    return jnp.broadcast_to(array, batch)[..., None]


def skewed_kl(log_p: Array, log_q: Array, share: Array) -> Array:
    """KL(p || m) over the last axis with m = share * p + (1 - share) * q; KL(p || q) at share 0.

    What the two masses differ by belongs to the definition and is added, unless it is rounding.
    """
    terms, impossible = _terms(log_p, log_q, share)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    mass, other = jnp.sum(p, axis=-1), jnp.sum(q, axis=-1)
    rounding = jnp.abs(mass - other) <= 32 * jnp.finfo(mass.dtype).eps * jnp.maximum(mass, other)
    excess = mass - other
    excess = excess - jax.lax.stop_gradient(jnp.where(rounding, excess, 0))
    value = jnp.sum(terms, axis=-1) + (1 - jnp.squeeze(share, -1)) * excess
    return value + jnp.where(jnp.any(impossible, axis=-1), jnp.inf, 0)


def jensen_shannon(log_p: Array, log_q: Array, share: Array) -> Array:
    """share * KL(p || m) + (1 - share) * KL(q || m), m as above, for a share inside (0, 1).

    The masses cancel class by class, so that this is the definition whatever they are.
    """
    from_p, _ = _terms(log_p, log_q, share)
    from_q, _ = _terms(log_q, log_p, 1 - share)
    return jnp.sum(share * from_p + (1 - share) * from_q, axis=-1)


def weighted_kl(log_p: Array, log_q: Array, reverse_weight: Array) -> Array:
    """(1 - w) * KL(p || q) + w * KL(q || p) over the last axis, a part of weight 0 left out."""
    none = jnp.zeros((*log_p.shape[:-1], 1), log_p.dtype)
    weights = (1 - reverse_weight, reverse_weight)
    parts = (skewed_kl(log_p, log_q, none), skewed_kl(log_q, log_p, none))
    # An infinite part of weight zero would be nan.
    forward, reverse = (
        jnp.where(w == 0, 0, w * jnp.where(w == 0, 0, x))
        for w, x in zip(weights, parts, strict=True)
    )
    return forward + reverse


def probability_gap(log_p: Array, log_q: Array) -> Array:
    """|p - q| class by class, exact to its last digits where the two are close."""
    both, gap = _log_gap(log_p, log_q)
    larger = jnp.exp(jnp.where(both, jnp.maximum(log_p, log_q), 0))
    apart = jnp.exp(log_p) + jnp.exp(log_q)  # one of them is 0
    return jnp.where(both, -larger * jnp.expm1(-jnp.abs(gap)), apart)


def _log_gap(log_p: Array, log_q: Array) -> tuple[Array, Array]:
    """Where both have mass; and log q - log p there, 0 elsewhere."""
    both = ~(jnp.isneginf(log_p) | jnp.isneginf(log_q))
    return both, jnp.where(both, jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0), 0)


def _terms(log_p: Array, log_q: Array, share: Array) -> tuple[Array, Array]:
    """p * phi(log(m / p)) = m - p - p * log(m / p), m = share * p + (1 - share) * q.

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
    r = jnp.where(small, ratio, 0)
    series = jnp.polyval(jnp.asarray(_exact._PHI, r.dtype), r) * r * r
    large = (1 - share) * (q - p) - p * ratio
    return jnp.where(impossible, 0, jnp.where(small, p * series, large)), impossible


def _log_mean(gap: Array, share: Array) -> Array:
    """log(share + (1 - share) * exp(gap)), with all digits where it is near 0."""
    growth = (1 - share) * jnp.expm1(jnp.minimum(gap, 20))
    near = (growth > -0.7) & (gap < 20)
    far = jnp.logaddexp(_log(share), _log(1 - share) + gap)
    return jnp.where(near, jnp.log1p(jnp.where(near, growth, 0)), far)


def _log(share: Array) -> Array:
    """The logarithm, -inf at 0 without an infinite derivative."""
    none = share == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, share)))
