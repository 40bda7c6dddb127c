"""ShuffleNets for small images, in Linen: grouped or split convolutions, and shuffled channels."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models._blocks import Final, Sum, feature_paths, stages
from kdjax.models._layers import DType, Features, avg_pool, check_classes, layer_fn, logits_of
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
        layer = layer_fn(self.dtype, train, _INIT)
        own = self.width - (x.shape[-1] if self.stride == 2 else 0)
        inner, groups = own // 4, 1 if x.shape[-1] == _STEM_WIDTH else _GROUPS
        y = shuffled(nn.relu(layer(x, inner, 1, 1, "conv_1", feature_group_count=groups)), groups)
        y = nn.relu(layer(y, inner, 3, self.stride, "depthwise", feature_group_count=inner))
        y = layer(y, own, 1, 1, "conv_2", feature_group_count=_GROUPS)
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
        layer = layer_fn(self.dtype, train, _INIT)
        half, channels = self.width // 2, x.shape[-1]
        short, y = (x, x) if self.stride == 2 else jnp.split(x, 2, axis=-1)
        if self.stride == 2:
            short = layer(short, channels, 3, 2, "shortcut_depthwise", feature_group_count=channels)
            short = layer(short, half, 1, 1, "shortcut_conv")
        y = nn.relu(layer(y, half, 1, 1, "conv_1"))
        y = layer(y, half, 3, self.stride, "depthwise", feature_group_count=half)
        y = layer(y, half, 1, 1, "conv_2")
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
        x = _body(inputs, _WIDTHS_V1, self.dtype, train, GroupedBlock)
        return logits_of(x, self.num_classes, self.dtype)


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
        x = _body(inputs, _WIDTHS_V2, self.dtype, train, SplitBlock)
        x = Final(_LAST_WIDTH, self.dtype, _INIT, name="final")(x, train=train)
        return logits_of(x, self.num_classes, self.dtype)


def shufflenet_v1(num_classes: int, *, dtype: DType = None, features: Features = ()) -> Model:
    """Make the ShuffleNet of three groups for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_2/block_7/sum", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.shufflenet_v1(100)
        >>> network.paths.embedding
        'pool'
    """
    check_classes("shufflenet_v1", num_classes)
    paths = feature_paths(_NUM_BLOCKS, "sum", "norm_2")
    return from_linen(ShuffleNetV1(num_classes, dtype), features=features, paths=paths)


def shufflenet_v2(num_classes: int, *, dtype: DType = None, features: Features = ()) -> Model:
    """Make ShuffleNet V2 for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_2/block_7/join", "final", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.shufflenet_v2(100)
        >>> network.paths.embedding
        'pool'
    """
    check_classes("shufflenet_v2", num_classes)
    paths = feature_paths(_NUM_BLOCKS, "join")._replace(last_map="final")
    return from_linen(ShuffleNetV2(num_classes, dtype), features=features, paths=paths)


def shuffled(x: Array, groups: int) -> Array:
    """Return the channels in turn: the first of every group, then the second of every group, ..."""
    dealt = jnp.reshape(x, (*x.shape[:-1], groups, -1))
    return jnp.reshape(jnp.swapaxes(dealt, -1, -2), x.shape)


def _body(
    inputs: Array, widths: Sequence[int], dtype: DType, train: bool, block: Callable[..., nn.Module]
) -> Array:
    """Apply the stem and the stages of both networks, within their `__call__`."""
    x = nn.relu(layer_fn(dtype, train, _INIT)(inputs, _STEM_WIDTH, 1, 1, "stem"))
    return stages(x, widths, _NUM_BLOCKS, dtype, train=train, block=block, first_stride=2)
