"""Directions of logits: angles between the examples of a batch, in units of how they vary."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _norms, _predictions

Array = jax.Array


def direction_relation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    regularization: Any = 0.1,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match the cosines between the examples' logits, in Mahalanobis distance (SKD).

    sqrt(d_i . S^-1 d_i), d_i the row i of D = G(z) - G(v), S = cov(D) + r I

    with z the student's logits and v the teacher's, G their cosines between all pairs of examples,
    cov the unbiased covariance of D's columns over its rows, and r the regularization. The
    gradient passes through S too. The instance part of the method is `soft_target_loss` over T^2.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        regularization: r, a positive number, or a scalar array.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, or the regularization is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import direction_relation_loss
        >>> student = jnp.array([[2.0, 0.0], [3.0, 0.0]])
        >>> teacher = jnp.array([[2.0, 0.0], [0.0, 3.0]])
        >>> print(direction_relation_loss(student, teacher))
        [2.335 2.335]

    References:
        Jeong, Lee, Choi, "Streamlined Knowledge Distillation", 2026, CVPR.
    """
    name = "direction_relation_loss"
    _checks.check_number(name, "regularization", regularization, low=0.0, open_low=True)
    rows = _predictions.as_predictions(name, student_logits, teacher_logits, axis, where, mask)
    z, v = (_units(x, rows.valid) for x in (rows.student, rows.teacher))
    gap = _predictions.gram_gap(z, v, z - v, "iw,jw->ij")
    valid = rows.valid.reshape(-1)
    varied = _norms.deviations(gap, jnp.broadcast_to(valid[:, None], gap.shape), axis=0)
    degrees = jnp.maximum(jnp.sum(valid) - 1, 1)
    covariance = jnp.einsum("ij,ik->jk", varied, varied, precision="highest") / degrees
    covariance += regularization * jnp.eye(len(gap), dtype=gap.dtype)
    factor = jnp.linalg.cholesky(covariance)
    scaled = jax.scipy.linalg.solve_triangular(factor, gap.T, lower=True)
    return _norms.l2_norm(scaled, axis=0).reshape(rows.valid.shape)


def _units(x: Array, valid: Array) -> Array:
    """Unit vectors [examples, num_classes], 0 at classes and examples that do not count."""
    x = jnp.where(jnp.isneginf(x) | ~valid[..., None], 0, x)
    return _norms.normalize(x.reshape(-1, x.shape[-1]))
