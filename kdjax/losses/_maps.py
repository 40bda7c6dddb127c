"""Losses that compare one feature map with another, entry by entry: before or after a ReLU."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import norms, pooling


def match_sizes(student_features: Array, teacher_features: Array) -> tuple[Array, Array]:
    """Bring two feature maps to one size: along each axis, average the larger to the smaller.

    out[i] = mean of in[floor(i n / m)], ..., in[ceil((i + 1) n / m) - 1] for n positions to m

    Args:
        student_features: [batch, ..., student_channels], with or without axes of positions
            between, any floating type.
        teacher_features: [batch, ..., teacher_channels], with as many.

    Returns:
        Both, of one type, float32 or wider, and alike in all axes but the last. Both have their
        gradient.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the number of axes or examples differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import match_sizes
        >>> student, teacher = match_sizes(jnp.ones((2, 8, 4, 3)), jnp.ones((2, 4, 6, 5)))
        >>> student.shape, teacher.shape
        ((2, 4, 4, 3), (2, 4, 4, 5))

    References:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019, arXiv:1910.10699,
        whose code brings maps to one size in this way.
    """
    return _inputs.as_one_size("match_sizes", student_features, teacher_features)


def hint_loss(student_features: Array, teacher_features: Array) -> Array:
    """Return the mean squared difference of two features, the student's projected.

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
    student, teacher = _inputs.as_features("hint_loss", student_features, teacher_features)
    return pooling.mean_per_example(jnp.square(student - teacher))


def factor_transfer_loss(
    student_factors: Array, teacher_factors: Array, *, power: float | Array = 1
) -> Array:
    """Match the teacher's factors, up to their size.

    mean over all but the first axis of |a / ||a||_2 - b / ||b||_2|^power

    with a the student's factors of one example and b the teacher's, and the norm over all of them.
    Along each axis of positions the larger map is averaged to the size of the smaller.

    Args:
        student_factors: [batch, ..., channels], what a translator makes of the student's features,
            any floating type.
        teacher_factors: [batch, ..., channels], what a paraphraser makes of the teacher's;
            constant, its gradient is zero.
        power: at least 1.

    Returns:
        [batch], float32 or wider: one value per example. Factors that are all zero stay zero, and
        have no gradient.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the numbers of axes, examples or channels differ, or the power is less than
            1.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import factor_transfer_loss
        >>> print(factor_transfer_loss(jnp.array([[3.0, 4.0]]), jnp.array([[8.0, 6.0]])))
        [0.2]

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977, equation 3.

    Differs from the paper: the mean over the factors, as its code has it, and not the norm.
    """
    name, names = "factor_transfer_loss", ("student_factors", "teacher_factors")
    pair = _inputs.as_like_maps(name, student_factors, teacher_factors, names)
    power = _numbers.as_number(name, "power", power, pair[0].dtype, _numbers.FROM_ONE)
    student, teacher = (norms.normalize(x, tuple(range(1, x.ndim))) for x in pair)
    return pooling.mean_per_example(norms.absolute(student - teacher) ** power)


def activation_boundary_loss(
    student_features: Array, teacher_features: Array, *, margin: float | Array = 1.0
) -> Array:
    """Fire the neurons that fire in the teacher, however strongly.

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
    student, teacher = _inputs.as_like_maps(name, student_features, teacher_features)
    margin = _numbers.as_number(name, "margin", margin, student.dtype, _numbers.POSITIVE)
    gap = jnp.where(teacher > 0, margin - student, margin + student)
    gap = _numbers.poisoned(gap, teacher)
    return pooling.sum_per_example(jnp.square(jax.nn.relu(gap)))


def overhaul_loss(student_features: Array, teacher_features: Array, margin: float | Array) -> Array:
    """Follow what the teacher's ReLU lets through, and stay below a margin where it lets nothing.

    sum of (s - r)^2 wherever s > r or r > 0, r = max(t, m)

    with s the student's and t the teacher's features before their ReLU, and m <= 0 the channel's
    margin, see `batch_norm_margin`. Along each axis the larger map is averaged to the size of the
    smaller.

    Args:
        student_features: [batch, ..., channels], brought to the teacher's width, any floating
            type.
        teacher_features: [batch, ..., channels], before the ReLU; constant, its gradient is zero.
        margin: m, not positive: a number, or an array [channels]; constant, too.

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
    student, teacher = _inputs.as_like_maps("overhaul_loss", student_features, teacher_features)
    margin = _inputs.as_channels("overhaul_loss", "margin", margin, student, _numbers.NOT_POSITIVE)
    target = jnp.maximum(teacher, jax.lax.stop_gradient(margin))
    counted = ~((student <= target) & (target <= 0))  # a margin of nan counts
    return pooling.sum_per_example(jnp.where(counted, jnp.square(student - target), 0))


def batch_norm_margin(scale: Array, bias: Array) -> Array:
    """Return margins of `overhaul_loss`: a channel's mean where negative, from its BatchNorm.

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
    # Loaded by the few who need it: it is the slowest import that this package would have.
    from jax.scipy.stats import norm

    scale, mean = _inputs.as_pair("batch_norm_margin", scale, bias, ("scale", "bias"))
    deviation = jnp.abs(scale)
    constant = deviation == 0
    z = mean / jnp.where(constant, 1, deviation)
    rare = jnp.where(constant, mean >= 0, norm.logcdf(-z) <= math.log(1e-3))
    z = jnp.where(rare, 0, z)
    negative = mean - deviation * jnp.exp(norm.logpdf(z) - norm.logcdf(-z))
    return jnp.where(rare, -3 * deviation, jnp.minimum(negative, 0))
