"""The layers of what terms learn: plain functions of plain arrays.

Such a network is trained with the student and thrown away, and only ever runs in training.
BatchNorm therefore takes the statistics of the batch, of the examples that count, and keeps none:
a term with it couples the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax.metrics import positions_of
from kdjax.types import Array, PyTree

_INIT = jax.nn.initializers.lecun_normal()


def init_linear(key: Array, inputs: int, outputs: int, *, bias: bool = True) -> PyTree:
    """Return `kernel` [inputs, outputs] and `bias` [outputs]."""
    return _init(key, (inputs, outputs), bias)


def linear(params: PyTree, x: Array) -> Array:
    """Map the last axis: a dense layer, and on images a 1x1 convolution."""
    y = jnp.einsum("...i,ij->...j", _wide(x, params), params["kernel"])
    return _with_bias(params, y)


def init_conv(key: Array, inputs: int, outputs: int, size: int, *, bias: bool = True) -> PyTree:
    """Return `kernel` [size, size, inputs, outputs] and `bias` [outputs]."""
    return _init(key, (size, size, inputs, outputs), bias)


def conv(params: PyTree, x: Array) -> Array:
    """Convolve [batch, height, width, inputs], keeping the size by zeros around it."""
    y = jax.lax.conv_general_dilated(
        _wide(x, params),
        params["kernel"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return _with_bias(params, y)


def _init(key: Array, shape: tuple[int, ...], bias: bool) -> PyTree:
    kernel = {"kernel": _INIT(key, shape, jnp.float32)}
    return kernel | ({"bias": jnp.zeros(shape[-1], jnp.float32)} if bias else {})


def _wide(x: Array, params: PyTree) -> Array:
    return x.astype(jnp.promote_types(x.dtype, params["kernel"].dtype))


def _with_bias(params: PyTree, y: Array) -> Array:
    return y + jnp.broadcast_to(params["bias"], y.shape) if "bias" in params else y


def init_norm(width: int) -> PyTree:
    """Return `scale` and `bias`, [width]."""
    return {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}


def batch_norm(params: PyTree, x: Array, mask: Array, *, eps: float = 1e-5) -> Array:
    """Normalize every channel over the examples that count, and their positions that do.

    Args:
        params: `scale` and `bias`, [channels].
        x: [batch, ..., channels].
        mask: [batch], or [batch, positions...], boolean.
        eps: added to the variance.
    """
    counts = jnp.broadcast_to(positions_of(mask, x)[..., None], x.shape)
    mean = _mean(x, counts)
    centered = x - jnp.broadcast_to(mean, x.shape)
    variance = jnp.broadcast_to(_mean(jnp.square(centered), counts), x.shape)
    scale, bias = (jnp.broadcast_to(params[name], x.shape) for name in ("scale", "bias"))
    return centered * jax.lax.rsqrt(variance + eps) * scale + bias


def then_norm(
    layer: Callable[[PyTree, Array], Array], params: PyTree, x: Array, mask: Array
) -> Array:
    """Apply a layer without bias and BatchNorm, of `kernel`, `scale` and `bias` in one place."""
    return batch_norm(params, layer({"kernel": params["kernel"]}, x), mask)


def _mean(x: Array, counts: Array) -> Array:
    axes = tuple(range(x.ndim - 1))
    total = jnp.sum(jnp.where(counts, x, 0), axis=axes)
    return total / jnp.maximum(jnp.sum(counts, axis=axes), 1).astype(x.dtype)


def init_connector(key: Array, inputs: int, outputs: int) -> PyTree:
    """Return `connect`, a linear map without bias, and `norm`, the BatchNorm behind it."""
    return {"connect": init_linear(key, inputs, outputs, bias=False), "norm": init_norm(outputs)}


def connect(params: PyTree, x: Array, mask: Array) -> Array:
    """Bring features to another width: a 1x1 convolution, then BatchNorm over the batch."""
    return batch_norm(params["norm"], linear(params["connect"], x), mask)
