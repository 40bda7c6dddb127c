"""Masked generation: the student's features, partly hidden, have to make the teacher's whole."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import pooling


def channel_mask(key: Array, features: Array, *, mask_ratio: float | Array) -> Array:
    """Draw which channels of each example are kept: the masks of image classification.

    keep with probability 1 - mask_ratio, independently

    Args:
        key: a PRNG key.
        features: [batch, height, width, channels], for the shape.
        mask_ratio: the expected share that is hidden, in [0, 1].

    Returns:
        [batch, 1, 1, channels], bool: True where the features are kept.

    Raises:
        ValueError: if the features are no map or the ratio is not in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kdjax.losses import channel_mask
        >>> print(channel_mask(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), mask_ratio=0.0))
        [[[[ True  True]]]]

    References:
        Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", 2022, arXiv:2205.01529,
        section 3.
    """
    return _mask("channel_mask", key, features, mask_ratio, (0, 3))


def position_mask(key: Array, features: Array, *, mask_ratio: float | Array) -> Array:
    """Draw which positions of each example are kept: the masks of detection and segmentation.

    keep with probability 1 - mask_ratio, independently

    Args:
        key: a PRNG key.
        features: [batch, height, width, channels], for the shape.
        mask_ratio: the expected share that is hidden, in [0, 1].

    Returns:
        [batch, height, width, 1], bool: True where the features are kept.

    Raises:
        ValueError: if the features are no map or the ratio is not in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kdjax.losses import position_mask
        >>> print(position_mask(jax.random.key(0), jnp.zeros((1, 1, 2, 4)), mask_ratio=1.0))
        [[[[False]
           [False]]]]

    References:
        Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", 2022, arXiv:2205.01529,
        section 3.
    """
    return _mask("position_mask", key, features, mask_ratio, (0, 1, 2))


def masked_generation_loss(
    student_features: Array, teacher_features: Array, keep: Array, generator: Mapping[str, Array]
) -> Array:
    """Generate the teacher's features from what a mask leaves of the student's.

    sum of (conv(relu(conv(keep * z))) - v)^2

    with z and v the features, the student's and the teacher's, and two 3x3 convolutions. What is
    kept is not scaled up.

    Args:
        student_features: [batch, height, width, channels], projected to the teacher's channels;
            any floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        keep: broadcastable to them, as `channel_mask` and `position_mask` draw it.
        generator: `kernel_1`, `bias_1`, `kernel_2` and `bias_2`: kernels [3, 3, channels, channels]
            and biases [channels].

    Returns:
        [batch], float32 or wider: one value per example, a sum over all its features.

    Raises:
        TypeError: if features are not of a floating type.
        ValueError: if the shapes differ, the features are no maps, or the mask does not broadcast.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import masked_generation_loss
        >>> x, same = jnp.ones((1, 2, 2, 1)), jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
        >>> generator = {"kernel_1": same, "kernel_2": same}
        >>> generator |= {"bias_1": jnp.zeros(1), "bias_2": jnp.zeros(1)}
        >>> keep = jnp.array([[True, False], [True, True]])[None, ..., None]
        >>> print(masked_generation_loss(x, x, keep, generator))
        [1.]

    References:
        Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", 2022, arXiv:2205.01529,
        section 3.
    """
    name = "masked_generation_loss"
    student, teacher = _inputs.as_pair(name, student_features, teacher_features)
    student = _inputs.as_image(name, "student_features", student)
    keep = jnp.asarray(keep)
    sizes = zip(keep.shape, student.shape, strict=False)
    fits = keep.ndim == 4 and all(k in (1, n) for k, n in sizes)
    expected = f"one that broadcasts to {student.shape} like student_features"
    _inputs.check_fits(fits, name, "keep", keep, expected)
    x = jnp.where(jnp.broadcast_to(keep, student.shape).astype(bool), student, 0)
    x = jax.nn.relu(_convolve(x, generator["kernel_1"], generator["bias_1"]))
    x = _convolve(x, generator["kernel_2"], generator["bias_2"])
    return pooling.sum_per_example(jnp.square(x - jax.lax.stop_gradient(teacher)))


def _mask(
    function: str, key: Array, features: Array, ratio: float | Array, axes: tuple[int, ...]
) -> Array:
    expected = "[batch, height, width, channels]"
    _inputs.check_fits(jnp.ndim(features) == 4, function, "features", features, expected)
    ratio = _numbers.as_number(function, "mask_ratio", ratio, jnp.float32, _numbers.SHARE)
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(features.shape))
    return jax.random.uniform(key, shape) >= ratio


def _convolve(x: Array, kernel: Array, bias: Array) -> Array:
    kernel, bias = jnp.asarray(kernel).astype(x.dtype), jnp.asarray(bias).astype(x.dtype)
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return y + jnp.broadcast_to(bias, y.shape)
