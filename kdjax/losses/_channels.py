"""Losses made for dense prediction: on the channels of a map, and on the pixels of a class."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, norms, pooling


def channel_wise_loss(
    student_features: Array, teacher_features: Array, *, temperature: float | Array = 4.0
) -> Array:
    """Follow where each channel of the teacher looks: soft targets over positions, not classes.

    T^2 / C * sum over the C channels of KL(softmax(v_c / T) || softmax(z_c / T))

    with z_c and v_c the values of a channel at all positions, the student's and the teacher's. A
    constant added to a channel changes nothing.

    Args:
        student_features: [batch, ..., channels] with at least one axis of positions, such as
            [batch, height, width, channels] or [batch, tokens, width]; any floating type. -inf
            removes a position from a channel.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [batch].

    Returns:
        [batch], nats, float32 or wider: one value per example. +inf where the student excludes a
        position that the teacher does not.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if the shapes differ or have no positions, or the temperature is not positive
            and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import channel_wise_loss
        >>> student = jnp.array([[[1.0], [2.0], [3.0]]])
        >>> teacher = jnp.array([[[3.0], [2.0], [0.0]]])
        >>> print(channel_wise_loss(student, teacher))
        [1.962]

    References:
        Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", 2020,
        arXiv:2011.13256, section 3.
    """
    student, teacher = _by_channel("channel_wise_loss", student_features, teacher_features)
    t = _inputs.as_temperature("channel_wise_loss", temperature, student[:, 0])[..., None]
    t = jnp.broadcast_to(t, (*student.shape[:2], 1))
    divergences = exact.tempered_kl(student, teacher, t)
    return jnp.mean(divergences * jnp.squeeze(t * t, -1), axis=-1)


def inter_channel_correlation_loss(student_features: Array, teacher_features: Array) -> Array:
    """Keep the similarities between channels, which say how diverse the features are.

    1 / C * sum over the rows c of |G_c / |G_c| - H_c / |H_c||^2,  G = F F^T,  H = E E^T

    with F [C, positions] the student's features and E the teacher's. The numbers of positions
    may differ. A row of a channel that is zero everywhere is zero, as is its gradient.

    Args:
        student_features: [batch, ..., channels] with at least one axis of positions, such as
            [batch, height, width, channels] or [batch, tokens, width]; any floating type.
        teacher_features: likewise, with the same batch and channels; constant.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if batch or channels differ, or there is no axis of positions.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import inter_channel_correlation_loss
        >>> student, teacher = jnp.eye(2)[None], jnp.ones((1, 2, 2))
        >>> print(inter_channel_correlation_loss(student, teacher))
        [0.586]

    References:
        Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for
        Diversity-preserved Knowledge Distillation", 2022, arXiv:2202.03680, section 3.

    Differs from the paper: the rows of the correlations are scaled to length one and their squared
    differences divided by the channels once, as in the authors' code, so that the weight does not
    depend on the size of the features.
    """
    name = "inter_channel_correlation_loss"
    student, teacher = _inputs.both(_as_channels, name, (student_features, teacher_features))
    fits = student.shape[:2] == teacher.shape[:2]
    expected = f"the batch and channels of {jnp.shape(student_features)} like student_features"
    _inputs.check_fits(fits, name, "teacher_features", teacher_features, expected)
    gap = _correlations(student) - _correlations(jax.lax.stop_gradient(teacher))
    return jnp.mean(jnp.sum(jnp.square(gap), axis=-1), axis=-1)


def affinity_loss(student_features: Array, teacher_features: Array) -> Array:
    """Keep, within each channel, which positions respond together.

    1 / P * sum over channels of || a a^T - b b^T ||_F,  a = z / |z|,  b = v / |v|

    with z and v the P values of a channel, the student's and the teacher's. The matrices
    [P, P] are never made: with u = a - b and w = a + b their distance is
    sqrt((|u|^2 |w|^2 + (u . w)^2) / 2), which also keeps its digits where a and b are close.

    Args:
        student_features: [batch, ..., channels] with at least one axis of positions, such as
            [batch, height, width, channels] or [batch, tokens, width]; any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if the shapes differ or there is no axis of positions.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import affinity_loss
        >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[0.0], [2.0]]])
        >>> print(affinity_loss(student, teacher))
        [0.707]

    References:
        He, Shen, Tian, Gong, Sun, Yan, "Knowledge Adaptation for Efficient Semantic Segmentation",
        2019, arXiv:1903.04688, section 3.

    Differs from the paper: one affinity matrix for each channel, not one of the positions' whole
    feature vectors, and a norm over each matrix, as in the implementation that is in use
    (torchdistill's); a channel that is zero everywhere has the matrix zero.
    """
    student, teacher = _by_channel("affinity_loss", student_features, teacher_features)
    a, b = norms.normalize(student), norms.normalize(teacher)
    down, up = a - b, a + b
    squares = jnp.sum(jnp.square(down), axis=-1) * jnp.sum(jnp.square(up), axis=-1)
    distances = norms.safe_sqrt((squares + jnp.square(jnp.sum(down * up, axis=-1))) / 2)
    return jnp.sum(distances, axis=-1) / student.shape[-1]


def _by_channel(function: str, student: Array, teacher: Array) -> tuple[Array, Array]:
    """Return [batch, channels, positions] of both, the teacher constant."""
    pair = _inputs.as_pair(function, student, teacher)
    student, teacher = _inputs.both(_as_channels, function, pair)
    return student, jax.lax.stop_gradient(teacher)


def _as_channels(function: str, name: str, features: Array) -> Array:
    """Return [batch, channels, positions] of features [batch, ..., channels]."""
    x = _inputs.as_map(function, name, features)
    return jnp.swapaxes(pooling.positions(x), 1, 2)


def _correlations(x: Array) -> Array:
    """Return the inner products of channels [batch, channels, positions], rows of length one."""
    x = x / norms.unit_of(x, (1, 2))
    return norms.normalize(jnp.einsum("bcp,bdp->bcd", x, x, precision="highest"))


def intra_class_variation_loss(
    student_features: Array, teacher_features: Array, labels: Array, *, num_classes: int
) -> Array:
    """Keep how similar each pixel is to the mean of its class in the image.

    mean over pixels of (cos(z, m) - cos(v, n))^2

    with z and v a pixel's features, the student's and the teacher's, and m and n the means of
    those of its class. Pixels of no class add 0. The two may have different numbers of channels.

    Args:
        student_features: [batch, height, width, student_channels], any floating type.
        teacher_features: [batch, height, width, teacher_channels], likewise; constant.
        labels: integer classes [batch, rows, columns] at any resolution, of which the nearest are
            taken; below 0 or from `num_classes` on, a pixel belongs to no class.
        num_classes: the number of classes.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type or labels not integer.
        ValueError: if a shape does not fit or `num_classes` is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import intra_class_variation_loss
        >>> student, teacher = jnp.eye(2)[None, :, None], jnp.ones((1, 2, 1, 3))
        >>> labels = jnp.zeros((1, 2, 1), jnp.int32)
        >>> print(intra_class_variation_loss(student, teacher, labels, num_classes=1))
        [0.0858]

    References:
        Wang, Zhou, Jiang, Bai, Xu, "Intra-class Feature Variation Distillation for Semantic
        Segmentation", 2020, ECCV.
    """
    name = "intra_class_variation_loss"
    num_classes = _numbers.as_count(name, "num_classes", num_classes)
    student = _inputs.as_image(name, "student_features", student_features)
    teacher = _inputs.as_floats(name, "teacher_features", teacher_features)
    expected = (*student.shape[:3], *teacher.shape[3:])
    like = "student_features but for its channels"
    _inputs.check_shape(name, "teacher_features", teacher, expected, like)
    members = _members(name, labels, student.shape, num_classes)
    gap = _distances(student, members) - _distances(jax.lax.stop_gradient(teacher), members)
    return pooling.mean_per_example(jnp.square(gap))


def _members(function: str, labels: Array, shape: tuple[int, ...], num_classes: int) -> Array:
    """Return [batch, pixels, num_classes], whether a pixel is of a class."""
    labels = _inputs.as_integers(function, "labels", labels)
    fits = labels.ndim == 3 and len(labels) == shape[0]
    _inputs.check_fits(fits, function, "labels", labels, f"[{shape[0]}, rows, columns]")
    # For each pixel the label that PyTorch would take when it resizes.
    rows, columns = (np.arange(shape[i]) * labels.shape[i] // shape[i] for i in (1, 2))
    nearest = labels[:, rows][:, :, columns]
    return jax.nn.one_hot(pooling.flat(nearest), num_classes, dtype=bool)


def _distances(features: Array, members: Array) -> Array:
    """Return 1 - cos(pixel, mean of its class), [batch, pixels]; 0 for pixels of no class."""
    x = pooling.positions(features)
    sums = jnp.einsum("bpk,bpc->bkc", members.astype(x.dtype), x, precision="highest")
    means = sums / jnp.maximum(jnp.sum(members, axis=1, dtype=x.dtype), 1)[..., None]
    own = jnp.einsum("bpk,bkc->bpc", members.astype(x.dtype), means, precision="highest")
    return jnp.where(jnp.any(members, axis=-1), norms.cosine_distance(x, own), 0)
