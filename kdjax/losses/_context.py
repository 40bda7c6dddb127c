"""Features compared at several resolutions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _maps

Array = jax.Array


def hierarchical_context_loss(
    student_features: Array, teacher_features: Array, *, levels: Sequence[int] = (4, 2, 1)
) -> Array:
    """Mean squared difference of two feature maps, and of what is left of them further away.

    (h(d) + h(pool_1(d)) / 2 + h(pool_2(d)) / 4 + ...) / (1 + 1/2 + 1/4 + ...)

    with d the difference of the maps, h the mean of its squares, and pool_i its average over as
    many bins along each axis as the i-th level says. Levels that would not make the map smaller
    are left out, and the weights move up.

    Args:
        student_features: [batch, ..., channels], fused and projected to the teacher's shape, any
            floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        levels: bins along each axis, positive.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if a feature is not of a floating type, or a level not an integer.
        ValueError: if the shapes differ, there is no axis behind the batch, or a level is not
            positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import hierarchical_context_loss
        >>> student, teacher = jnp.array([[[1.0], [3.0]]]), jnp.array([[[1.0], [1.0]]])
        >>> print(hierarchical_context_loss(student, teacher))
        [1.667]

    References:
        Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044,
        section 3.3 and figure 3.
    """
    name, names = "hierarchical_context_loss", ("student_features", "teacher_features")
    for level in levels:
        _check_level(name, level)
    student, teacher = _checks.as_pair(name, names, student_features, teacher_features)
    if student.ndim < 2:
        raise ValueError(
            f"{name}: student_features has shape {student.shape}, expected [batch, ...]"
        )
    gap = student - jax.lax.stop_gradient(teacher)
    total, weights, weight = _maps.mean_per_example(jnp.square(gap)), 1.0, 1.0
    for level in levels:
        sizes = [min(level, size) for size in gap.shape[1:-1]]
        if tuple(sizes) != gap.shape[1:-1]:
            weight /= 2
            weights += weight
            total += weight * _maps.mean_per_example(jnp.square(_maps.average_pool(gap, sizes)))
    return total / weights


def _check_level(name: str, level: int) -> None:
    if isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(f"{name}: levels has {level!r}, expected integers")
    if level < 1:
        raise ValueError(f"{name}: levels has {level}, expected 1 or more")
