"""Losses from information theory, on the features of an example or on how examples relate."""

import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, norms, pooling, relations


def variational_information_loss(
    student_mean: Array, teacher_features: Array, variance: float | Array
) -> Array:
    """Return -log of the likelihood of the teacher's features under a normal that is predicted.

    mean over all but the first axis of ((mu - t)^2 / v + log v) / 2

    which bounds the information that the student's features hold about the teacher's. mu is a
    learned function of them; v, one for each channel, says how well that channel can be predicted.

    Args:
        student_mean: mu, [batch, ..., channels], any floating type.
        teacher_features: t, likewise, of the same shape; constant, its gradient is zero.
        variance: v, positive: a number, or an array [channels]; it has a gradient.

    Returns:
        [batch], nats per feature, float32 or wider; negative where the prediction is good.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the shapes differ, there is no axis behind the batch, or the variance is a
            number that is not positive or has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import variational_information_loss
        >>> mean, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])
        >>> print(variational_information_loss(mean, teacher, 2.0))
        [0.847]

    References:
        Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge
        Transfer", 2019, arXiv:1904.05835, equation 5.

    Differs from the paper: the mean over the features, not their sum, and without the constant
    log(2 pi) / 2, as the code behind the published tables has it.
    """
    name, names = "variational_information_loss", ("student_mean", "teacher_features")
    mean, teacher = _inputs.as_features(name, student_mean, teacher_features, names)
    v = _inputs.as_channels(name, "variance", variance, mean, _numbers.POSITIVE)
    squares = jnp.square(mean - teacher)
    return pooling.mean_per_example((squares / v + jnp.log(v)) / 2)


def probabilistic_transfer_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    eps: float | Array = 1e-7,
    mask: Array | None = None,
) -> Array:
    """Keep the probability that each example takes another for its neighbor.

    value_i = 1/n sum_j p'_ij log((p'_ij + eps) / (p_ij + eps))
    p_ij = k_ij / sum_l k_il, k_ij = (1 + <x_i, x_j>) / 2 for rows x / (|x| + eps)

    over the n examples that count, j = i included, p' the teacher's. A row of zeros stays one,
    with gradient 0.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        eps: keeps the norms and the logarithms finite, positive.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], nats, float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, a shape does not fit, or eps is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import probabilistic_transfer_loss
        >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [4.0]])
        >>> print(probabilistic_transfer_loss(student, teacher))
        [0.029 0.029]

    References:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
        2018, arXiv:1803.10837.

    Differs from the paper: the mean over all n^2 pairs, as its authors' code has it, and not the
    sum; an example is also compared with itself.
    """
    name = "probabilistic_transfer_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    eps = _numbers.as_number(name, "eps", eps, batch.student.dtype, _numbers.POSITIVE)
    (student, total), (teacher, teacher_total) = (_kernel(x, batch.mask, eps) for x in batch[:2])
    q, p = student / total, teacher / teacher_total
    both = batch.mask[:, None] & relations.whole(batch.mask)[None, :]
    change = relations.gap_in_units(student, teacher, total, teacher_total) / (p + eps)
    near = jnp.abs(change) < 0.5
    far = jnp.log(q + eps) - jnp.log(p + eps)
    ratio = jnp.where(near, jnp.log1p(jnp.where(near, change, 0)), far)
    # p + eps and q + eps have one sum: -(p + eps) ratio is (p + eps) phi(ratio), free of the
    # terms that cancel between the columns.
    terms = (p + eps) * _phi(ratio) + eps * ratio
    return jnp.sum(jnp.where(both, terms, 0), axis=-1) / jnp.maximum(batch.num_valid, 1)


def _kernel(x: Array, mask: Array, eps: float | Array) -> tuple[Array, Array]:
    """Return cosines from 0 to 1, and the sums of rows, 1 where nothing counts."""
    norm = norms.l2_norm(x, keepdims=True)
    cosines = relations.gram(jnp.where(norm == 0, 0, x / (norm + eps)))
    kernel = jnp.where(relations.whole(mask)[None, :], (1 + cosines) / 2, 0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return kernel, jnp.where(total > 0, total, 1)


def _phi(r: Array) -> Array:
    """Return exp(r) - 1 - r to its last digits."""
    small = jnp.abs(r) <= 0.5
    return jnp.where(small, exact.phi_near_zero(jnp.where(small, r, 0)), jnp.expm1(r) - r)


def itrd_correlation_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    order: float | Array = 1.5,
    mask: Array | None = None,
) -> Array:
    """Correlate each feature of the student with the teacher's, over the batch.

    value = log2 sum_w |1 - c_w|^(2 order), c_w = 1/n sum_i z_iw z'_iw

    z standardized over the n examples that count, by the deviation with n - 1; z' the teacher's.
    Equal features have c = (n - 1) / n. A feature that does not vary has c = 0, with gradient 0.

    Args:
        student_features: [batch, ...], any floating type, already mapped to the teacher's width.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        order: of the entropy, positive; above 1 it stresses what is least correlated.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], bits, float32 or wider: the value of the batch at every anchor, 0 where the mask
        is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the shapes differ or do not fit, or the order is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import itrd_correlation_loss
        >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [5.0]])
        >>> print(itrd_correlation_loss(student, teacher))
        [-4.303 -4.303 -4.303]

    References:
        Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation
        Distillation", 2022, arXiv:2112.00459.
    """
    name = "itrd_correlation_loss"
    pair = _inputs.as_pair(name, student_features, teacher_features)
    batch = _inputs.as_feature_batch(name, *pair, mask)
    order = _numbers.as_number(name, "order", order, batch.student.dtype, _numbers.POSITIVE)
    student, teacher = (_standardized(x, batch) for x in (batch.student, batch.teacher))
    varies = jnp.any(student != 0, axis=0) & jnp.any(teacher != 0, axis=0)
    # 1 - c from the differences: the squares of a standardized feature sum to n - 1.
    half = jnp.sum(jnp.square(student - teacher), axis=0) / 2
    missing = (1 + half) / jnp.maximum(batch.num_valid, 1)
    value = jnp.log2(jnp.sum(jnp.where(varies, missing, 1) ** (2 * order)))
    return jnp.where(batch.mask, value, 0)


def _standardized(x: Array, batch: relations.FeatureBatch) -> Array:
    """Return (x - mean) / deviation over the rows that count; 0 where nothing varies."""
    counts = jnp.broadcast_to(batch.mask[:, None], x.shape)
    x = x / norms.unit_of(x, 0)
    centered = norms.deviations(x, counts, axis=0)
    squares = jnp.sum(jnp.square(centered), axis=0, keepdims=True)
    deviation = norms.safe_sqrt(squares / jnp.maximum(batch.num_valid - 1, 1))
    return centered / jnp.where(deviation > 0, deviation, 1)


def itrd_mutual_loss(
    student_features: Array, teacher_features: Array, *, mask: Array | None = None
) -> Array:
    """Raise the information that the student's similarities share with the teacher's.

    value_i = n sum_j (g_ij / tr g)^2 - (g_ij g'_ij / tr (g g'))^2

    over the n examples that count, g_ij the cosine of two rows, g' the teacher's, their product
    entry by entry, tr the sum of the diagonal. The mean over the anchors is
    H(student, teacher) - H(student) up to the logarithms, which is not 0 for equal inputs. A row
    of zeros has cosine 0 with gradient 0.

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
        >>> from kdjax.losses import itrd_mutual_loss
        >>> student, teacher = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(itrd_mutual_loss(student, teacher))
        [0.5 0.5]

    References:
        Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation
        Distillation", 2022, arXiv:2112.00459.
    """
    batch = _inputs.as_feature_batch("itrd_mutual_loss", student_features, teacher_features, mask)
    student, teacher = (relations.gram(norms.normalize(x)) for x in (batch.student, batch.teacher))
    gap = jnp.square(_unit_trace(student)) - jnp.square(_unit_trace(student * teacher))
    return batch.num_valid * jnp.sum(gap, axis=-1)


def _unit_trace(x: Array) -> Array:
    trace = jnp.sum(x * jnp.eye(len(x), dtype=x.dtype))
    return x / jnp.where(trace > 0, trace, 1)
