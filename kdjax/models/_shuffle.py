"""ShuffleNets for small images, in Linen: grouped or split convolutions, and shuffled channels."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models._blocks import (
    DType,
    Final,
    Pool,
    Sum,
    avg_pool,
    check_classes,
    conv,
    feature_paths,
    head,
    norm,
    stages,
)
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_NUM_BLOCKS = (4, 8, 4)
_STEM_WIDTH = 24
_WIDTHS_V1, _GROUPS = (240, 480, 960), 3
_WIDTHS_V2, _LAST_WIDTH = (116, 232, 464), 1024
# Uniform up to 1 / sqrt(inputs), which PyTorch starts from and the tables with it.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class GroupedBlock(nn.Module):
    """A grouped 1x1, a depthwise 3x3 and a grouped 1x1 convolution, shuffled after the first.

    Where the size halves, the shortcut is an average over 3x3 positions, whose channels are put
    behind the others; elsewhere it is added. The 1x1 convolution that sees the stem has one group.
    """

    width: int
    stride: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, width], after the last ReLU."""
        named, layer = norm(self.dtype, train), layer_of(self.dtype)
        own = self.width - (x.shape[-1] if self.stride == 2 else 0)
        inner, groups = own // 4, 1 if x.shape[-1] == _STEM_WIDTH else _GROUPS
        y = layer(inner, 1, 1, name="conv_1", groups=groups)(x)
        y = shuffled(nn.relu(named(name="norm_1")(y)), groups)
        y = layer(inner, 3, self.stride, name="depthwise", groups=inner)(y)
        y = nn.relu(named(name="depthwise_norm")(y))
        y = layer(own, 1, 1, name="conv_2", groups=_GROUPS)(y)
        y = named(name="norm_2")(y)
        if self.stride == 1:
            return nn.relu(Sum(name="sum")(x, y))
        x = avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return nn.relu(jnp.concatenate([y, x], axis=-1))


class SplitBlock(nn.Module):
    """Half of the channels go by, half through 1x1, depthwise 3x3 and 1x1 convolutions.

    Where the size halves, all channels go both ways: through these, and through a depthwise and a
    1x1 convolution. In the end the channels of both ways are shuffled.
    """

    width: int
    stride: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, width], after the last ReLU."""
        named, layer = norm(self.dtype, train), layer_of(self.dtype)
        half, channels = self.width // 2, x.shape[-1]
        short, y = (x, x) if self.stride == 2 else jnp.split(x, 2, axis=-1)
        if self.stride == 2:
            short = layer(channels, 3, 2, name="shortcut_depthwise", groups=channels)(short)
            short = named(name="shortcut_depthwise_norm")(short)
            short = layer(half, 1, 1, name="shortcut_conv")(short)
            short = named(name="shortcut_norm")(short)
        y = layer(half, 1, 1, name="conv_1")(y)
        y = nn.relu(named(name="norm_1")(y))
        y = layer(half, 3, self.stride, name="depthwise", groups=half)(y)
        y = named(name="depthwise_norm")(y)
        y = layer(half, 1, 1, name="conv_2")(y)
        y = named(name="norm_2")(y)
        # The half that is passed on is the output of a ReLU, which a second ReLU does not change.
        return nn.relu(Join(name="join")(short, y))


class Join(nn.Module):
    """Two ways joined, a module so that what the ReLU sees can be captured."""

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Return the channels of x and y in turn."""
        return shuffled(jnp.concatenate([x, y], axis=-1), 2)


class ShuffleNetV1(nn.Module):
    """ShuffleNet of three groups for small images: stages of 240, 480 and 960 channels.

    The stem keeps the size, every stage halves it. Modules: `stem`, `stem_norm`,
    `stage_1/block_0` to `stage_3`, `pool` (the embedding), `head`; within a block `conv_1`,
    `norm_1`, `depthwise`, `depthwise_norm`, `conv_2`, `norm_2`, `sum`.

    References:
        Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
        Mobile Devices", 2017, arXiv:1707.01083, table 1.

    Differs from the paper: the stem is a 1x1 convolution, and a ReLU follows the depthwise
    convolutions, as in the tables of the distillation literature.
    """

    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = stem(inputs, self.dtype, train)
        x = stages(
            x, _WIDTHS_V1, _NUM_BLOCKS, self.dtype, train=train, block=GroupedBlock, first_stride=2
        )
        return head(self.num_classes, self.dtype)(Pool(name="pool")(x))


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2 for small images: stages of 116, 232 and 464 channels.

    The stem keeps the size, every stage halves it. Modules: `stem`, `stem_norm`,
    `stage_1/block_0` to `stage_3`, `final` (the last 1x1 convolution, `final/conv` and
    `final/norm`), `pool` (the embedding), `head`; within a block `conv_1`, `norm_1`, `depthwise`,
    `depthwise_norm`, `conv_2`, `norm_2`, `join`, and in the first of a stage
    `shortcut_depthwise`, `shortcut_depthwise_norm`, `shortcut_conv`, `shortcut_norm`.

    References:
        Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
        Design", 2018, arXiv:1807.11164, table 5.

    Differs from the paper: the stem is a 1x1 convolution, as in the tables of the distillation
    literature.
    """

    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = stem(inputs, self.dtype, train)
        x = stages(
            x, _WIDTHS_V2, _NUM_BLOCKS, self.dtype, train=train, block=SplitBlock, first_stride=2
        )
        x = Final(_LAST_WIDTH, self.dtype, _INIT, name="final")(x, train=train)
        return head(self.num_classes, self.dtype)(Pool(name="pool")(x))


def shufflenet_v1(num_classes: int, *, dtype: DType = None, features: Sequence[str] = ()) -> Model:
    """Make the ShuffleNet of three groups for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        dtype: what the convolutions compute in, for example `jnp.bfloat16`; parameters, BatchNorm
            statistics and logits are float32 all the same. None: the inputs' type, float32 at
            least.
        features: paths to capture: "stage_1", "stage_2/block_7/sum", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if `num_classes` is not positive.
    """
    check_classes("shufflenet_v1", num_classes)
    paths = feature_paths(_NUM_BLOCKS, "sum", "norm_2")
    return from_linen(ShuffleNetV1(num_classes, dtype), features=features, paths=paths)


def shufflenet_v2(num_classes: int, *, dtype: DType = None, features: Sequence[str] = ()) -> Model:
    """Make ShuffleNet V2 for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        dtype: what the convolutions compute in, for example `jnp.bfloat16`; parameters, BatchNorm
            statistics and logits are float32 all the same. None: the inputs' type, float32 at
            least.
        features: paths to capture: "stage_1", "stage_2/block_7/join", "final", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if `num_classes` is not positive.
    """
    check_classes("shufflenet_v2", num_classes)
    paths = feature_paths(_NUM_BLOCKS, "join")._replace(last_map="final")
    return from_linen(ShuffleNetV2(num_classes, dtype), features=features, paths=paths)


def stem(inputs: Array, dtype: DType, train: bool) -> Array:
    """Call the first convolution of both, within their `__call__`."""
    x = layer_of(dtype)(_STEM_WIDTH, 1, 1, name="stem")(inputs)
    return nn.relu(norm(dtype, train)(name="stem_norm")(x))


def layer_of(dtype: DType) -> functools.partial[nn.Conv]:
    """Make what makes a convolution when it is given its size and a name."""
    return functools.partial(conv, dtype=dtype, kernel_init=_INIT)


def shuffled(x: Array, groups: int) -> Array:
    """Deal the channels: the first of every group, then the second of every group, ..."""
    dealt = jnp.reshape(x, (*x.shape[:-1], groups, -1))
    return jnp.reshape(jnp.swapaxes(dealt, -1, -2), x.shape)
