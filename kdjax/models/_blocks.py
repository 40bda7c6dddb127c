"""Blocks and stages that networks of convolutions are built of, and where their features are."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn

from kdjax.models._layers import HE_INIT, DType, Initializer, layer_fn
from kdjax.types import Array, FeaturePaths

EXPANSION = 4  # of a bottleneck: how much wider its output is than its inside


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, projected where the shape changes."""

    width: int
    stride: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels], after the last ReLU."""
        layer = layer_fn(self.dtype, train)
        y = nn.relu(layer(x, self.width, 3, self.stride, "conv_1"))
        y = layer(y, self.width, 3, 1, "conv_2")
        if x.shape[-1] != self.width or self.stride != 1:
            x = layer(x, self.width, 1, self.stride, "shortcut_conv")
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
        layer, wide = layer_fn(self.dtype, train), EXPANSION * self.width
        y = nn.relu(layer(x, self.width, 1, 1, "conv_1"))
        y = nn.relu(layer(y, self.width, 3, self.stride, "conv_2"))
        y = layer(y, wide, 1, 1, "conv_3")
        if x.shape[-1] != wide or self.stride != 1:
            x = layer(x, wide, 1, self.stride, "shortcut_conv")
        return nn.relu(Sum(name="sum")(x, y))


class Sum(nn.Module):
    """The sum of a shortcut and its block, a module so that what the ReLU sees can be captured."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Return x + y."""
        return x + y


class Stage(nn.Module):
    """Blocks one after another, `block_0`, `block_1`, ..., given as what makes each of a name."""

    blocks: Sequence[Callable[..., nn.Module]]

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return the last block's output."""
        for i, block in enumerate(self.blocks):
            x = block(name=f"block_{i}")(x, train=train)
        return x


class Final(nn.Module):
    """What comes between the last stage and the pooling: a 1x1 convolution, BatchNorm and ReLU.

    Modules: `conv` and `norm`.
    """

    width: int
    dtype: DType = None
    kernel_init: Initializer = HE_INIT
    relu: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height, width, self.width]."""
        layer = layer_fn(self.dtype, train, self.kernel_init)
        return self.relu(layer(x, self.width, 1, 1, "conv"))


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
        block: makes a block of a width, a stride, a type and a name.
        first_stride: of the first stage; 1 keeps the size.
    """
    for i, (width, num_blocks) in enumerate(zip(widths, sizes, strict=True)):
        strides = [first_stride if i == 0 else 2] + [1] * (num_blocks - 1)
        blocks = [functools.partial(block, width, stride, dtype) for stride in strides]
        x = Stage(blocks, name=f"stage_{i + 1}")(x, train=train)
    return x


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
