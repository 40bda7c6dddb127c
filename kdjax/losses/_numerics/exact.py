"""Softmax and divergences that keep their digits: the mathematics behind the losses on logits.

Classes are on the last axis; -inf marks one that does not exist. Every function with a derivative
of its own has one of its own at second order too.

The textbook sum p * (log p - log q) loses its digits where student and teacher nearly agree: terms
of the size of the gap cancel to a result of the size of its square. Here the sum is
p * phi(log(q / p)) with phi(r) = exp(r) - 1 - r, which has no negative terms, and the logarithm of
the ratio comes from the gap between the logits, not from two rounded logarithms.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

Arrays = tuple[Array, ...]

# phi(r) / r^2 = 1/2! + r/3! + r^2/4! + ...: enough terms for float64 where |r| <= 1/2.
_PHI = [1 / math.factorial(k) for k in range(17, 1, -1)]


def phi_near_zero(r: Array) -> Array:
    """Return phi(r) = exp(r) - 1 - r by its series, for |r| up to 1/2."""
    value = jnp.full_like(r, _PHI[0])
    for coefficient in _PHI[1:]:
        value = value * r + coefficient
    return value * r * r


def _finite(x: Array) -> Array:
    """Replace -inf, which marks a class that does not exist, by 0."""
    return jnp.where(jnp.isneginf(x), 0, x)


def _center(x: Array) -> Array:
    """Subtract the largest logit; -inf stays, and a gap that is too wide for the type is nan."""
    top = jnp.max(x, axis=-1, keepdims=True)
    gap = x - _finite(top)
    return jnp.where(jnp.isneginf(gap) & ~jnp.isneginf(x), jnp.nan, gap)


def _is_top(x: Array) -> Array:
    """Mark the first of the largest logits."""
    classes = jnp.arange(x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
    return classes == jnp.argmax(x, axis=-1, keepdims=True)


@jax.custom_jvp
def log_softmax(x: Array, t: Array) -> Array:
    """Return log softmax(x / t) over the last axis, the top class by log1p over the others."""
    z = _center(x) / t
    others = jnp.sum(jnp.where(_is_top(x), 0, jnp.exp(z)), axis=-1, keepdims=True)
    return z - jnp.log1p(others)


@log_softmax.defjvp
def _log_softmax_jvp(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    (x, t), (dx, dt) = primals, tangents
    log_probs = log_softmax(x, t)
    dz = _scaled_tangent(x, t, dx, dt)
    mean = jnp.sum(jnp.exp(log_probs) * dz, axis=-1, keepdims=True)
    return log_probs, jnp.where(jnp.isneginf(x), 0, dz - mean)


def _scaled_tangent(x: Array, t: Array, dx: Array, dt: Array) -> Array:
    """Return the tangent of x / t up to a constant per row, 0 at classes that do not exist."""
    dz = dx / t - _finite(_center(x)) * (dt / (t * t))
    return jnp.where(jnp.isneginf(x), 0, dz)


@jax.custom_jvp
def nll(x: Array, chosen: Array) -> Array:
    """Return -log softmax(x) at the chosen class, [...]."""
    log_probs = log_softmax(x, at_one(x))
    return -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)


@nll.defjvp
def _nll_jvp(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """Sum over the other classes of q (dx - dx[label]): no 1 - q, which has no digits left."""
    (x, chosen), (dx, _) = primals, tangents
    probs = jnp.exp(log_softmax(x, at_one(x)))
    at_label = jnp.sum(jnp.where(chosen, dx, 0), axis=-1, keepdims=True)
    others = jnp.where(chosen | jnp.isneginf(x), 0, probs * (dx - at_label))
    return nll(x, chosen), jnp.sum(others, axis=-1)


def _log_ratio(x: Array, v: Array, t: Array) -> tuple[Array, Array, Array, Array]:
    """Compare q = softmax(x / t), the student, with p = softmax(v / t).

    Returns:
        log p and log q, [..., num_classes]; log(q / p), 0 where one of them has no such class; and
        [..., 1] whether the two are near, in which case log(q / p) is exact to its last digits.
    """
    log_p, log_q = log_softmax(v, t), log_softmax(x, t)
    both = ~(jnp.isneginf(x) | jnp.isneginf(v))
    student, teacher = jnp.where(both, x, 0), jnp.where(both, v, 0)
    # The gap as an unevaluated sum, gap + rest, of two numbers: nothing is rounded away.
    gap = student - teacher
    moved = gap - student
    rest = (student - (gap - moved)) - (teacher + moved)
    p = jnp.where(both, jnp.exp(log_p), 0)
    # log(q / p) is the gap up to a constant. Any center will do: the constant is computed for it.
    # A class with most of the mass keeps its digits as the center; otherwise the mean is closest.
    top = _is_top(v)
    dominant = jnp.max(p, axis=-1, keepdims=True) > 0.5
    center = jnp.sum(jnp.where(dominant, jnp.where(top, gap, 0), p * gap), axis=-1, keepdims=True)
    shift = jnp.sum(jnp.where(dominant & top, rest, 0), axis=-1, keepdims=True)
    g = jnp.where(both, ((gap - center) + (rest - shift)) / t, 0)
    # q / p = exp(g + constant), and q sums to 1 over the shared classes and the student's own, p
    # over the shared ones and those that the student has lost.
    grown = jnp.where(g > 1, jnp.exp(log_p + g) - p, p * jnp.expm1(jnp.minimum(g, 1)))
    grown = jnp.where(both, grown, 0)
    own = jnp.sum(jnp.where(jnp.isneginf(v), jnp.exp(log_q), 0), axis=-1, keepdims=True)
    lost = jnp.sum(jnp.where(jnp.isneginf(x), jnp.exp(log_p), 0), axis=-1, keepdims=True)
    near = jnp.sum(jnp.abs(grown), axis=-1, keepdims=True) + own + lost < 0.5
    excess = jnp.where(near, jnp.sum(grown, axis=-1, keepdims=True) - lost, 0)
    constant = jnp.log1p(-jnp.where(near, own, 0)) - jnp.log1p(excess)
    far = jnp.where(both, _finite(log_q) - _finite(log_p), 0)
    return log_p, log_q, jnp.where(both, jnp.where(near, g + constant, far), 0), near


@jax.custom_jvp
def tempered_kl(x: Array, v: Array, t: Array) -> Array:
    """Return KL(softmax(v / t) || softmax(x / t)) over the last axis, without the factor t^2."""
    log_p, log_q, ratio, near = _log_ratio(x, v, t)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    small = jnp.abs(ratio) <= 0.5
    series = phi_near_zero(jnp.where(small, ratio, 0))
    large = jnp.where(ratio > 1, jnp.exp(log_p + ratio) - p, p * jnp.expm1(jnp.minimum(ratio, 1)))
    terms = jnp.where(small, p * series, large - p * ratio)
    # Where the teacher has no class, p * phi(log(q / p)) is q.
    terms = jnp.where(near, jnp.where(jnp.isneginf(v), q, terms), -p * ratio)
    impossible = jnp.any(jnp.isneginf(x) & ~jnp.isneginf(v), axis=-1)
    return jnp.where(impossible, jnp.inf, jnp.sum(terms, axis=-1))


@tempered_kl.defjvp
def _tempered_kl_jvp(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """Sum (q - p) dz + sum p (log(p / q) - KL) dv, both over t; derivatives of it exist too."""
    (x, v, t), (dx, dv, dt) = primals, tangents
    value = tempered_kl(x, v, t)
    taught = ~jnp.all(jnp.isneginf(v), axis=-1, keepdims=True)
    by_student = jnp.where(taught, probability_gap(x, v, t), 0) * _scaled_tangent(x, t, dx, dt)
    log_p, log_q = log_softmax(v, t), log_softmax(x, t)
    gap = jnp.where(jnp.isneginf(x) | jnp.isneginf(v), 0, _finite(log_p) - _finite(log_q))
    finite_value = jnp.where(jnp.isposinf(value), 0, value)[..., None]
    by_teacher = jnp.exp(log_p) * (gap - finite_value) * _scaled_tangent(v, t, dv, dt)
    return value, jnp.sum(by_student + by_teacher, axis=-1)


@jax.custom_jvp
def probability_gap(x: Array, v: Array, t: Array) -> Array:
    """Return softmax(x / t) - softmax(v / t), exact to its last digits where they are close."""
    log_p, log_q, ratio, near = _log_ratio(x, v, t)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    close = near & (jnp.abs(ratio) <= 1) & ~jnp.isneginf(v) & ~jnp.isneginf(x)
    return jnp.where(close, p * jnp.expm1(jnp.where(close, ratio, 0)), q - p)


@probability_gap.defjvp
def _probability_gap_jvp(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    (x, v, t), (dx, dv, dt) = primals, tangents

    def moved(logits: Array, tangent: Array) -> Array:
        probs, dz = jnp.exp(log_softmax(logits, t)), _scaled_tangent(logits, t, tangent, dt)
        return probs * (dz - jnp.sum(probs * dz, axis=-1, keepdims=True))

    return probability_gap(x, v, t), moved(x, dx) - moved(v, dv)


def entropy(log_p: Array) -> Array:
    """Return the entropy over the last axis, with 0 log 0 = 0."""
    present = ~jnp.isneginf(log_p)
    log_p = jnp.where(present, log_p, 0)
    return -jnp.sum(jnp.where(present, jnp.exp(log_p) * log_p, 0), axis=-1)


def cross_entropy(x: Array, v: Array, t: Array) -> Array:
    """Return the cross-entropy of softmax(v / t) with softmax(x / t), without the factor t^2.

    As a sum of two, for the divergence's gradient: it keeps its digits where the two are close.
    """
    return tempered_kl(x, v, t) + entropy(log_softmax(v, t))


def but(x: Array, chosen: Array) -> Array:
    """Leave the chosen classes out."""
    return jnp.where(chosen, -jnp.inf, x)


def _target_and_rest(x: Array, t: Array, chosen: Array) -> tuple[Array, Array]:
    """Return the log-probabilities of the chosen class and of all others together, [...]."""
    log_probs = log_softmax(x, t)
    target = jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)
    rest = but(log_probs, chosen)
    none = jnp.all(jnp.isneginf(rest), axis=-1)
    total = jax.nn.logsumexp(jnp.where(none[..., None], 0, rest), axis=-1)
    return target, jnp.where(none, -jnp.inf, total)


def _excess(log_p: Array, log_q: Array, gap: Array) -> Array:
    """Return p * phi(log(q / p)) with gap = q - p, which is q where p is 0."""
    p = jnp.exp(log_p)
    close = jnp.abs(gap) <= 0.4 * p
    near = jnp.log1p(jnp.where(close, gap / jnp.where(p > 0, p, 1), 0))
    finite = ~(jnp.isneginf(log_p) | jnp.isneginf(log_q))
    far = jnp.where(finite, _finite(log_q) - _finite(log_p), 0)
    r = jnp.where(close, near, far)
    small = jnp.abs(r) <= 0.5
    series = phi_near_zero(jnp.where(small, r, 0))
    return jnp.where(small & (p > 0), p * series, gap - p * r)


@jax.custom_jvp
def target_kl(x: Array, v: Array, t: Array, chosen: Array) -> Array:
    """Return KL((p, 1 - p) || (q, 1 - q)), [...].

    p and q are the probabilities that v / t and x / t give the chosen class.
    """
    gap = jnp.sum(jnp.where(chosen, probability_gap(x, v, t), 0), axis=-1)
    (log_p, log_p_rest), (log_q, log_q_rest) = (_target_and_rest(z, t, chosen) for z in (v, x))
    value = _excess(log_p, log_q, gap) + _excess(log_p_rest, log_q_rest, -gap)
    impossible = jnp.isneginf(log_q) & ~jnp.isneginf(log_p)
    impossible |= jnp.isneginf(log_q_rest) & ~jnp.isneginf(log_p_rest)
    return jnp.where(impossible, jnp.inf, value)


@target_kl.defjvp
def _target_kl_jvp(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    """Return (q - p) du + p (1 - p) (logit p - logit q) dw, u the logit of q and w that of p."""
    (x, v, t, chosen), (dx, dv, dt, _) = primals, tangents
    taught = ~jnp.all(jnp.isneginf(v), axis=-1)
    gap = jnp.sum(jnp.where(chosen, probability_gap(x, v, t), 0), axis=-1)
    logs = [y for z in (v, x) for y in _target_and_rest(z, t, chosen)]
    log_p, log_p_rest, log_q, log_q_rest = (_finite(y) for y in logs)
    finite = ~jnp.isneginf(jnp.stack(logs)).any(0)
    logit_gap = jnp.where(finite, (log_p - log_p_rest) - (log_q - log_q_rest), 0)

    def moved(logits: Array, tangent: Array) -> Array:
        """Return the tangent of the logit: the chosen class's less the mean over the others."""
        dz = _scaled_tangent(logits, t, tangent, dt)
        others = jnp.exp(log_softmax(but(logits, chosen), t))
        return jnp.sum(jnp.where(chosen, dz, 0) - others * dz, axis=-1)

    by_student = jnp.where(taught, gap, 0) * moved(x, dx)
    by_teacher = jnp.where(finite, jnp.exp(log_p + log_p_rest), 0) * logit_gap * moved(v, dv)
    return target_kl(x, v, t, chosen), by_student + by_teacher


def at_one(x: Array) -> Array:
    """Return the temperature 1 of every example, [..., 1]."""
    return jnp.ones((*x.shape[:-1], 1), x.dtype)


def over(x: Array, t: Array) -> Array:
    """Divide logits by a temperature; -inf stays, and has no gradient."""
    absent = jnp.isneginf(x)
    return jnp.where(absent, -jnp.inf, jnp.where(absent, 0, x) / t)


def smoothed(chosen: Array, exists: Array, confidence: Array) -> Array:
    """Return logarithms of probabilities that give one class its confidence.

    Args:
        chosen: the class, [..., num_classes].
        exists: which classes there are; the others share what is left, or have none.
        confidence: the chosen class's probability.
    """
    others = exists & ~chosen
    num_others = jnp.maximum(jnp.sum(others, axis=-1, keepdims=True), 1)
    rest = jnp.log1p(-confidence) - jnp.log(num_others)
    return jnp.where(chosen, jnp.log(confidence), jnp.where(others, rest, -jnp.inf))
