"""Losses for classifiers: soft targets, labels, and both as Hinton, Vinyals and Dean combine them.

The temperature and the z-scores that soft targets are made with are here too.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._inputs import TopK
from kdjax.losses._numerics import exact, norms


def tempered_log_softmax(
    logits: Array, temperature: float | Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Return the logarithms of softened class probabilities.

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
    x = _inputs.as_classes(name, "logits", logits, axis, where)
    log_probs = exact.log_softmax(x, _inputs.as_temperature(name, temperature, x))
    return jnp.moveaxis(log_probs, -1, axis)


def tempered_softmax(
    logits: Array, temperature: float | Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Return softened class probabilities.

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
    x = _inputs.as_classes(name, "logits", logits, axis, where)
    log_probs = exact.log_softmax(x, _inputs.as_temperature(name, temperature, x))
    return jnp.moveaxis(jnp.exp(log_probs), -1, axis)


def standardize_logits(
    logits: Array, *, axis: int = -1, where: Array | None = None, eps: float | Array = 1e-7
) -> Array:
    """Return the z-scores of logits, so that a student need not match a shift and a scale.

    (z - mean(z)) / (eps + std(z)), mean and unbiased standard deviation over the classes

    It goes before any loss on logits: the student's and the teacher's are standardized alike, and
    the loss's temperature is then the paper's base temperature. Where all of an example's logits
    are equal there is no scale: the scores are 0, with gradient 0.

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        eps: added to the standard deviation, a number that is not negative.

    Returns:
        [..., num_classes], float32 or wider; -inf at classes that do not exist.

    Raises:
        TypeError: if the logits are not of a floating type, or `where` is not boolean.
        ValueError: if a shape does not fit, or eps is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import standardize_logits
        >>> print(standardize_logits(jnp.array([5.0, 5.0, 8.0]))[-1])
        1.155

    References:
        Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", 2024,
        arXiv:2403.01427, algorithm 1.
    """
    name = "standardize_logits"
    x = _inputs.as_classes(name, "logits", logits, axis, where)
    eps = _numbers.as_number(name, "eps", eps, x.dtype, _numbers.NOT_NEGATIVE)
    exists = ~jnp.isneginf(x)
    deviations = norms.deviations(x, exists)
    degrees = jnp.sum(exists, axis=-1, keepdims=True, dtype=x.dtype) - 1
    unit = norms.unit_of(deviations)
    squares = jnp.sum(jnp.square(deviations / unit), axis=-1, keepdims=True)
    scale = eps + unit * norms.safe_sqrt(squares / jnp.maximum(degrees, 1))
    scores = deviations / jnp.where(scale == 0, 1, scale)
    return jnp.moveaxis(jnp.where(exists, scores, -jnp.inf), -1, axis)


def soft_target_loss(
    student_logits: Array,
    teacher_logits: Array | TopK,
    *,
    temperature: float | Array = 4.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Follow the teacher's softened probabilities: distillation without labels.

    T^2 * KL(softmax(v / T) || softmax(z / T)), z the student's logits and v the teacher's

    The factor T^2 keeps the size of the gradient, which shrinks as 1 / T^2, when T changes. As T
    grows the gradient tends to (z - v) / num_classes, for logits of mean zero.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero. Or the largest
            alone, a `kdjax.heads.TopK`: the others have no mass, and take no room.
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
    name = "soft_target_loss"
    pair = _read(name, student_logits, teacher_logits, axis, where)
    return _soft(name, *pair, temperature)


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float | Array = 0.0,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the cross-entropy of the labels with a network's probabilities at temperature 1.

    -log q[label], or - sum y log q for class probabilities y

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        labels: integer classes [...], or class probabilities [..., num_classes], which sum to 1;
            constant.
        label_smoothing: e in [0, 1]: (1 - e) y + e / classes takes the place of y, with the classes
            that are there (section 7 of Szegedy et al., 2015, arXiv:1512.00567).
        ignore_label: the integer label of examples that do not count, such as -100 or 255: their
            value is 0. A mean divides by the number of the others.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider; nan where a traced integer label is no class.

    Raises:
        TypeError: if the logits are not of a floating type, or the labels neither that nor integer.
        ValueError: if the shapes do not fit, there is one class alone, labels that are not traced
            are no classes, or no probabilities, or the smoothing is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import cross_entropy
        >>> print(cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([0])))
        [0.127]

    References:
        Good, "Rational Decisions", 1952, doi:10.1111/j.2517-6161.1952.tb00104.x.
    """
    name = "cross_entropy"
    x = _inputs.as_classes(name, "logits", logits, axis, where)
    chosen = _chosen(name, labels, x, ignore_label)
    x = x if chosen is None else chosen.counting(x)
    values = _hard(name, x, labels, axis, chosen)
    e = _numbers.as_number(name, "label_smoothing", label_smoothing, x.dtype, _numbers.SHARE)
    if _numbers.known(label_smoothing) is None or np.any(label_smoothing):
        # Of a label whose class is not there, what weighs nothing is infinite.
        values = jnp.where(e == 1, 0, (1 - e) * values) + e * _uniform(x)
    return values if chosen is None else chosen.of(values)


def kd_loss(
    student_logits: Array,
    teacher_logits: Array | TopK,
    labels: Array,
    *,
    temperature: float | Array = 4.0,
    soft_weight: float | Array = 0.9,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Distill knowledge: follow the teacher's soft targets and, a little, the labels.

    w * T^2 * KL(softmax(v / T) || softmax(z / T)) + (1 - w) * CE(labels, softmax(z))

    with z the student's logits, v the teacher's and w the soft weight.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero. Or the largest
            alone, a `kdjax.heads.TopK`: the others have no mass, and take no room.
        labels: integer classes [...], or class probabilities [..., num_classes], which sum to 1.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        soft_weight: w in [0, 1], or an array: scalar or [...]. At a number of 0 or 1 the other
            part is not computed.
        ignore_label: the integer label of examples that do not count, such as -100 or 255: their
            value is 0, the soft part's too. A mean divides by the number of the others.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example; the caller masks and averages.

    Raises:
        TypeError: if logits are not of a floating type, or labels neither that nor integer.
        ValueError: if the shapes do not fit, there is one class alone, the temperature is not
            positive and finite, the weight not in [0, 1], or labels that are not traced are no
            classes, or no probabilities.

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
    name = "kd_loss"
    student, teacher = _read(name, student_logits, teacher_logits, axis, where)
    chosen = _chosen(name, labels, student, ignore_label)
    if chosen is not None:
        student, teacher = chosen.counting(student), _counting(chosen, teacher)
    soft = _soft(name, student, teacher, temperature)
    hard = _hard(name, student, labels, axis, chosen)
    weight = _numbers.as_number(
        name, "soft_weight", soft_weight, soft.dtype, _numbers.SHARE, per=soft.shape
    )
    if isinstance(weight, int | float) and weight in (0, 1):
        # An infinite part of weight zero would be nan.
        values = soft if weight else hard
    else:
        values = weight * soft + (1 - weight) * hard
    return values if chosen is None else chosen.of(values)


def _read(
    function: str, student: Array, teacher: Array | TopK, axis: int, where: Array | None
) -> tuple[Array, Array | TopK]:
    """Return the logits of both networks, classes last, as `where` selects."""
    if isinstance(teacher, TopK):
        return _inputs.as_top(function, student, teacher, axis, where)
    return _inputs.as_logits(function, student, teacher, axis, where)


def _soft(
    function: str, student: Array, teacher: Array | TopK, temperature: float | Array
) -> Array:
    """Return T^2 times the divergence from the teacher."""
    t = _inputs.as_temperature(function, temperature, student)
    if isinstance(teacher, TopK):
        divergence = exact.top_kl(student, *teacher, t)
    else:
        divergence = exact.tempered_kl(student, teacher, t)
    return divergence * jnp.squeeze(t * t, -1)


def _uniform(x: Array) -> Array:
    """Return the cross-entropy with equal probabilities of all classes that are there."""
    log_probs, there = exact.log_softmax(x, exact.at_one(x)), ~jnp.isneginf(x)
    count = jnp.maximum(jnp.sum(there, axis=-1), 1).astype(x.dtype)
    return -jnp.sum(jnp.where(there, log_probs, 0), axis=-1) / count


def _chosen(
    function: str, labels: Array, x: Array, ignore_label: int | None
) -> _inputs.Labels | None:
    """Return which classes integer labels are, None for class probabilities."""
    if not _inputs.are_probs(labels):
        return _inputs.as_chosen(function, labels, x, ignore_label)
    if ignore_label is not None:
        raise TypeError(f"{function}: ignore_label is {ignore_label}, but labels are floating")
    return None


def _counting(chosen: _inputs.Labels, teacher: Array | TopK) -> Array | TopK:
    """Return a teacher's logits, 0 where the label is to be ignored."""
    if isinstance(teacher, TopK):
        return teacher._replace(logits=chosen.counting(teacher.logits))
    return chosen.counting(teacher)


def _hard(
    function: str, x: Array, labels: Array, axis: int, chosen: _inputs.Labels | None
) -> Array:
    """Return the cross-entropy with labels of either kind."""
    if chosen is not None:
        return exact.nll(x, chosen.chosen)
    probs = _inputs.as_label_probs(function, labels, x, axis)
    log_probs = exact.log_softmax(x, exact.at_one(x))
    terms = jnp.where(probs == 0, 0, probs * jnp.where(probs == 0, 0, log_probs))
    return -jnp.sum(terms, axis=-1)
