"""Losses on logits: the soft targets of Hinton, Vinyals & Dean (2015), exact in float32."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _exact

Array = jax.Array


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
    log_probs = _exact.log_softmax(x, _checks.as_temperature(name, temperature, x))
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
    log_probs = _exact.log_softmax(x, _checks.as_temperature(name, temperature, x))
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
    return _exact.divergence(teacher, student)


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
    return _exact.divergence(student, teacher)


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
    return _exact.tempered_kl(student, jax.lax.stop_gradient(teacher), t) * jnp.squeeze(t * t, -1)


def _hard(
    function: str, name: str, logits: Any, labels: Any, *, axis: int, where: Array | None
) -> Array:
    x = _checks.as_logits(function, name, logits)
    shape, labels = x.shape, jnp.asarray(labels)
    x = _checks.select_classes(function, x, where, axis)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        _checks.check_shape(function, "labels", labels.shape, x.shape[:-1], "the examples")
        _checks.check_labels(function, labels, x.shape[-1])
        chosen = jax.nn.one_hot(labels, x.shape[-1], dtype=bool)
        unknown = ~jnp.any(chosen, axis=-1)
        return jnp.where(unknown, jnp.nan, _exact.nll(x, chosen))
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise TypeError(
            f"{function}: labels has dtype {labels.dtype}, expected integer or floating"
        )
    _checks.check_shape(function, "labels", labels.shape, shape, name)
    probs = jax.lax.stop_gradient(jnp.moveaxis(labels, axis, -1).astype(x.dtype))
    log_probs = _exact.log_softmax(x, jnp.ones((*x.shape[:-1], 1), x.dtype))
    return -jnp.sum(jnp.where(probs == 0, 0, probs * jnp.where(probs == 0, 0, log_probs)), axis=-1)
