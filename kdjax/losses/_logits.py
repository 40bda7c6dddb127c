"""Losses on logits: the soft targets of Hinton, Vinyals & Dean (2015), exact in float32.

The textbook sum p * (log p - log q) loses its digits where student and teacher nearly agree: terms
of the size of the gap cancel to a result of the size of its square. Here the sum is
p * phi(log(q / p)) with phi(r) = exp(r) - 1 - r, which has no negative terms, and the logarithm of
the ratio comes from the gap between the logits, not from two rounded logarithms.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks

Array = jax.Array

# phi(r) / r^2 = 1/2! + r/3! + r^2/4! + ...: enough terms for float64 where |r| <= 1/2.
_PHI = [1 / math.factorial(k) for k in range(17, 1, -1)]


def tempered_log_softmax(
    logits: Array, temperature: Any, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Logarithms of softened class probabilities.

    log softmax(z / T)

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        temperature: a positive number, or an array: scalar or [...], one for each example.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [..., num_classes], float32 or wider; -inf at classes that do not exist.

    Raises:
        TypeError: if the logits are not of a floating type, or `where` is not boolean.
        ValueError: if the temperature is not positive and finite, or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import tempered_log_softmax
        >>> print(jnp.exp(tempered_log_softmax(jnp.array([2.0, 0.0]), 2.0)))
        [0.731 0.269]

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, equation 1.
    """
    name = "tempered_log_softmax"
    x = _checks.select_classes(name, _checks.as_logits(name, "logits", logits), where, axis)
    log_probs = _log_softmax(x, _checks.as_temperature(name, temperature, x))
    return jnp.moveaxis(log_probs, -1, axis)


def tempered_softmax(
    logits: Array, temperature: Any, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Softened class probabilities.

    softmax(z / T)

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        temperature: a positive number, or an array: scalar or [...], one for each example.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [..., num_classes], float32 or wider; 0 at classes that do not exist, and everywhere if
        none does.

    Raises:
        TypeError: if the logits are not of a floating type, or `where` is not boolean.
        ValueError: if the temperature is not positive and finite, or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import tempered_softmax
        >>> print(tempered_softmax(jnp.array([2.0, 0.0]), 4.0))
        [0.622 0.378]

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, equation 1.
    """
    name = "tempered_softmax"
    x = _checks.select_classes(name, _checks.as_logits(name, "logits", logits), where, axis)
    log_probs = _log_softmax(x, _checks.as_temperature(name, temperature, x))
    return jnp.moveaxis(jnp.exp(log_probs), -1, axis)


def kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Kullback-Leibler divergence of the student from the teacher, on log-probabilities as given.

    KL(teacher || student) = sum p (log p - log q), p the teacher's and q the student's

    Nothing is normalised again, and neither side is held constant. A class without mass in the
    teacher adds 0; one without mass in the student alone makes the value +inf.

    Args:
        student_log_probs: [..., num_classes], any floating type.
        teacher_log_probs: likewise, of the same shape.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(kl_divergence(student, teacher))
        0.368

    References:
        Kullback, Leibler, "On Information and Sufficiency", 1951, doi:10.1214/aoms/1177729694.
    """
    names = ("student_log_probs", "teacher_log_probs")
    pair = _checks.as_pair("kl_divergence", names, student_log_probs, teacher_log_probs)
    student, teacher = (_checks.select_classes("kl_divergence", x, where, axis) for x in pair)
    return _divergence(teacher, student)


def reverse_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Kullback-Leibler divergence of the teacher from the student, on log-probabilities as given.

    KL(student || teacher) = sum q (log q - log p), p the teacher's and q the student's

    Args:
        student_log_probs: [..., num_classes], any floating type.
        teacher_log_probs: likewise, of the same shape.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import reverse_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(reverse_kl_divergence(student, teacher))
        0.511

    References:
        Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", 2023,
        arXiv:2306.08543, on its use in distillation.
    """
    name = "reverse_kl_divergence"
    names = ("student_log_probs", "teacher_log_probs")
    pair = _checks.as_pair(name, names, student_log_probs, teacher_log_probs)
    student, teacher = (_checks.select_classes(name, x, where, axis) for x in pair)
    return _divergence(student, teacher)


def soft_target_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: Any = 4.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Follow the teacher's softened probabilities: distillation without labels.

    T^2 * KL(softmax(v / T) || softmax(z / T)), z the student's logits and v the teacher's

    The factor T^2 keeps the size of the gradient, which shrinks as 1 / T^2, when T changes. As T
    grows the gradient tends to (z - v) / num_classes, for logits of mean zero.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example. +inf where the student excludes a
        class that the teacher does not; the gradient is finite there too.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import soft_target_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(soft_target_loss(student, teacher, temperature=4.0))
        [1.962]

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, sections 2 and 2.1.
    """
    return _soft(
        "soft_target_loss", student_logits, teacher_logits, temperature, axis=axis, where=where
    )


def cross_entropy(
    logits: Array, labels: Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Cross-entropy of the labels with a network's probabilities at temperature 1.

    -log q[label], or - sum y log q for class probabilities y

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        labels: integer classes [...], or class probabilities [..., num_classes], constant.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider; nan where a traced integer label is no class.

    Raises:
        TypeError: if the logits are not of a floating type, or the labels neither that nor integer.
        ValueError: if the shapes do not fit, or an integer label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import cross_entropy
        >>> print(cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0])))
        [0.127]

    References:
        Good, "Rational Decisions", 1952, doi:10.1111/j.2517-6161.1952.tb00104.x.
    """
    return _hard("cross_entropy", "logits", logits, labels, axis=axis, where=where)


def kd_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature: Any = 4.0,
    soft_weight: Any = 0.9,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Knowledge distillation: the teacher's soft targets and a little of the labels.

    w * T^2 * KL(softmax(v / T) || softmax(z / T)) + (1 - w) * CE(labels, softmax(z))

    with z the student's logits, v the teacher's and w the soft weight.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        labels: integer classes [...], or class probabilities [..., num_classes].
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        soft_weight: w in [0, 1], or an array likewise. At a number of 0 or 1 the other part is
            not computed.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example; the caller masks and averages.

    Raises:
        TypeError: if logits are not of a floating type, or labels neither that nor integer.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, the
            weight not in [0, 1], or an integer label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import kd_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(kd_loss(student, teacher, jnp.array([0])))
        [2.007]

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 2.
    """
    _checks.check_number("kd_loss", "soft_weight", soft_weight, low=0.0, high=1.0)
    soft = _soft("kd_loss", student_logits, teacher_logits, temperature, axis=axis, where=where)
    hard = _hard("kd_loss", "student_logits", student_logits, labels, axis=axis, where=where)
    if isinstance(soft_weight, int | float) and soft_weight in (0, 1):
        # An infinite part of weight zero would be nan.
        return soft if soft_weight else hard.astype(soft.dtype)
    weight = jnp.asarray(soft_weight, soft.dtype)
    if weight.ndim:
        _checks.check_shape("kd_loss", "soft_weight", weight.shape, soft.shape, "the examples")
    return weight * soft + (1 - weight) * hard


def _soft(
    name: str, student: Any, teacher: Any, temperature: Any, *, axis: int, where: Array | None
) -> Array:
    pair = _checks.as_pair(name, ("student_logits", "teacher_logits"), student, teacher)
    student, teacher = (_checks.select_classes(name, x, where, axis) for x in pair)
    t = _checks.as_temperature(name, temperature, student)
    return _tempered_kl(student, jax.lax.stop_gradient(teacher), t) * jnp.squeeze(t * t, -1)


def _hard(
    function: str, name: str, logits: Any, labels: Any, *, axis: int, where: Array | None
) -> Array:
    x = _checks.as_logits(function, name, logits)
    shape, labels = x.shape, jnp.asarray(labels)
    x = _checks.select_classes(function, x, where, axis)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        _checks.check_shape(function, "labels", labels.shape, x.shape[:-1], "the examples")
        _check_range(function, labels, x.shape[-1])
        chosen = jax.nn.one_hot(labels, x.shape[-1], dtype=bool)
        unknown = ~jnp.any(chosen, axis=-1)
        return jnp.where(unknown, jnp.nan, _nll(x, chosen))
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"{function}: labels has dtype {labels.dtype}, expected integer or floating"
        )
    _checks.check_shape(function, "labels", labels.shape, shape, name)
    probs = jax.lax.stop_gradient(jnp.moveaxis(labels, axis, -1).astype(x.dtype))
    log_probs = _log_softmax(x, jnp.ones((*x.shape[:-1], 1), x.dtype))
    return -jnp.sum(jnp.where(probs == 0, 0, probs * jnp.where(probs == 0, 0, log_probs)), axis=-1)


def _check_range(function: str, labels: Array, num_classes: int) -> None:
    """Raise on a label that is no class, where the values are known before the program runs."""
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{function}: labels has {low if low < 0 else high}, expected 0 to {num_classes - 1} "
            f"for {num_classes} classes"
        )


def _divergence(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) over the last axis, the definition, with 0 log 0 = 0."""
    present = log_p > -jnp.inf
    present |= jnp.isnan(log_p)
    impossible = present & jnp.isneginf(log_q)
    counted = present & ~impossible
    gap = jnp.where(counted, log_p, 0) - jnp.where(counted, log_q, 0)
    terms = jnp.where(counted, jnp.exp(jnp.where(counted, log_p, 0)) * gap, 0)
    # Added, not selected: the other classes keep their gradient.
    return jnp.sum(terms, axis=-1) + jnp.where(jnp.any(impossible, axis=-1), jnp.inf, 0)


def _finite(x: Array) -> Array:
    """Put 0 in place of -inf, which marks a class that does not exist."""
    return jnp.where(jnp.isneginf(x), 0, x)


def _center(x: Array) -> Array:
    """Subtract the largest logit; -inf stays."""
    top = jnp.max(x, axis=-1, keepdims=True)
    return x - _finite(top)


def _is_top(x: Array) -> Array:
    """Mark the first of the largest logits."""
    classes = jnp.arange(x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
    return classes == jnp.argmax(x, axis=-1, keepdims=True)


@jax.custom_jvp
def _log_softmax(x: Array, t: Array) -> Array:
    """log softmax(x / t) over the last axis, the top class by log1p over the others."""
    z = _center(x) / t
    others = jnp.sum(jnp.where(_is_top(x), 0, jnp.exp(z)), axis=-1, keepdims=True)
    return z - jnp.log1p(others)


@_log_softmax.defjvp
def _log_softmax_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, t), (dx, dt) = primals, tangents
    log_probs = _log_softmax(x, t)
    dz = _scaled_tangent(x, t, dx, dt)
    mean = jnp.sum(jnp.exp(log_probs) * dz, axis=-1, keepdims=True)
    return log_probs, jnp.where(jnp.isneginf(x), 0, dz - mean)


def _scaled_tangent(x: Array, t: Array, dx: Array, dt: Array) -> Array:
    """Tangent of x / t up to a constant per row, 0 at classes that do not exist."""
    dz = dx / t - _finite(_center(x)) * (dt / (t * t))
    return jnp.where(jnp.isneginf(x), 0, dz)


@jax.custom_jvp
def _nll(x: Array, chosen: Array) -> Array:
    """-log softmax(x) at the chosen class, [...]."""
    log_probs = _log_softmax(x, jnp.ones((*x.shape[:-1], 1), x.dtype))
    return -jnp.sum(jnp.where(chosen, log_probs, 0), axis=-1)


@_nll.defjvp
def _nll_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Sum over the other classes of q (dx - dx[label]): no 1 - q, which has no digits left."""
    (x, chosen), (dx, _) = primals, tangents
    probs = jnp.exp(_log_softmax(x, jnp.ones((*x.shape[:-1], 1), x.dtype)))
    at_label = jnp.sum(jnp.where(chosen, dx, 0), axis=-1, keepdims=True)
    others = jnp.where(chosen | jnp.isneginf(x), 0, probs * (dx - at_label))
    return _nll(x, chosen), jnp.sum(others, axis=-1)


def _log_ratio(x: Array, v: Array, t: Array) -> tuple[Array, Array, Array, Array]:
    """Compare q = softmax(x / t), the student, with p = softmax(v / t).

    Returns:
        log p and log q, [..., num_classes]; log(q / p), 0 where one of them has no such class; and
        [..., 1] whether the two are near, in which case log(q / p) is exact to its last digits.
    """
    log_p, log_q = _log_softmax(v, t), _log_softmax(x, t)
    both = ~(jnp.isneginf(x) | jnp.isneginf(v))
    student, teacher = jnp.where(both, x, 0), jnp.where(both, v, 0)
    # The gap as an unevaluated sum, gap + rest, of two numbers: nothing is rounded away.
    gap = student - teacher
    moved = gap - student
    rest = (student - (gap - moved)) - (teacher + moved)
    p = jnp.where(both, jnp.exp(log_p), 0)
    # log(q / p) is the gap up to a constant. Any centre will do: the constant is computed for it.
    # A class with most of the mass keeps its digits as the centre; otherwise the mean is closest.
    top = _is_top(v)
    dominant = jnp.max(p, axis=-1, keepdims=True) > 0.5
    center = jnp.sum(jnp.where(dominant, jnp.where(top, gap, 0), p * gap), axis=-1, keepdims=True)
    shift = jnp.sum(jnp.where(dominant & top, rest, 0), axis=-1, keepdims=True)
    g = jnp.where(both, ((gap - center) + (rest - shift)) / t, 0)
    # q / p = exp(g + constant), and q sums to 1 over the shared classes and the student's own.
    grown = jnp.where(g > 1, jnp.exp(log_p + g) - p, p * jnp.expm1(jnp.minimum(g, 1)))
    grown = jnp.where(both, grown, 0)
    own = jnp.sum(jnp.where(jnp.isneginf(v), jnp.exp(log_q), 0), axis=-1, keepdims=True)
    near = jnp.sum(jnp.abs(grown), axis=-1, keepdims=True) + own < 0.5
    excess = jnp.where(near, jnp.sum(grown, axis=-1, keepdims=True), 0)
    constant = jnp.log1p(-jnp.where(near, own, 0)) - jnp.log1p(excess)
    far = jnp.where(both, _finite(log_q) - _finite(log_p), 0)
    return log_p, log_q, jnp.where(both, jnp.where(near, g + constant, far), 0), near


@jax.custom_jvp
def _tempered_kl(x: Array, v: Array, t: Array) -> Array:
    """KL(softmax(v / t) || softmax(x / t)) over the last axis, without the factor t^2."""
    log_p, log_q, ratio, near = _log_ratio(x, v, t)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    small = jnp.abs(ratio) <= 0.5
    r = jnp.where(small, ratio, 0)
    series = jnp.polyval(jnp.asarray(_PHI, r.dtype), r) * r * r
    large = jnp.where(ratio > 1, jnp.exp(log_p + ratio) - p, p * jnp.expm1(jnp.minimum(ratio, 1)))
    terms = jnp.where(small, p * series, large - p * ratio)
    # Where the teacher has no class, p * phi(log(q / p)) is q.
    terms = jnp.where(near, jnp.where(jnp.isneginf(v), q, terms), -p * ratio)
    impossible = jnp.any(jnp.isneginf(x) & ~jnp.isneginf(v), axis=-1)
    return jnp.where(impossible, jnp.inf, jnp.sum(terms, axis=-1))


@_tempered_kl.defjvp
def _tempered_kl_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Sum (q - p) dz + sum p (log(p / q) - KL) dv, both over t; derivatives of it exist too."""
    (x, v, t), (dx, dv, dt) = primals, tangents
    value = _tempered_kl(x, v, t)
    taught = ~jnp.all(jnp.isneginf(v), axis=-1, keepdims=True)
    by_student = jnp.where(taught, _probability_gap(x, v, t), 0) * _scaled_tangent(x, t, dx, dt)
    log_p, log_q = _log_softmax(v, t), _log_softmax(x, t)
    gap = jnp.where(jnp.isneginf(x) | jnp.isneginf(v), 0, _finite(log_p) - _finite(log_q))
    finite_value = jnp.where(jnp.isposinf(value), 0, value)[..., None]
    by_teacher = jnp.exp(log_p) * (gap - finite_value) * _scaled_tangent(v, t, dv, dt)
    return value, jnp.sum(by_student + by_teacher, axis=-1)


@jax.custom_jvp
def _probability_gap(x: Array, v: Array, t: Array) -> Array:
    """softmax(x / t) - softmax(v / t), exact to its last digits where they are close."""
    log_p, log_q, ratio, near = _log_ratio(x, v, t)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    close = near & (jnp.abs(ratio) <= 1) & ~jnp.isneginf(v) & ~jnp.isneginf(x)
    return jnp.where(close, p * jnp.expm1(jnp.where(close, ratio, 0)), q - p)


@_probability_gap.defjvp
def _probability_gap_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, v, t), (dx, dv, dt) = primals, tangents

    def moved(logits: Array, tangent: Array) -> Array:
        probs, dz = jnp.exp(_log_softmax(logits, t)), _scaled_tangent(logits, t, tangent, dt)
        return probs * (dz - jnp.sum(probs * dz, axis=-1, keepdims=True))

    return _probability_gap(x, v, t), moved(x, dx) - moved(v, dv)
