"""Feature maps of different sizes: [batch, ..., channels], the axes between are positions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import _checks

Array = jax.Array
NAMES = ("student_features", "teacher_features")


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
    student, teacher = one_size("match_sizes", NAMES, student_features, teacher_features)
    return student, teacher


def average_pool(x: Array, sizes: Sequence[int]) -> Array:
    """Average over bins that cover every axis of positions evenly, whatever the sizes.

    Args:
        x: [batch, ..., channels].
        sizes: the new number of positions along each axis between the first and the last. Where
            it does not divide the old one, neighbouring bins share a position.
    """
    for axis, size in enumerate(sizes, start=1):
        x = _pool_axis(x, axis, size)
    return x


def _pool_axis(x: Array, axis: int, size: int) -> Array:
    old = x.shape[axis]
    if old == size:
        return x
    if old % size == 0:
        bins = (*x.shape[:axis], size, old // size, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(bins), axis=axis + 1)
    pooled = jnp.tensordot(
        x, jnp.asarray(_bins(old, size), x.dtype), axes=(axis, 1), precision="highest"
    )
    return jnp.moveaxis(pooled, -1, axis)


def _bins(old: int, size: int) -> np.ndarray:
    """The matrix [size, old] of an average over `size` bins of as nearly one width as can be."""
    bins = np.zeros((size, old))
    for i in range(size):
        first, last = i * old // size, -(-(i + 1) * old // size)
        bins[i, first:last] = 1 / (last - first)
    return bins


def as_maps(function: str, student: Any, teacher: Any) -> list[Array]:
    """Return two feature maps of any widths in one type and size; the teacher's is constant.

    Args:
        function: the public function, for the message.
        student: [batch, ..., student_channels], one axis of positions or more.
        teacher: [batch, ..., teacher_channels], likewise.

    Raises:
        TypeError: if one is not of a floating type.
        ValueError: if there are no positions, or the batch or number of axes differ.
    """
    pair = [as_map(function, n, x) for n, x in zip(NAMES, (student, teacher), strict=True)]
    student, teacher = one_size(function, NAMES, *pair)
    return [student, jax.lax.stop_gradient(teacher)]


def as_like_maps(
    function: str, student: Any, teacher: Any, names: Sequence[str] = NAMES
) -> list[Array]:
    """Return two features of one width in one type and size; the teacher's is constant.

    Args:
        function: the public function, for the message.
        student: [batch, ..., channels], with or without positions.
        teacher: likewise; only the sizes may differ.
        names: the arguments' names, for the message.

    Raises:
        TypeError: if one is not of a floating type.
        ValueError: if the number of axes, examples or channels differ.
    """
    maps = one_size(function, names, student, teacher)
    if maps[0].shape != maps[1].shape:
        raise ValueError(
            f"{function}: {names[1]} has shape {jnp.shape(teacher)}, expected the channels of "
            f"{names[0]}, {jnp.shape(student)}"
        )
    return [maps[0], jax.lax.stop_gradient(maps[1])]


def one_size(function: str, names: Sequence[str], first: Any, second: Any) -> list[Array]:
    """Return two features in one type and size, the larger averaged along each axis.

    Raises:
        TypeError: if one is not of a floating type.
        ValueError: if the batch or number of axes differ, or there is no axis behind the batch.
    """
    pair = [_checks.as_logits(function, n, x) for n, x in zip(names, (first, second), strict=True)]
    one, two = (x.shape for x in pair)
    if len(one) < 2 or len(one) != len(two) or one[0] != two[0]:
        raise ValueError(
            f"{function}: {names[1]} has shape {two}, expected [batch, ..., channels] with the "
            f"number of axes and examples of {names[0]}, {one}"
        )
    wide = jnp.promote_types(pair[0].dtype, pair[1].dtype)
    sizes = [min(n, m) for n, m in zip(one[1:-1], two[1:-1], strict=True)]
    return [average_pool(x.astype(wide), sizes) for x in pair]


def as_channels(function: str, name: str, x: Any, like: Array) -> Array:
    """Return a number or one for each channel, [channels], in the shape and type of features.

    Raises:
        ValueError: if it has another shape.
    """
    x = jnp.asarray(x, like.dtype)
    if x.shape not in ((), like.shape[-1:]):
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, expected () or {like.shape[-1:]}, "
            "one for each channel"
        )
    return jnp.broadcast_to(x, like.shape)


def sum_per_example(x: Array) -> Array:
    """Sum over all axes but the first."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def mean_per_example(x: Array) -> Array:
    """Average over all axes but the first."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def as_map(function: str, name: str, x: Any) -> Array:
    """Return a feature map, [batch, ..., channels], in float32 or wider.

    Raises:
        TypeError: if it is not of a floating type.
        ValueError: if there is no axis of positions.
    """
    x = _checks.as_logits(function, name, x)
    if x.ndim < 3:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, expected [batch, positions..., channels]"
        )
    return x


def absolute(x: Array) -> Array:
    """Return |x| with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return x * jnp.sign(x)
