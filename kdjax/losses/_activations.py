"""Losses on what comes before a ReLU: which neurons fire, and how strongly."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from kdjax.losses import _checks, _maps

Array = jax.Array


def activation_boundary_loss(
    student_features: Array, teacher_features: Array, *, margin: Any = 1.0
) -> Array:
    """Have the neurons fire that fire in the teacher, however strongly.

    sum over all neurons of relu(m - s)^2 where t > 0, relu(m + s)^2 elsewhere

    with s the student's and t the teacher's features before their ReLU, and m the margin. Along
    each axis the larger map is averaged to the size of the smaller.

    Args:
        student_features: [batch, ..., channels], before the ReLU, any floating type.
        teacher_features: [batch, ..., channels], likewise; constant, its gradient is zero.
        margin: m, how far from zero the student is pushed, a positive number.

    Returns:
        [batch], float32 or wider: one value per example, a sum and not a mean.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the numbers of axes, examples or channels differ, or the margin is not
            positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import activation_boundary_loss
        >>> print(activation_boundary_loss(jnp.array([[0.5, 0.5]]), jnp.array([[2.0, -2.0]])))
        [2.5]

    References:
        Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons", 2018, arXiv:1811.03233, equation 5.
    """
    name = "activation_boundary_loss"
    _checks.check_number(name, "margin", margin, low=0.0, open_low=True)
    student, teacher = _maps.as_like_maps(name, student_features, teacher_features)
    margin = jnp.asarray(margin, student.dtype)
    gap = jnp.where(teacher > 0, margin - student, margin + student)
    return _maps.sum_per_example(jnp.square(jax.nn.relu(gap)))


def overhaul_loss(student_features: Array, teacher_features: Array, margin: Any) -> Array:
    """Follow what the teacher's ReLU lets through, and stay below a margin where it lets nothing.

    sum of (s - r)^2 wherever s > r or r > 0, r = max(t, m)

    with s the student's and t the teacher's features before their ReLU, and m <= 0 the channel's
    margin, see `batch_norm_margin`. Along each axis the larger map is averaged to the size of the
    smaller.

    Args:
        student_features: [batch, ..., channels], brought to the teacher's width, any floating
            type.
        teacher_features: [batch, ..., channels], before the ReLU; constant, its gradient is zero.
        margin: m, not positive: a number, or an array [channels]; constant likewise.

    Returns:
        [batch], float32 or wider: one value per example, a sum and not a mean.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the numbers of axes, examples or channels differ, or the margin is a
            positive number or has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import overhaul_loss
        >>> student, teacher = jnp.array([[1.0, -2.0, 0.5]]), jnp.array([[3.0, -4.0, -4.0]])
        >>> print(overhaul_loss(student, teacher, -1.0))
        [6.25]

    References:
        Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", 2019,
        arXiv:1904.01866, equations 2 to 4.
    """
    _checks.check_number("overhaul_loss", "margin", margin, high=0.0)
    student, teacher = _maps.as_like_maps("overhaul_loss", student_features, teacher_features)
    margin = _maps.as_channels("overhaul_loss", "margin", margin, student)
    target = jnp.maximum(teacher, jax.lax.stop_gradient(margin))
    counted = (student > target) | (target > 0)
    return _maps.sum_per_example(jnp.where(counted, jnp.square(student - target), 0))


def batch_norm_margin(scale: Array, bias: Array) -> Array:
    """Margins of `overhaul_loss`: a channel's mean where it is negative, from its BatchNorm.

    E[x | x < 0] for x ~ Normal(bias, scale^2); -3 |scale| where x < 0 is rarer than 0.001

    Args:
        scale: [channels], the scale of the teacher's last BatchNorm before the features, any
            floating type.
        bias: [channels], its bias.

    Returns:
        [channels], float32 or wider, not positive.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import batch_norm_margin
        >>> print(batch_norm_margin(jnp.array([1.0]), jnp.array([0.0])))
        [-0.798]

    References:
        Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", 2019,
        arXiv:1904.01866, section 3.1 and its code.
    """
    scale, mean = _checks.as_pair("batch_norm_margin", ("scale", "bias"), scale, bias)
    deviation = jnp.abs(scale)
    constant = deviation == 0
    z = mean / jnp.where(constant, 1, deviation)
    rare = jnp.where(constant, mean >= 0, norm.logcdf(-z) <= math.log(1e-3))
    z = jnp.where(rare, 0, z)
    negative = mean - deviation * jnp.exp(norm.logpdf(z) - norm.logcdf(-z))
    return jnp.where(rare, -3 * deviation, jnp.minimum(negative, 0))
