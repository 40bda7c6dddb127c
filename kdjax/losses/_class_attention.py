"""Class activation maps: where in an image a network sees each class."""

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _maps, _norms

Array = jax.Array


def class_attention_loss(
    student_features: Array, teacher_features: Array, *, resolution: int = 2, normalize: bool = True
) -> Array:
    """Look at the places that the teacher holds each class responsible for.

    mean over classes and r x r cells of (a / |a| - b / |b|)^2

    with a and b the class activation maps of a class, the student's and the teacher's, averaged
    down to r x r cells. A class activation map holds the logits that the classifier would give to
    each position alone; see `kdjax.models.with_class_maps`. A map that is zero stays zero.

    Args:
        student_features: class activation maps [batch, height, width, num_classes], or any number
            of axes of positions; any floating type.
        teacher_features: likewise; height and width may differ; constant, its gradient is zero.
        resolution: r, the height and width that both are averaged to.
        normalize: whether each map is divided by its norm over the cells.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type, or the resolution is no integer.
        ValueError: if they are no maps, batch or classes differ, or the resolution is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import class_attention_loss
        >>> student = jnp.array([[[3.0], [0.0]], [[0.0], [0.0]]])[None]
        >>> teacher = jnp.array([[[0.0], [0.0]], [[0.0], [2.0]]])[None]
        >>> print(class_attention_loss(student, teacher))
        [0.5]

    References:
        Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", 2023,
        arXiv:2304.12777.
    """
    name = "class_attention_loss"
    if not isinstance(resolution, int) or isinstance(resolution, bool):
        raise TypeError(f"{name}: resolution is {resolution!r}, expected an integer")
    _checks.check_number(name, "resolution", resolution, low=1)
    student = _maps.as_map(name, "student_features", student_features)
    teacher = _maps.as_map(name, "teacher_features", teacher_features)
    if (
        student.ndim != teacher.ndim
        or student.shape[:: student.ndim - 1] != (teacher.shape[:: teacher.ndim - 1])
    ):
        raise ValueError(
            f"{name}: teacher_features has shape {teacher.shape}, expected the axes, batch and "
            f"classes of student_features, {student.shape}"
        )
    cells = (resolution,) * (student.ndim - 2)
    maps = [_maps.average_pool(x, cells) for x in (student, jax.lax.stop_gradient(teacher))]
    if normalize:
        maps = [_norms.normalize(x, range(1, x.ndim - 1)) for x in maps]
    return _maps.mean_per_example(jnp.square(maps[0] - maps[1]))
