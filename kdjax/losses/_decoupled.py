"""Losses that treat the labeled class and the others apart, or weigh soft targets by the label."""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact


def dkd_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature: float | Array = 4.0,
    target_weight: float | Array = 1.0,
    nontarget_weight: float | Array = 8.0,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Match how sure the teacher is and what it thinks of the other classes, apart (DKD).

    T^2 * (a * KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + b * KL(p' || q'))

    with p and q the softened probabilities of teacher and student, y the label, p' and q' those
    of the classes without y, normalized again, and a and b the two weights. At a = 1 and
    b = 1 - p_y it is `soft_target_loss`. The labels' cross-entropy is not in it.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        labels: integer classes [...].
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        target_weight: a, a number that is not negative, or an array: scalar or [...].
        nontarget_weight: b, likewise. The paper's 8 suits some pairs of networks, its code has 1
            to 8.
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or labels not integers.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, a weight
            is negative, or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import dkd_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(dkd_loss(student, teacher, jnp.array([0])))
        [10.145]

    References:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", 2022, arXiv:2203.08679,
        equation 7.
    """
    name = "dkd_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    labeled = _inputs.as_chosen(name, labels, student, ignore_label)
    student, teacher = labeled.counting(student), labeled.counting(teacher)
    chosen = labeled.chosen
    t = _inputs.as_temperature(name, temperature, student)
    target = exact.target_kl(student, teacher, t, chosen)
    others = exact.tempered_kl(exact.but(student, chosen), exact.but(teacher, chosen), t)
    values = _inputs.weighted(name, "target_weight", target_weight, target)
    values += _inputs.weighted(name, "nontarget_weight", nontarget_weight, others)
    return labeled.of(jnp.squeeze(t * t, -1) * values)


def nkd_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature: float | Array = 1.0,
    nontarget_weight: float | Array = 1.5,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Take the cross-entropies of the labeled class and of the others, normalized (NKD).

    - p_y log q_y - g * T^2 * sum over the other classes of p' log q'

    with p and q the probabilities of teacher and student at temperature 1, y the label, p' and q'
    those of the other classes at temperature T, normalized to 1 without y, and g the weight. These
    are cross-entropies: the minimum is not 0. The labels' own cross-entropy is not in it.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        labels: integer classes [...].
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        nontarget_weight: g, a number that is not negative, or an array: scalar or [...].
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or labels not integers.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, the
            weight is negative, or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import nkd_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(nkd_loss(student, teacher, jnp.array([0])))
        [3.489]

    References:
        Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge
        Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", 2023,
        arXiv:2303.13005, equation 6.
    """
    name = "nkd_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    labeled = _inputs.as_chosen(name, labels, student, ignore_label)
    student, teacher = labeled.counting(student), labeled.counting(teacher)
    chosen = labeled.chosen
    t = _inputs.as_temperature(name, temperature, student)
    others = exact.cross_entropy(exact.but(student, chosen), exact.but(teacher, chosen), t)
    others *= jnp.squeeze(t * t, -1)
    others = _inputs.weighted(name, "nontarget_weight", nontarget_weight, others)
    return labeled.of(_taught_nll(student, teacher, chosen) + others)


def wsld_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature: float | Array = 2.0,
    eps: float | Array = 1e-7,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Weigh soft labels: less of the teacher for what the student has learned better (WSLD).

    (1 - exp(-CE(y, q) / (CE(y, p) + eps))) * T^2 * CE(p_T, q_T)

    with p and q the probabilities of teacher and student, p_T and q_T the softened ones and y the
    label. The weight is constant. The last factor is a cross-entropy: the minimum is not 0. The
    labels' own cross-entropy is not in it; the paper adds it to 2.5 times this.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        labels: integer classes [...].
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        eps: keeps the weight from dividing by the loss of a perfect teacher; not negative.
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or labels not integers.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, eps is
            negative, or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import wsld_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(wsld_loss(student, teacher, jnp.array([0])))
        [5.565]

    References:
        Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge
        Distillation: A Bias-Variance Tradeoff Perspective", 2021, arXiv:2102.00650, equation 13.
    """
    name = "wsld_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    eps = _numbers.as_number(name, "eps", eps, student.dtype, _numbers.NOT_NEGATIVE)
    labeled = _inputs.as_chosen(name, labels, student, ignore_label)
    student, teacher = labeled.counting(student), labeled.counting(teacher)
    chosen = labeled.chosen
    t = _inputs.as_temperature(name, temperature, student)
    weight = _unlearnt(jax.lax.stop_gradient(student), teacher, chosen, eps)
    soft = jnp.squeeze(t * t, -1) * exact.cross_entropy(student, teacher, t)
    # A weight of 0 takes the example out, even where its loss is infinite.
    values = jnp.where(weight == 0, 0, jnp.where(weight == 0, 1, weight) * soft)
    return labeled.of(values)


def _taught_nll(x: Array, v: Array, chosen: Array) -> Array:
    """Return - p log q at the chosen class; 0 where the teacher has no such class."""
    log_p = exact.log_softmax(v, exact.at_one(v))
    p = jnp.sum(jnp.where(chosen, jnp.exp(log_p), 0), axis=-1)
    taught = jnp.any(chosen & ~jnp.isneginf(v), axis=-1)
    nll = exact.nll(x, chosen)
    lost = jnp.isinf(nll) & (p == 0)
    return jnp.where(lost, jnp.where(taught, jnp.inf, 0), p * nll)


def _unlearnt(x: Array, v: Array, chosen: Array, eps: float | Array) -> Array:
    """Return 1 - exp(-CE of the student / (CE of the teacher + eps)); inf / inf counts as 1."""
    student, teacher = (exact.nll(z, chosen) for z in (x, v))
    undefined = (jnp.isinf(student) & jnp.isinf(teacher)) | ((student == 0) & (teacher + eps == 0))
    ratio = jnp.where(undefined, 1, student) / jnp.where(undefined, 1, teacher + eps)
    return -jnp.expm1(-ratio)
