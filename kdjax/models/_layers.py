"""Layers that networks of convolutions are built of, and the checks of their sizes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.types import Array

DType = DTypeLike | None
Features = Sequence[str]
"""Paths of the modules whose outputs to capture."""

Initializer = Callable[..., Array]
# Flax has no types for these two.
max_pool: Callable[..., Array] = nn.max_pool
avg_pool: Callable[..., Array] = nn.avg_pool

HE_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Pool(nn.Module):
    """The mean over all positions, a module so that the embedding can be captured."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return [batch, channels]."""
        return jnp.mean(x, axis=(1, 2))


def conv(width: int, size: int, stride: int, dtype: DType, name: str, **others: Any) -> nn.Conv:
    """Make a convolution of odd size, padded alike on every side; `others` are for `nn.Conv`."""
    given: dict[str, Any] = {"use_bias": False, "kernel_init": HE_INIT, **others}
    # "SAME" would pad an even image on one side only at stride 2.
    return nn.Conv(width, (size, size), stride, size // 2, dtype=dtype, name=name, **given)


def layer_fn(
    dtype: DType, train: bool, kernel_init: Initializer = HE_INIT, *, batch_norm: bool = True
) -> Callable[..., Array]:
    """Make a function that applies a convolution and BatchNorm, within a module's `__call__`.

    `layer(x, width, size, stride, name)` takes what else `conv` does by keyword. The BatchNorm of
    `conv_1` is `norm_1`, that of `stem` is `stem_norm`.
    """

    def layer(x: Array, width: int, size: int, stride: int, name: str, **others: Any) -> Array:
        x = conv(width, size, stride, dtype, name, kernel_init=kernel_init, **others)(x)
        if not batch_norm:
            return x
        named = name.replace("conv", "norm") if "conv" in name else f"{name}_norm"
        y: Array = norm(dtype, train)(name=named)(x)
        return y

    return layer


def norm(dtype: DType, train: bool) -> functools.partial[nn.BatchNorm]:
    """Return the class of BatchNorm with all settings but its name."""
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )


def logits_of(x: Array, num_classes: int, dtype: DType) -> Array:
    """Apply `pool` and the classifier `head` to the last map, within a network's `__call__`."""
    return head(num_classes, dtype)(Pool(name="pool")(x))


def head(num_classes: int, dtype: DType, *, name: str = "head", **others: Any) -> nn.Dense:
    """Make the classifier, whose logits are float32 at least; `others` are for `nn.Dense`."""
    # Rounding logits to half precision moves them by more than student and teacher may differ.
    wide = None if dtype is None else jnp.promote_types(dtype, jnp.float32)
    return nn.Dense(num_classes, dtype=wide, name=name, **others)


def check_sizes(function: str, stage_sizes: Sequence[int], num_classes: int) -> tuple[int, ...]:
    """Return the stages' sizes, or raise a ValueError unless they and the classes are positive."""
    sizes = tuple(stage_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{function}: stage_sizes is {sizes}, expected positive numbers")
    check_classes(function, num_classes)
    return sizes


def check_rates(function: str, **rates: float) -> None:
    """Raise a ValueError unless these are shares of what is dropped."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{function}: {name} is {rate}, expected a rate in [0, 1)")


def check_classes(function: str, num_classes: int) -> None:
    """Raise a ValueError unless there is a class."""
    if num_classes < 1:
        raise ValueError(f"{function}: num_classes is {num_classes}, expected at least 1")
