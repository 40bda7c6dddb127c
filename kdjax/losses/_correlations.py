"""Correlations of a classifier's predictions, across classes and across the batch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, norms, relations


def dist_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 1.0,
    inter_weight: float | Array = 1.0,
    intra_weight: float | Array = 1.0,
    eps: float | Array = 1e-8,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Correlate predictions with the teacher's: within each example, and within each class.

    T^2 * (b * (1 - r(q_i, p_i)) + g * mean over classes c of (1 - r(q_c, p_c)))

    with q_i and p_i student's and teacher's softened probabilities of example i, q_c and p_c those
    of class c over the batch, b and g the two weights, and the correlation
    r(x, y) = <x', y'> / (|x'| |y'| + eps) of x' = x - mean(x) and y' = y - mean(y). The second
    part belongs to the batch: it is the same at every example. What does not vary has correlation
    0, with gradient 0: a class in a batch of one, or with the same probability in all examples.

    Args:
        student_logits: [..., num_classes], any floating type; -inf is a probability of 0, which is
            still one of the numbers that are correlated.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        inter_weight: b, a number that is not negative, or an array: scalar or [...].
        intra_weight: g, likewise. The paper has 2 for both on CIFAR-100, at T = 4.
        eps: keeps the correlation from dividing by 0, a number that is not negative. At equal
            logits it leaves a loss of eps / |x'|^2; 0 leaves none.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that are correlated.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, or a
            weight or eps is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import dist_loss
        >>> student = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
        >>> teacher = jnp.array([[3.0, 2.0, 0.0], [0.0, 4.0, 0.0]])
        >>> print(dist_loss(student, teacher).mean())
        3.034

    References:
        Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", 2022,
        arXiv:2205.10536, equation 10; T^2 as in the authors' code.
    """
    name = "dist_loss"
    batch = _inputs.as_logit_batch(name, student_logits, teacher_logits, axis, where, mask)
    eps = _numbers.as_number(name, "eps", eps, batch.student.dtype, _numbers.NOT_NEGATIVE)
    t = _inputs.as_temperature(name, temperature, batch.student)
    q, p, exists, valid = map(relations.rows, batch.probs(t))
    inter = _uncorrelated(q, p, exists, -1, eps)
    columns = _uncorrelated(q, p, exists & valid, 0, eps)
    counted = jnp.any(exists & valid, axis=0)
    num_classes = jnp.maximum(jnp.sum(counted, dtype=q.dtype), 1)
    intra = jnp.sum(jnp.where(counted, columns, 0)) / num_classes
    shape = batch.valid.shape
    values = _inputs.weighted(name, "inter_weight", inter_weight, inter.reshape(shape))
    values += _inputs.weighted(name, "intra_weight", intra_weight, jnp.broadcast_to(intra, shape))
    return jnp.where(batch.valid, jnp.squeeze(t * t, -1) * values, 0)


def batch_correlation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 4.0,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match how alike the predictions for the examples of a batch are.

    sum over examples j of (q_i . q_j - p_i . p_j)^2, for each example i

    with q and p student's and teacher's softened probabilities. There is no factor T^2.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False. Their mean is
        the paper's loss.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import batch_correlation_loss
        >>> student = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> teacher = jnp.array([[9.0, 0.0], [0.0, 9.0]])
        >>> print(batch_correlation_loss(student, teacher, temperature=1.0))
        [0.999 0.999]

    References:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", 2023, CVPR, equation 6.
    """
    name = "batch_correlation_loss"
    batch = _inputs.as_logit_batch(name, student_logits, teacher_logits, axis, where, mask)
    t = _inputs.as_temperature(name, temperature, batch.student)
    squares = jnp.square(relations.gram_gap(*batch.gaps(t), "ic,jc->ij"))
    return jnp.sum(squares, axis=-1).reshape(batch.valid.shape)


def class_correlation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 4.0,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match which classes a batch's predictions take for one another.

    1/K * sum over pairs of classes c, d of (sum_i q_ic q_id - sum_i p_ic p_id)^2

    with q and p student's and teacher's softened probabilities of the examples i, and K the number
    of classes. There is no factor T^2, and the sums over the batch are not divided by its size. It
    belongs to the batch: the value is the same at every example.

    Args:
        student_logits: [..., num_classes], any floating type; -inf is a probability of 0, and its
            class counts in K.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist and count in K.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: the loss at every example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import class_correlation_loss
        >>> student = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> teacher = jnp.array([[9.0, 0.0], [0.0, 9.0]])
        >>> print(class_correlation_loss(student, teacher, temperature=1.0))
        [0.999 0.999]

    References:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", 2023, CVPR, equation 8.
    """
    name = "class_correlation_loss"
    batch = _inputs.as_logit_batch(name, student_logits, teacher_logits, axis, where, mask)
    t = _inputs.as_temperature(name, temperature, batch.student)
    value = jnp.sum(relations.class_rows(batch, t)) / batch.num_classes
    return jnp.where(batch.valid, value, 0)


def _uncorrelated(x: Array, y: Array, present: Array, axis: int, eps: float | Array) -> Array:
    """Return 1 - <x, y> / (|x| |y| + eps) of deviations from means, without cancellation."""
    x, y = (norms.deviations(z, present, axis) for z in (x, y))
    scales = [norms.unit_of(z, axis) for z in (x, y)]
    x, y = (z / scale for z, scale in zip((x, y), scales, strict=True))
    lengths = [norms.l2_norm(z, axis, keepdims=True) for z in (x, y)]
    gap = relations.gap_in_units(x, y, *(jnp.where(n == 0, 1, n) for n in lengths))
    apart = jnp.sum(jnp.square(gap), axis=axis) / 2
    constant = jnp.squeeze((lengths[0] == 0) | (lengths[1] == 0), axis)
    # What eps adds to the distance is its share of a divisor that may vanish, as may its square.
    product = (scales[0] * lengths[0]) * (scales[1] * lengths[1])
    divisor = jnp.squeeze(product, axis) + eps
    share = eps / jnp.maximum(divisor, np.finfo(x.dtype).tiny ** 0.5)
    return _numbers.poisoned(jnp.where(constant, 1, apart + (1 - apart) * share), eps)


def multi_level_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperatures: Sequence[float] | Array = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_weight: float | Array = 1.0,
    batch_weight: float | Array = 1.0,
    class_weight: float | Array = 1.0,
    confidence_quantile: float | Array | None = None,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match predictions at several temperatures, as instances, as a batch and as classes.

    sum over T of (w_i * soft_target_loss + w_b * batch_correlation_loss + w_c *
    class_correlation_loss)

    The paper trains on two views of each example, weak and strong, and adds the loss of both and
    the labels' cross-entropy of both.

    Args:
        student_logits: [..., num_classes], any floating type; -inf is a probability of 0.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperatures: the values of T: positive numbers, or an array of one axis.
        instance_weight: w_i, a number that is not negative, or an array: scalar or [...].
        batch_weight: w_b, likewise.
        class_weight: w_c, a number that is not negative, or an array: scalar or [...].
        confidence_quantile: None, or a number in [0, 1]: then only the examples whose largest
            teacher probability is up to this quantile of the batch are anchors of the first two
            parts, and only the classes whose probabilities' sum over the batch is up to this
            quantile of all classes are rows of the third. The authors' code has 0.5 for the weak
            view. The divisors stay.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, there is no temperature or one is not positive and
            finite, a weight is negative, or the quantile is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import multi_level_loss
        >>> student = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> teacher = jnp.array([[9.0, 0.0], [0.0, 9.0]])
        >>> print(multi_level_loss(student, teacher, temperatures=(1.0, 2.0)).mean())
        17.171

    References:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", 2023, CVPR, section 3.

    Differs from the authors' code: the confidences choose examples and classes, as its comments
    have it, where in the code they scale a sum that is already reduced; and all parts use the view
    that they are given.
    """
    name = "multi_level_loss"
    batch = _inputs.as_logit_batch(name, student_logits, teacher_logits, axis, where, mask)
    dtype, quantile = batch.student.dtype, confidence_quantile
    if quantile is not None:
        share = _numbers.SHARE
        quantile = _numbers.as_number(name, "confidence_quantile", quantile, dtype, share)
    uncertain, uncommon = _unsure(batch, quantile)

    def levels(temperature: Array) -> tuple[Array, Array, Array]:
        t = jnp.broadcast_to(temperature, (*batch.valid.shape, 1))
        instance = jnp.squeeze(t * t, -1) * exact.tempered_kl(batch.student, batch.teacher, t)
        squares = jnp.square(relations.gram_gap(*batch.gaps(t), "ic,jc->ij"))
        by_class = jnp.where(uncommon, relations.class_rows(batch, t), 0)
        return instance, jnp.sum(squares, axis=-1), jnp.sum(by_class) / batch.num_classes

    parts = jax.vmap(levels)(_as_temperatures(name, temperatures, dtype))
    instance, pairwise, classes = (jnp.sum(part, axis=0) for part in parts)
    anchors = _inputs.weighted(name, "instance_weight", instance_weight, instance)
    anchors += _inputs.weighted(name, "batch_weight", batch_weight, pairwise.reshape(anchors.shape))
    shared = jnp.broadcast_to(classes, anchors.shape)
    shared = _inputs.weighted(name, "class_weight", class_weight, shared)
    values = _numbers.poisoned(jnp.where(uncertain, anchors, 0) + shared, quantile)
    return jnp.where(batch.valid, values, 0)


def _as_temperatures(name: str, temperatures: Sequence[float] | Array, dtype: jnp.dtype) -> Array:
    def number(t: Any) -> float | Array:
        per = np.shape(temperatures)
        return _numbers.as_number(name, "temperatures", t, dtype, _numbers.TEMPERATURE, per=per)

    is_array = isinstance(temperatures, jax.Array | np.ndarray)
    array = jnp.asarray(number(temperatures) if is_array else [*map(number, temperatures)], dtype)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: temperatures has shape {array.shape}, expected some on one axis")
    return array


def _unsure(batch: relations.LogitBatch, quantile: float | Array | None) -> tuple[Array, Array]:
    """Mark the examples and the classes whose confidence is up to the quantile."""
    if quantile is None:
        return jnp.ones_like(batch.valid), jnp.ones(batch.exists.shape[-1], bool)
    probs = jnp.exp(exact.log_softmax(batch.teacher, exact.at_one(batch.teacher)))
    probs = relations.rows(jnp.where(batch.valid[..., None], probs, 0))
    counted = relations.rows(batch.exists & batch.valid[..., None])

    def low(confidence: Array, counts: Array) -> Array:
        known = jnp.where(counts, confidence, jnp.nan)
        return confidence <= jnp.nanquantile(known, jnp.asarray(quantile, known.dtype))

    uncertain = low(jnp.max(probs, axis=-1), batch.valid.reshape(-1))
    uncommon = low(jnp.sum(probs, axis=0), jnp.any(counted, axis=0))
    return uncertain.reshape(batch.valid.shape), uncommon
