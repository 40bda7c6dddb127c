"""Mutual information between the features of two networks, through a bound that can be learned."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _maps

Array = jax.Array


def variational_information_loss(
    student_mean: Array, teacher_features: Array, variance: Any
) -> Array:
    """Negative log-likelihood of the teacher's features under a normal that the student predicts.

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
    _checks.check_number(name, "variance", variance, low=0.0, open_low=True)
    mean, teacher = _checks.as_pair(name, names, student_mean, teacher_features)
    if mean.ndim < 2:
        raise ValueError(f"{name}: student_mean has shape {mean.shape}, expected [batch, ...]")
    v = _maps.as_channels(name, "variance", variance, mean)
    squares = jnp.square(mean - jax.lax.stop_gradient(teacher))
    return _maps.mean_per_example((squares / v + jnp.log(v)) / 2)
