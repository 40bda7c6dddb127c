"""What networks of convolutions are built of: layers, blocks, and stages of blocks."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.types import Array, FeaturePaths

DType = DTypeLike | None
Initializer = Callable[..., Array]
# Flax has no types for these two.
max_pool: Callable[..., Array] = nn.max_pool
avg_pool: Callable[..., Array] = nn.avg_pool

HE_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
EXPANSION = 4  # of a bottleneck: how much wider its output is than its inside


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, projected where the shape changes."""

    width: int
    stride: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels], after the last ReLU."""
        named = norm(self.dtype, train)
        y = conv(self.width, 3, self.stride, self.dtype, "conv_1")(x)
        y = nn.relu(named(name="norm_1")(y))
        y = conv(self.width, 3, 1, self.dtype, "conv_2")(y)
        y = named(name="norm_2")(y)
        if x.shape[-1] != self.width or self.stride != 1:
            x = conv(self.width, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = named(name="shortcut_norm")(x)
        return nn.relu(Sum(name="sum")(x, y))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, four times as wide at the end, and a shortcut.

    The 3x3 convolution has the stride.
    """

    width: int
    stride: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, 4 width], after the last ReLU."""
        named, wide = norm(self.dtype, train), EXPANSION * self.width
        y = conv(self.width, 1, 1, self.dtype, "conv_1")(x)
        y = nn.relu(named(name="norm_1")(y))
        y = conv(self.width, 3, self.stride, self.dtype, "conv_2")(y)
        y = nn.relu(named(name="norm_2")(y))
        y = conv(wide, 1, 1, self.dtype, "conv_3")(y)
        y = named(name="norm_3")(y)
        if x.shape[-1] != wide or self.stride != 1:
            x = conv(wide, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = named(name="shortcut_norm")(x)
        return nn.relu(Sum(name="sum")(x, y))


class Sum(nn.Module):
    """The sum of a shortcut and its block, a module so that what the ReLU sees can be captured."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Return x + y."""
        return x + y


class Stage(nn.Module):
    """Blocks of one width: `block_0` (which changes the shape), `block_1`, ..."""

    width: int
    num_blocks: int
    stride: int = 1
    dtype: DType = None
    block: Callable[..., nn.Module] = BasicBlock

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return the last block's output."""
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            x = self.block(self.width, stride, self.dtype, name=f"block_{i}")(x, train=train)
        return x


class Final(nn.Module):
    """What comes between the last stage and the pooling: a 1x1 convolution, BatchNorm and ReLU.

    Modules: `conv` and `norm`.
    """

    width: int
    dtype: DType = None
    kernel_init: Initializer = HE_INIT

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height, width, self.width]."""
        x = conv(self.width, 1, 1, self.dtype, "conv", kernel_init=self.kernel_init)(x)
        return nn.relu(norm(self.dtype, train)(name="norm")(x))


class Pool(nn.Module):
    """The mean over all positions, a module so that the embedding can be captured."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return [batch, channels]."""
        return jnp.mean(x, axis=(1, 2))


def stages(
    x: Array,
    widths: Sequence[int],
    sizes: Sequence[int],
    dtype: DType,
    *,
    train: bool,
    block: Callable[..., nn.Module] = BasicBlock,
    first_stride: int = 1,
) -> Array:
    """Call `stage_1`, `stage_2`, ... within a network's `__call__`; each halves what it sees.

    Args:
        x: [batch, height, width, channels].
        widths: of every stage.
        sizes: the number of blocks in each.
        dtype: what they compute in.
        train: whether this is training.
        block: makes a block of a width and a stride.
        first_stride: of the first stage; 1 keeps the size.
    """
    for i, (width, num_blocks) in enumerate(zip(widths, sizes, strict=True)):
        stride = first_stride if i == 0 else 2
        x = Stage(width, num_blocks, stride, dtype, block, name=f"stage_{i + 1}")(x, train=train)
    return x


def conv(
    width: int,
    size: int,
    stride: int,
    dtype: DType,
    name: str,
    *,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer = HE_INIT,
) -> nn.Conv:
    """Make a convolution of odd size, padded alike on every side."""
    # "SAME" would pad an even image on one side only at stride 2.
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def norm(dtype: DType, train: bool) -> functools.partial[nn.BatchNorm]:
    """Make what makes a BatchNorm when it is given a name."""
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )


def head(num_classes: int, dtype: DType) -> nn.Dense:
    """Make the classifier, whose logits are float32 at least."""
    # Rounding logits to half precision moves them by more than student and teacher may differ.
    wide = None if dtype is None else jnp.promote_types(dtype, jnp.float32)
    return nn.Dense(num_classes, dtype=wide, name="head")


def feature_paths(num_blocks: Sequence[int], preactivation: str, norm: str = "") -> FeaturePaths:
    """Return where a network has its features whose stages are maps and end with a ReLU.

    Args:
        num_blocks: in `stage_1`, `stage_2`, ...
        preactivation: the module of a stage's last block that returns what this ReLU sees.
        norm: the BatchNorm of that block right before this ReLU, if the ReLU sees nothing else.
    """
    names = tuple(f"stage_{i}" for i in range(1, len(num_blocks) + 1))
    ends = [f"{stage}/block_{n - 1}" for stage, n in zip(names, num_blocks, strict=True)]
    return FeaturePaths(
        stages=names,
        preactivations=tuple(f"{block}/{preactivation}" for block in ends),
        embedding="pool",
        head="head",
        spatial=True,
        last_map=names[-1],
        norms=tuple(f"{block}/{norm}" for block in ends if norm),
    )


def check_sizes(function: str, stage_sizes: Sequence[int], num_classes: int) -> tuple[int, ...]:
    """Return the stages' sizes, or raise a ValueError unless they and the classes are positive."""
    sizes = tuple(stage_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{function}: stage_sizes is {sizes}, expected positive numbers")
    check_classes(function, num_classes)
    return sizes


def check_classes(function: str, num_classes: int) -> None:
    """Raise a ValueError unless there is a class."""
    if num_classes < 1:
        raise ValueError(f"{function}: num_classes is {num_classes}, expected at least 1")
