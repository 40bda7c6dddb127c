"""Correlations of a classifier's predictions, across classes and across the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _classes, _norms, _predictions

Array = jax.Array


def dist_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: Any = 1.0,
    inter_weight: Any = 1.0,
    intra_weight: Any = 1.0,
    eps: Any = 1e-8,
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
        inter_weight: b, a number that is not negative, or an array likewise.
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
    _checks.check_number(name, "eps", eps, low=0.0)
    rows = _predictions.as_predictions(name, student_logits, teacher_logits, axis, where, mask)
    t = _checks.as_temperature(name, temperature, rows.student)
    q, p, exists, valid = (x.reshape(-1, x.shape[-1]) for x in rows.probs(t))
    inter = _uncorrelated(q, p, exists, -1, eps)
    columns = _uncorrelated(q, p, exists & valid, 0, eps)
    counted = jnp.any(exists & valid, axis=0)
    intra = jnp.sum(jnp.where(counted, columns, 0)) / jnp.maximum(jnp.sum(counted), 1)
    batch = rows.valid.shape
    values = _classes.weighted(name, "inter_weight", inter_weight, inter.reshape(batch))
    values += _classes.weighted(name, "intra_weight", intra_weight, jnp.broadcast_to(intra, batch))
    return jnp.where(rows.valid, jnp.squeeze(t * t, -1) * values, 0)


def batch_correlation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: Any = 4.0,
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
    rows = _predictions.as_predictions(name, student_logits, teacher_logits, axis, where, mask)
    t = _checks.as_temperature(name, temperature, rows.student)
    squares = jnp.square(_predictions.gram_gap(*rows.gaps(t), "ic,jc->ij"))
    return jnp.sum(squares, axis=-1).reshape(rows.valid.shape)


def class_correlation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: Any = 4.0,
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
    rows = _predictions.as_predictions(name, student_logits, teacher_logits, axis, where, mask)
    t = _checks.as_temperature(name, temperature, rows.student)
    value = jnp.sum(_predictions.class_rows(rows, t)) / rows.num_classes
    return jnp.where(rows.valid, value, 0)


def _uncorrelated(x: Array, y: Array, present: Array, axis: int, eps: Any) -> Array:
    """1 - <x, y> / (|x| |y| + eps) of deviations from means, without cancellation."""
    x, y = (_norms.deviations(z, present, axis) for z in (x, y))
    norms = [_norms.l2_norm(z, axis, keepdims=True) for z in (x, y)]
    units = [z / jnp.where(norm > 0, norm, 1) for z, norm in zip((x, y), norms, strict=True)]
    apart = jnp.sum(jnp.square(units[0] - units[1]), axis=axis) / 2
    product = jnp.squeeze(norms[0] * norms[1], axis)
    varies = product > 0
    return jnp.where(varies, (product * apart + eps) / jnp.where(varies, product + eps, 1), 1)
