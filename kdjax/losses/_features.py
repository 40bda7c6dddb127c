"""Losses that hold one feature map against another."""

import jax
import jax.numpy as jnp

from kdjax.losses import _checks

Array = jax.Array


def hint_loss(student_features: Array, teacher_features: Array) -> Array:
    """Mean squared difference of two features, the student's projected to the teacher's shape.

    mean over all but the first axis of (a - b)^2

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the shapes differ or there is no axis behind the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import hint_loss
        >>> print(hint_loss(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
        [2.]

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", 2014,
        arXiv:1412.6550, equation 3.

    Differs from the paper: the mean of the squares, as its successors' code has it, and not half
    their sum, so that the weight does not depend on the size of the features.
    """
    names = ("student_features", "teacher_features")
    student, teacher = _checks.as_pair("hint_loss", names, student_features, teacher_features)
    if student.ndim < 2:
        raise ValueError(
            f"hint_loss: student_features has shape {student.shape}, expected [batch, ...]"
        )
    squares = jnp.square(student - jax.lax.stop_gradient(teacher))
    return jnp.mean(squares, axis=tuple(range(1, squares.ndim)))
