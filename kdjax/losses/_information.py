"""Losses on the relations between examples that come from information theory."""

import math

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _norms, _rows

Array = jax.Array

# (exp(r) - 1 - r) / r^2 = 1/2! + r/3! + r^2/4! + ...: enough terms for float64 where |r| <= 1/2.
_PHI = [1 / math.factorial(k) for k in range(17, 1, -1)]


def probabilistic_transfer_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    eps: float = 1e-7,
    mask: Array | None = None,
) -> Array:
    """Keep the probability that each example takes another for its neighbour.

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
    _checks.check_number(name, "eps", eps, low=0.0, open_low=True)
    rows = _rows.as_rows(name, student_features, teacher_features, mask)
    pair = (rows.student, rows.teacher)
    (student, total), (teacher, teacher_total) = (_kernel(x, rows.mask, eps) for x in pair)
    q, p = student / total, teacher / teacher_total
    both = rows.mask[:, None] & rows.mask[None, :]
    change = _rows.gap_in_units(student, teacher, total, teacher_total) / (p + eps)
    near = jnp.abs(change) < 0.5
    far = jnp.log(q + eps) - jnp.log(p + eps)
    ratio = jnp.where(near, jnp.log1p(jnp.where(near, change, 0)), far)
    # p + eps and q + eps have one sum: -(p + eps) ratio is (p + eps) phi(ratio), free of the
    # terms that cancel between the columns.
    terms = (p + eps) * _phi(ratio) + eps * ratio
    return jnp.sum(jnp.where(both, terms, 0), axis=-1) / jnp.maximum(rows.num_valid, 1)


def _kernel(x: Array, mask: Array, eps: float) -> tuple[Array, Array]:
    """Return cosines from 0 to 1, and the sums of rows, 1 where nothing counts."""
    norm = _norms.l2_norm(x, keepdims=True)
    cosines = _rows.gram(jnp.where(norm == 0, 0, x / (norm + eps)))
    kernel = jnp.where(mask[None, :], (1 + cosines) / 2, 0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return kernel, jnp.where(total > 0, total, 1)


def _phi(r: Array) -> Array:
    """Return exp(r) - 1 - r to its last digits."""
    small = jnp.abs(r) <= 0.5
    near = jnp.where(small, r, 0)
    return jnp.where(
        small, jnp.polyval(jnp.asarray(_PHI, r.dtype), near) * near * near, jnp.expm1(r) - r
    )


def itrd_correlation_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    order: float | Array = 1.5,
    mask: Array | None = None,
) -> Array:
    """Correlate each feature of the student with the teacher's, over the batch.

    value = log2 sum_w |1 - c_w|^(2 order), c_w = 1/n sum_i z_iw z'_iw

    z standardised over the n examples that count, by the deviation with n - 1; z' the teacher's.
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
    _checks.check_number(name, "order", order, low=0.0, open_low=True)
    names = ("student_features", "teacher_features")
    pair = _checks.as_pair(name, names, student_features, teacher_features)
    rows = _rows.as_rows(name, pair[0], pair[1], mask)
    student, teacher = (_standardized(x, rows) for x in (rows.student, rows.teacher))
    varies = jnp.any(student != 0, axis=0) & jnp.any(teacher != 0, axis=0)
    # 1 - c from the differences: the squares of a standardised feature sum to n - 1.
    missing = (1 + jnp.sum(jnp.square(student - teacher), axis=0) / 2) / jnp.maximum(
        rows.num_valid, 1
    )
    value = jnp.log2(jnp.sum(jnp.where(varies, missing, 1) ** (2 * order)))
    return jnp.where(rows.mask, value, 0)


def _standardized(x: Array, rows: _rows.Rows) -> Array:
    """Return (x - mean) / deviation over the rows that count; 0 where nothing varies."""
    # Shifted by a row first: the mean of equal numbers is not always that number.
    counts = rows.mask[:, None]
    shifted = jnp.where(counts, x - jax.lax.stop_gradient(x[jnp.argmax(rows.mask)])[None, :], 0)
    mean = jnp.sum(shifted, axis=0, keepdims=True) / jnp.maximum(rows.num_valid, 1)
    centered = jnp.where(counts, shifted - mean, 0)
    variance = jnp.sum(jnp.square(centered), axis=0, keepdims=True)
    variance = variance / jnp.maximum(rows.num_valid - 1, 1)
    deviation = _norms.safe_sqrt(variance)
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
    rows = _rows.as_rows("itrd_mutual_loss", student_features, teacher_features, mask)
    student, teacher = (_rows.gram(_norms.normalize(x)) for x in (rows.student, rows.teacher))
    gap = jnp.square(_unit_trace(student)) - jnp.square(_unit_trace(student * teacher))
    return rows.num_valid * jnp.sum(gap, axis=-1)


def _unit_trace(x: Array) -> Array:
    trace = jnp.trace(x)
    return x / jnp.where(trace > 0, trace, 1)
