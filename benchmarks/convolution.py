"""A weight gradient of our own for convolutions, against XLA's: alone, and in whole steps.

    python -m benchmarks.convolution

Ours is one product of matrices for every two images: the input beside itself, shifted along its
rows, times the gradient beside itself, shifted along its columns, so that either is copied k times
for a k x k kernel and not k x k. Whole steps also without YNNPACK, by an option of the compiler.
Networks for CIFAR, batches of 64, float32, SGD.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import command, ratio
from kdjax import models, step, terms
from kdjax.objective import combine
from kdjax.types import Array

BATCH_SIZE, CHUNK = 64, 2
PLAIN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Leaves convolutions to Eigen. XLA gives some to YNNPACK, which takes longer for their weights."""
SHAPES = [(32, 3, 16, 3, 1), (32, 16, 16, 3, 1), (16, 32, 32, 3, 1), (8, 64, 64, 3, 1)]
SHAPES += [(32, 16, 32, 3, 2), (16, 32, 64, 3, 2), (32, 16, 32, 1, 2)]


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Return XLA's convolution, padded by half a kernel."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def ours(x: Array, kernel: Array, stride: int) -> Array:
    """Return what `convolve` does, with the other weight gradient."""
    return convolve(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = kept
    inputs = jax.linear_transpose(lambda x: convolve(x, kernel, stride), x)(grad)[0]
    return inputs, weight_gradient(x, grad, kernel.shape[0], stride)


ours.defvjp(_forward, _backward)


def weight_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """Return the kernel's gradient [size, size, channels, width], summed over chunks."""

    def add(total: Array, chunk: Any) -> tuple[Array, None]:
        x, grad = chunk
        return total + _of_chunk(x, grad, size, stride), None

    chunks = [jnp.reshape(a, (-1, CHUNK, *a.shape[1:])) for a in (x, grad)]
    zeros = jnp.zeros((size, size, x.shape[-1], grad.shape[-1]), x.dtype)
    return jax.lax.scan(add, zeros, tuple(chunks))[0]


def _of_chunk(x: Array, grad: Array, size: int, stride: int) -> Array:
    (_, height, width, channels), (_, rows, columns, outputs) = x.shape, grad.shape
    # Rows that are `stride` apart are one phase; a phase meets the gradient in `shifts` ways.
    phases, shifts, pad = min(stride, size), -(-size // stride), size // 2
    bottom, right = stride * (rows + shifts - 1), stride * (columns - 1) + size
    after = (max(bottom - height - pad, 0), max(right - width - pad, 0))
    x = jnp.pad(x, ((0, 0), (pad, after[0]), (pad, after[1]), (0, 0)))
    across = [
        x[:, phase:bottom:stride, j : right - size + j + 1 : stride]
        for phase in range(phases)
        for j in range(size)
    ]
    down = [jnp.pad(grad, ((0, 0), (t, shifts - 1 - t), (0, 0), (0, 0))) for t in range(shifts)]
    left, top = (
        jnp.reshape(jnp.concatenate(parts, -1), (-1, len(parts) * parts[0].shape[-1]))
        for parts in (across, down)
    )
    taps = jnp.reshape(left.T @ top, (phases, size, channels, shifts, outputs))
    taps = jnp.transpose(taps, (3, 0, 1, 2, 4))
    return jnp.reshape(taps, (-1, size, channels, outputs))[:size]


def alone(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Time both weight gradients of one convolution, after checking that they agree."""
    side, channels, width, size, stride = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(BATCH_SIZE, side, side, channels)), jnp.float32)
    kernel = jnp.zeros((size, size, channels, width))
    grad = jnp.asarray(rng.normal(size=convolve(x, kernel, stride).shape), jnp.float32)
    stock, other = (
        jax.jit(lambda x, grad, fn=fn: jax.vjp(lambda k: fn(x, k, stride), kernel)[1](grad)[0])
        for fn in (convolve, ours)
    )
    assert np.allclose(stock(x, grad), other(x, grad), rtol=1e-4, atol=1e-2)
    return ratio(
        *(lambda fn=fn: jax.block_until_ready(fn(x, grad)) for fn in (stock, other)), repeats=7
    )


def replace(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Give the convolutions of a network our gradient."""
    module = context.module
    if not isinstance(module, nn.Conv) or context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    stride = module.strides if isinstance(module.strides, int) else 1
    return ours(args[0], module.get_variable("params", "kernel"), stride)


def training(
    depth: int, *, own: bool = False, options: dict[str, str] | None = None
) -> Callable[[], None]:
    """Return a function that takes a step of a residual network, from labels.

    Args:
        depth: its layers.
        own: whether weight gradients are ours.
        options: of the compiler.
    """
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(BATCH_SIZE, 32, 32, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 100, BATCH_SIZE), jnp.int32),
    }
    model, optimizer = models.resnet(depth, 100), optax.sgd(0.1, momentum=0.9)
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, None)
    run = step.make_train_step(model, objective, optimizer)
    with nn.intercept_methods(replace) if own else nullcontext():
        lowered = run.lower(state, batch, None)  # type: ignore[attr-defined]
    compiled = lowered.compile(options)

    def steps() -> None:
        nonlocal state
        state, _ = compiled(state, batch, None)
        jax.block_until_ready(state)

    return steps


def main() -> None:
    """Print the ratios."""
    for shape in SHAPES:
        stock, own, quotient = alone(shape)
        print(f"{shape}: {stock * 1e3:.1f} ms against {own * 1e3:.1f} ms, ratio {quotient:.2f}")
    for depth in (8, 20):
        as_it_is = training(depth)
        others = {
            "ours": training(depth, own=True),
            "without YNNPACK": training(depth, options=PLAIN),
        }
        for what, other in others.items():
            stock, own, quotient = ratio(as_it_is, other, repeats=11)
            print(
                f"resnet{depth}, {what}: {stock * 1e3:.0f} ms against {own * 1e3:.0f} ms, "
                f"ratio {quotient:.2f}"
            )


if __name__ == "__main__":
    command(main, __doc__)
