"""Softmax and divergences that keep their digits: the mathematics behind the losses on logits.

Classes are on the last axis; -inf marks one that does not exist. Every function with a derivative
of its own has one of its own at second order too.

The textbook sum p * (log p - log q) loses its digits where student and teacher nearly agree: terms
of the size of the gap cancel to a result of the size of its square. Here the sum is
p * phi(log(q / p)) with phi(r) = exp(r) - 1 - r, which has no negative terms, and the logarithm of
the ratio comes from the gap between the logits, not from two rounded logarithms.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array

Arrays = tuple[Array, ...]
Pair = tuple[Array, Array]
Fn = TypeVar("Fn", bound=Callable[..., Any])

# phi(r) / r^2 = 1/2! + r/3! + r^2/4! + ...: enough terms for float64 where |r| <= 1/2.
_PHI = [1 / math.factorial(k) for k in range(17, 1, -1)]


def _once(fn: Fn) -> Fn:
    """Trace a long function once for a shape, however many losses and programs call it.

    Called by itself it is one program. In a compiled loss it is what it was, to the bit.
    """
    return cast(Fn, jax.jit(fn))


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


def _exponentials(x: Array, t: Array) -> tuple[Array, Array, Array]:
    """Return x / t less its maximum, exp of that, and the sum of all exponentials but one of 1.

    Without that 1, the maximum's own, the sum has digits where the others are small. What is 0
    less its maximum more than once is counted: the difference of the two sums is a whole number.
    """
    z = _center(x) / t
    e = jnp.exp(z)
    below = _total(jnp.where(z == 0, 0, e))
    ties = jnp.maximum(jnp.round(_total(e) - below), 1) - 1
    return z, e, below + ties


@jax.custom_jvp
@_once
def log_softmax(x: Array, t: Array) -> Array:
    """Return log softmax(x / t) over the last axis, the top class by log1p over the others."""
    z, _, others = _exponentials(x, t)
    return z - jnp.log1p(others)


@log_softmax.defjvp
@_once
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


def nll(x: Array, chosen: Array) -> Array:
    """Return -log softmax(x) at the chosen class, [...]."""
    return _nll_and_gradient(x, chosen)[0]


@jax.custom_jvp
@_once
def _nll_and_gradient(x: Array, chosen: Array) -> tuple[Array, Array]:
    """Return -log q at the chosen class, [...], and q less 1 there: not as 1 - q, without digits.

    Where the chosen class is the maximum, the sum over the others is known; elsewhere that sum has
    the maximum's 1.
    """
    z, _, others = _exponentials(x, at_one(x))
    label = _total(jnp.where(chosen, z, 0))
    rest = jnp.where(label == 0, others, 1 + others - jnp.exp(label))
    gradient = jnp.where(chosen, -rest, jnp.exp(_center(_again(x)))) / (1 + others)
    return jnp.squeeze(jnp.log1p(others) - label, -1), gradient


@_nll_and_gradient.defjvp
def _nll_and_gradient_jvp(primals: Arrays, tangents: Arrays) -> tuple[Pair, Pair]:
    (x, chosen), (dx, _) = primals, tangents
    value, gradient = _nll_and_gradient(x, chosen)
    probs, dz = jnp.exp(log_softmax(x, at_one(x))), jnp.where(jnp.isneginf(x), 0, dx)
    return (value, gradient), (jnp.sum(gradient * dz, axis=-1), probs * (dz - _total(probs * dz)))


def _again(x: Array) -> Array:
    """Return logits as if they were others, so that what is made of them is not kept, but redone.

    An exponential takes less time than its array takes room.
    """
    redone: Array = jax.lax.optimization_barrier(x)
    return redone


def _difference(x: Array, y: Array) -> tuple[Array, Array]:
    """Return x - y as an unevaluated sum of two numbers: nothing is rounded away."""
    gap = x - y
    moved = gap - x
    return gap, (x - (gap - moved)) - (y + moved)


def _phi(r: Array) -> Array:
    """Return phi(r) for |r| up to 2: the series at r / 4, and phi(2 s) = 2 phi(s) + (s + phi(s))^2.

    All parts are positive, so that nothing cancels.
    """
    s = r / 4
    terms = _PHI if r.dtype.itemsize > 4 else _PHI[-8:]
    value = jnp.full_like(s, terms[0])
    for coefficient in terms[1:]:
        value = value * s + coefficient
    value = value * s * s
    value = 2 * value + jnp.square(s + value)
    return 2 * value + jnp.square(2 * s + value)


@jax.custom_jvp
@_once
def kl_and_gap(x: Array, v: Array, t: Array) -> tuple[Array, Array]:
    """Compare q = softmax(x / t), the student, with p = softmax(v / t).

    Returns:
        KL(p || q), [...], without the factor t^2; and q - p, [..., num_classes]. Both are exact to
        their last digits where the two nearly agree.
    """
    (_, ex, others_x), (zv, ev, others_v) = _exponentials(x, t), _exponentials(v, t)
    q, p = ex / (1 + others_x), ev / (1 + others_v)
    lacks_x, lacks_v = jnp.isneginf(x), jnp.isneginf(v)
    both = ~(lacks_x | lacks_v)
    gap, rest = (jnp.where(both, part, 0) for part in _difference(x, v))
    # log(q / p) is the gap up to a constant. Any center will do: the constant is computed for it.
    # A class with most of the mass keeps its digits as the center; otherwise the mean is closest.
    max_x, max_v = (jnp.max(y, axis=-1, keepdims=True) for y in (x, v))
    top_x, top_v = _finite(max_x), _finite(max_v)
    dominant = others_v < 1
    parts = jnp.where(dominant, jnp.where(zv == 0, x, 0), p * gap)
    middle = _total(jnp.where(both, parts, 0))
    center, shift = _difference(middle, jnp.where(dominant, top_v, 0))
    g = jnp.where(both, ((gap - center) + (rest - shift)) / t, 0)
    # log q - log p = g - lift + log(1 + others_v) - log(1 + others_x), and p * exp(g) is a multiple
    # of the student's exponential.
    apart, left = _difference(top_x, top_v)
    lift = ((apart - center) + (left - shift)) / t
    scale = jnp.exp(jnp.minimum(lift, 80)) / (1 + others_v)
    # Of p * expm1(g) = p * phi(g) + p * g the parts are summed alone where g is small, and the
    # whole where it is large, so that neither sum loses what the other needs.
    small = jnp.abs(g) <= 2
    phi = _phi(jnp.where(small, g, 0))
    curved = _total(jnp.where(both, jnp.where(small, p * phi, ex * scale - p), 0))
    linear, far = (_total(jnp.where(at, p * g, 0)) for at in (small, ~small))
    grown = curved + linear
    # q sums to 1 over the shared classes and the student's own, p over the shared ones alone: of a
    # class that only the teacher has, the divergence is infinite.
    alone = jnp.where(lacks_x & ~lacks_v, jnp.inf, 0)
    own = _total(jnp.where(lacks_v, q, alone))
    near = jnp.abs(grown) + own < 0.5
    mass, grown = jnp.where(near, own, 0), jnp.where(near, grown, 0)
    by_series = jnp.maximum((curved - far) - _phi(jnp.log1p(grown)), 0) - jnp.log1p(-mass)
    by_logs = lift + (jnp.log1p(others_x) - jnp.log1p(others_v)) - (linear + far)
    value = jnp.where(near, by_series, jnp.where(jnp.isneginf(max_v), 0, by_logs))
    value = jnp.where(jnp.isposinf(own), jnp.inf, value)
    closely = p * ((1 - mass) * (g + phi) - (mass + grown)) / (1 + grown)
    return jnp.squeeze(value, -1), jnp.where(near & small & both, closely, q - p)


@kl_and_gap.defjvp
@_once
def _kl_and_gap_jvp(primals: Arrays, tangents: Arrays) -> tuple[Pair, Pair]:
    """Sum (q - p) dz + sum p (log(p / q) - KL) dv, both over t; derivatives of it exist too."""
    (x, v, t), (dx, dv, dt) = primals, tangents
    value, gap = kl_and_gap(x, v, t)
    taught = ~jnp.isneginf(jnp.max(v, axis=-1, keepdims=True))
    by_student = jnp.where(taught, gap, 0) * _scaled_tangent(x, t, dx, dt)
    log_p, log_q = log_softmax(v, t), log_softmax(x, t)
    ratio = jnp.where(jnp.isneginf(x) | jnp.isneginf(v), 0, _finite(log_p) - _finite(log_q))
    finite_value = jnp.where(jnp.isposinf(value), 0, value)[..., None]
    by_teacher = jnp.exp(log_p) * (ratio - finite_value) * _scaled_tangent(v, t, dv, dt)

    def moved(log_probs: Array, logits: Array, tangent: Array) -> Array:
        probs, dz = jnp.exp(log_probs), _scaled_tangent(logits, t, tangent, dt)
        return probs * (dz - _total(probs * dz))

    by_gap = moved(log_q, x, dx) - moved(log_p, v, dv)
    return (value, gap), (jnp.sum(by_student + by_teacher, axis=-1), by_gap)


def tempered_kl(x: Array, v: Array, t: Array) -> Array:
    """Return KL(softmax(v / t) || softmax(x / t)) over the last axis, without the factor t^2."""
    return kl_and_gap(x, v, t)[0]


def top_kl(x: Array, v: Array, indices: Array, t: Array) -> Array:
    """Return KL(p || q), [...], where p = softmax(v / t) has classes [..., k] out of q's.

    KL(p || q) = KL(p || q given those classes) - log(the mass that q has on them): the first part
    keeps its digits, and no array is as long as q but q.
    """
    given = at(x, indices)
    taught = ~jnp.isneginf(jnp.max(v, axis=-1, keepdims=True))
    known = jnp.where(jnp.isneginf(v), -jnp.inf, given)
    apart = jnp.isneginf(jnp.max(known, axis=-1, keepdims=True))
    # Of what is left out the gradient is 0, not 0 times infinity.
    top = jax.lax.stop_gradient(_finite(jnp.max(x, axis=-1, keepdims=True)))
    known, every = (jnp.where(apart, 0, y - top) for y in (known, x))
    of_every, of_known = (jax.nn.logsumexp(over(y, t), axis=-1) for y in (every, known))
    lost = of_every - of_known
    lost += jax.lax.stop_gradient(jnp.maximum(-lost, 0))  # a rounded 0, its gradient left
    value = tempered_kl(known, jnp.where(apart, 0, v), t) + lost
    value = jnp.where(jnp.squeeze(apart, -1), jnp.inf, value)
    return jnp.where(jnp.squeeze(taught, -1), value, 0)


def at(x: Array, indices: Array) -> Array:
    """Return the entries [..., k] of x [..., n] at indices of its last axis."""
    spec = jax.typeof(x).sharding.spec
    if not spec or spec[-1] is None:
        return jnp.take_along_axis(x, indices, axis=-1)
    # Split over explicit axes of a mesh: each device looks for them in its part.
    shape = (*indices.shape, x.shape[-1])
    chosen = indices[..., None] == jax.lax.broadcasted_iota(indices.dtype, shape, x.ndim)
    return jnp.sum(jnp.where(chosen, x[..., None, :], 0), axis=-1)


def probability_gap(x: Array, v: Array, t: Array) -> Array:
    """Return softmax(x / t) - softmax(v / t), exact to its last digits where they are close."""
    return kl_and_gap(x, v, t)[1]


def _total(x: Array) -> Array:
    return jnp.sum(x, axis=-1, keepdims=True)


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
@_once
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
