"""Losses on how alike the examples of a batch are to each network; see `_relations`."""

import math

import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, norms, relations


def similarity_preserving_loss(
    student_features: Array, teacher_features: Array, *, mask: Array | None = None
) -> Array:
    """Keep which examples activate a network alike.

    value_i = 1/n sum_j (g_ij / |g_i| - g'_ij / |g'_i|)^2, g_ij = <x_i, x_j>

    over the n examples that count, features flattened, g_i a row of inner products, g' the
    teacher's. A row without activation is 0, with gradient 0.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import similarity_preserving_loss
        >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [4.0]])
        >>> print(similarity_preserving_loss(student, teacher).round(3))
        [0.4 0.2]

    References:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv:1907.09682,
        section 3.
    """
    name = "similarity_preserving_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    student, teacher = (relations.gram(x / norms.unit_of(x, None)) for x in batch[:2])
    lengths = [norms.l2_norm(x, keepdims=True) for x in (student, teacher)]
    student = jnp.where(lengths[0] == 0, 0, student)  # a row of zeros has no gradient
    units = (jnp.where(x == 0, 1, x) for x in lengths)
    gap = relations.gap_in_units(student, teacher, *units)
    return jnp.sum(jnp.square(gap), axis=-1) / jnp.maximum(batch.num_valid, 1)


def correlation_congruence_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    gamma: float | Array = 0.4,
    max_power: int = 2,
    normalize: bool = True,
    mask: Array | None = None,
) -> Array:
    """Keep how examples correlate, in the kernel exp(-gamma |x - y|^2) expanded to a few powers.

    value_i = 1/n sum_j (k(x_i, x_j) - k'(x_i, x_j))^2
    k(x, y) = exp(-2 gamma) sum_{p = 0 .. max_power} (2 gamma)^p / p! <x, y>^p

    over the n examples that count, k' the teacher's. The series is that of the kernel for rows of
    length 1, which is why they are normalized first; a row of zeros stays one, with gradient 0.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        gamma: the inverse square of the kernel's width, positive.
        max_power: the last power of the series, positive.
        normalize: whether rows are brought to length 1; False takes them as they are.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, a shape does not fit, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import correlation_congruence_loss
        >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [4.0]])
        >>> print(correlation_congruence_loss(student, teacher))
        [0.127 0.127]

    References:
        Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
        Distillation", 2019, arXiv:1904.01802.
    """
    name = "correlation_congruence_loss"
    max_power = _numbers.as_count(name, "max_power", max_power)
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    dtype = batch.student.dtype
    gamma = _numbers.as_number(name, "gamma", gamma, dtype, _numbers.POSITIVE)
    rows = (norms.normalize(x) if normalize else x for x in batch[:2])
    student, teacher = (relations.gram(x) for x in rows)
    gap = _kernel_gap(student, teacher, jnp.asarray(gamma, dtype), max_power)
    return jnp.sum(jnp.square(gap), axis=-1) / jnp.maximum(batch.num_valid, 1)


def _kernel_gap(a: Array, b: Array, gamma: Array, max_power: int) -> Array:
    """Subtract the kernels of two inner products as (a - b) times a sum: nothing cancels.

    a^p - b^p = (a - b) q_p with q_1 = 1 and q_{p + 1} = a q_p + b^p.
    """
    total, quotient = jnp.zeros_like(a), jnp.ones_like(a)
    for p in range(1, max_power + 1):
        total += (2 * gamma) ** p / math.factorial(p) * quotient
        quotient = a * quotient + b**p
    return jnp.exp(-2 * gamma) * (a - b) * total


def consecutive_correlation_loss(
    student_features: Array, teacher_features: Array, *, mask: Array | None = None
) -> Array:
    """Multiply the errors of each example and the next: correlation congruence as RepDistiller's.

    value_i = n / (n - 1) sum_w |x_iw - x'_iw| |x_jw - x'_jw|, j the next example that counts

    over the n examples that count, x' the teacher's; the last one has the value 0.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the shapes differ or do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import consecutive_correlation_loss
        >>> student = jnp.array([[1.0], [2.0], [4.0]])
        >>> print(consecutive_correlation_loss(student, jnp.zeros((3, 1))))
        [ 3. 12.  0.]

    References:
        Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
        Distillation", 2019, arXiv:1904.01802.

    Differs from the paper: its kernel is `correlation_congruence_loss`. This is the form behind
    the row "CC" of the tables that RepDistiller prints.
    """
    name = "consecutive_correlation_loss"
    pair = _inputs.as_pair(name, student_features, teacher_features)
    batch = _inputs.as_feature_batch(name, *pair, mask)
    order = jnp.argsort(~relations.whole(batch.mask), stable=True)
    gaps = relations.whole(batch.student - batch.teacher)
    errors = norms.absolute(gaps)[order]
    following = jnp.concatenate([errors[1:], jnp.zeros_like(errors[:1])])
    products = jnp.sum(errors * following, axis=-1)[jnp.argsort(order)]
    products = relations.split_like(products, batch.mask)
    return products * (batch.num_valid / jnp.maximum(batch.num_valid - 1, 1))


def similarity_score_loss(
    student_features: Array, teacher_features: Array, *, mask: Array | None = None
) -> Array:
    """Match the scores, the cosines, of all pairs of examples: what embeddings are compared by.

    value_i = 1/n sum_j (cos(x_i, x_j) - cos(x'_i, x'_j))^2

    over the n examples that count, x' the teacher's. A row of zeros has the cosine 0, with
    gradient 0.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import similarity_score_loss
        >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [4.0]])
        >>> print(similarity_score_loss(student, teacher))
        [0.5 0.5]

    References:
        Zhang, Li, Zeng, Wang, "Jasper and Stella: distillation of SOTA embedding models", 2024,
        arXiv:2412.19048, section 3.
    """
    name = "similarity_score_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    student, teacher = (relations.gram(norms.normalize(x)) for x in batch[:2])
    gap = jnp.where(relations.pairs(batch.mask), student - teacher, 0)
    return jnp.sum(jnp.square(gap), axis=-1) / jnp.maximum(batch.num_valid, 1)


def similarity_distribution_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    temperature: float | Array = 0.05,
    mask: Array | None = None,
) -> Array:
    """Follow which examples of the batch each example is close to: soft targets over neighbors.

    value_i = KL(softmax_j(cos(x'_i, x'_j) / T) || softmax_j(cos(x_i, x_j) / T)), j not i

    over the examples that count, x' the teacher's. There is no factor T^2.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        temperature: T, a positive number, or a scalar array.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], nats, float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, a shape does not fit, or the temperature is not positive
            and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import similarity_distribution_loss
        >>> student = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> print(similarity_distribution_loss(student, teacher, temperature=0.5))
        [1.523 0.434 0.328]

    References:
        Fang, Wang, Wang, Zhang, Yang, Liu, "SEED: Self-supervised Distillation For Visual
        Representation", 2021, arXiv:2101.04731, section 3.2.

    Differs from the paper: the neighbors are those of the batch, not of a queue, and both networks
    have one temperature.
    """
    name = "similarity_distribution_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    limits = _numbers.TEMPERATURE
    t = _numbers.as_number(name, "temperature", temperature, batch.student.dtype, limits)
    if not batch.mask.size:
        return jnp.sum(batch.student, axis=-1)
    pairs = relations.pairs(batch.mask)
    student, teacher = (
        jnp.where(pairs, relations.gram(norms.normalize(x)), -jnp.inf) for x in batch[:2]
    )
    return exact.tempered_kl(student, teacher, t * exact.at_one(student))
