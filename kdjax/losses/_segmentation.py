"""Losses that a label for every pixel makes possible."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import _checks, _maps, _norms

Array = jax.Array


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
    names = ("student_features", "teacher_features")
    _checks.check_number(name, "num_classes", num_classes, low=1)
    student = _checks.as_logits(name, names[0], student_features)
    teacher = _checks.as_logits(name, names[1], teacher_features)
    if student.ndim != 4:
        raise ValueError(
            f"{name}: {names[0]} has shape {student.shape}, "
            "expected [batch, height, width, channels]"
        )
    expected = (*student.shape[:3], *teacher.shape[3:])
    _checks.check_shape(name, names[1], teacher.shape, expected, f"{names[0]} but for its channels")
    members = _members(name, labels, student.shape, num_classes)
    gap = _distances(student, members) - _distances(jax.lax.stop_gradient(teacher), members)
    return _maps.mean_per_example(jnp.square(gap))


def _members(function: str, labels: Array, shape: tuple[int, ...], num_classes: int) -> Array:
    """Return [batch, pixels, num_classes], whether a pixel is of a class."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{function}: labels has dtype {labels.dtype}, expected integer")
    if labels.ndim != 3 or labels.shape[0] != shape[0]:
        raise ValueError(
            f"{function}: labels has shape {labels.shape}, expected [{shape[0]}, rows, columns]"
        )
    rows, columns = (_nearest(labels.shape[axis], shape[axis]) for axis in (1, 2))
    nearest = labels[:, rows][:, :, columns]
    return jax.nn.one_hot(nearest.reshape(shape[0], -1), num_classes, dtype=bool)


def _nearest(old: int, new: int) -> np.ndarray:
    """Return, for each of `new` rows, which of the `old` ones it takes: as PyTorch resizes."""
    return np.arange(new) * old // new


def _distances(features: Array, members: Array) -> Array:
    """Return 1 - cos(pixel, mean of its class), [batch, pixels]; 0 for pixels of no class."""
    x = features.reshape(*members.shape[:2], -1)
    sums = jnp.einsum("bpk,bpc->bkc", members.astype(x.dtype), x, precision="highest")
    means = sums / jnp.maximum(jnp.sum(members, axis=1), 1)[..., None].astype(x.dtype)
    own = jnp.einsum("bpk,bkc->bpc", members.astype(x.dtype), means, precision="highest")
    return jnp.where(jnp.any(members, axis=-1), _norms.cosine_distance(x, own), 0)
