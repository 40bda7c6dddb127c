"""Losses on what a classifier reads: its direction, its uncertainty, what is predicted from it."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import norms, pooling


def cosine_loss(student_features: Array, teacher_features: Array) -> Array:
    """Point where the teacher's features point, whatever their length.

    mean over positions of 1 - cos(z, v)

    with z and v the features at a position. It is computed as half the squared distance of the
    unit vectors, which keeps its digits where they nearly agree. Against a feature that is zero,
    which has no direction, the distance is 1 and the gradient 0; two that are zero agree.

    Args:
        student_features: [batch, ..., width], such as [batch, width], [batch, tokens, width] or
            [batch, height, width, channels]; any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.

    Returns:
        [batch], float32 or wider, between 0 and 2: one value per example.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if the shapes differ or there is no axis behind the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import cosine_loss
        >>> print(cosine_loss(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])))
        [0.4]

    References:
        Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT: smaller, faster,
        cheaper and lighter", 2019, arXiv:1910.01108, section 2.
    """
    pair = student_features, teacher_features
    student, teacher = _inputs.as_features("cosine_loss", *pair, width=", width")
    both_zero = jnp.all((student == 0) & (teacher == 0), axis=-1)
    distances = jnp.where(both_zero, 0, norms.cosine_distance(student, teacher))
    return pooling.mean_per_example(distances)


def projected_feature_loss(student_features: Array, teacher_features: Array) -> Array:
    """Match the teacher's map after a projection, whatever the sizes of both (SimKD).

    mean over positions and channels of (z - v)^2

    Where heights or widths differ, the larger map is averaged to the size of the smaller.

    Args:
        student_features: [batch, ..., channels], projected to the teacher's channels; any floating
            type.
        teacher_features: likewise; only the sizes between may differ; constant.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if the number of axes, batch or channels differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import projected_feature_loss
        >>> student, teacher = jnp.ones((1, 1, 1, 1)), jnp.array([[[[2.0], [4.0]]]])
        >>> print(projected_feature_loss(student, teacher))
        [4.]

    References:
        Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher
        Classifier", 2022, arXiv:2203.14001, section 3.
    """
    pair = _inputs.as_like_maps("projected_feature_loss", student_features, teacher_features)
    return pooling.mean_per_example(jnp.square(pair[0] - pair[1]))


def prime_aware_loss(
    student_features: Array,
    teacher_features: Array,
    log_variances: Array,
    *,
    eps: float | Array = 1e-6,
) -> Array:
    """Regress the teacher's embedding where the student can, and pay for the rest as uncertainty.

    mean of (v - z)^2 / (eps + exp(s)) + s

    with s the logarithm of the variance that the student predicts for each entry: examples that
    are out of its reach weigh less.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        log_variances: [batch, ...], of the same shape; it has a gradient.
        eps: a positive number, the least variance.

    Returns:
        [batch], float32 or wider: one value per example; it may be negative.

    Raises:
        TypeError: if an array is not of a floating type.
        ValueError: if the shapes differ, there is no axis behind the batch, or eps is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import prime_aware_loss
        >>> student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])
        >>> print(prime_aware_loss(student, teacher, jnp.array([[0.0, 1.0]])))
        [1.24]

    References:
        Zhang, Lan, Dai, Zeng, Bai, Chang, Wei, "Prime-Aware Adaptive Distillation", 2020,
        arXiv:2008.01458.
    """
    name = "prime_aware_loss"
    pair = student_features, teacher_features
    student, teacher = _inputs.as_features(name, *pair, width=", width")
    uncertainty = _inputs.as_floats(name, "log_variances", log_variances)
    _inputs.check_shape(name, "log_variances", uncertainty, student.shape, "student_features")
    eps = _numbers.as_number(name, "eps", eps, student.dtype, _numbers.POSITIVE)
    # 1 / (eps + exp(s)), whose derivative would be inf / inf for a large s.
    floor = math.log(eps) if isinstance(eps, int | float) else jnp.log(eps)
    weights = jnp.exp(-jnp.logaddexp(uncertainty, jnp.asarray(floor, uncertainty.dtype)))
    values = jnp.square(teacher - student) * weights + uncertainty
    return pooling.mean_per_example(values)


def softmax_regression_loss(
    student_features: Array,
    teacher_features: Array,
    student_logits: Array,
    teacher_logits: Array,
    *,
    feature_weight: float | Array = 1.0,
    logit_weight: float | Array = 1.0,
) -> Array:
    """Make features on which the teacher's own classifier says what it says of the teacher's.

    f * mean of (pool(z) - pool(v))^2 + g * mean over classes of (a - b)^2

    with z and v the features, averaged over all positions, and a and b the logits that the
    teacher's classifier gives to z and v; f and g are the weights.

    Args:
        student_features: [batch, ..., width], projected to the teacher's width; any floating type.
            [batch, width] is taken as pooled already.
        teacher_features: likewise; its positions may differ; constant, its gradient is zero.
        student_logits: [batch, num_classes], the teacher's classifier on the pooled student's
            features.
        teacher_logits: likewise, of the same shape; constant.
        feature_weight: f, a number of at least 0, or an array.
        logit_weight: g, likewise.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if an array is not of a floating type.
        ValueError: if batch, width or classes differ, or a weight is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import softmax_regression_loss
        >>> student, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])
        >>> logits = jnp.array([[3.0, 0.0]]), jnp.array([[5.0, 2.0]])
        >>> print(softmax_regression_loss(student, teacher, *logits))
        [6.]

    References:
        Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression
        Representation Learning", 2021, openreview ZzwDy_wiWv, section 3.
    """
    name = "softmax_regression_loss"
    pair = _inputs.both(_pooled, name, (student_features, teacher_features))
    student, teacher = _inputs.as_features(name, *pair, width=", width")
    own, taught = _inputs.as_pair(name, student_logits, teacher_logits, _inputs.LOGITS)
    expected = (student.shape[0], *own.shape[1:])
    _inputs.check_shape(name, "student_logits", own, expected, "the examples of student_features")
    by_feature = jnp.mean(jnp.square(student - teacher), axis=-1)
    by_logit = jnp.mean(jnp.square(own - jax.lax.stop_gradient(taught)), axis=-1)
    by_feature = _inputs.weighted(name, "feature_weight", feature_weight, by_feature)
    return by_feature + _inputs.weighted(name, "logit_weight", logit_weight, by_logit)


def _pooled(function: str, name: str, features: Array) -> Array:
    """Average features [batch, ..., width] over all positions."""
    x = _inputs.as_floats(function, name, features)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
