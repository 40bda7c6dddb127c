"""MobileNetV2, in Linen, for small and large images: inverted bottlenecks, depthwise inside."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from kdjax.models._blocks import Final, Stage, Sum, feature_paths
from kdjax.models._layers import DType, Features, check_classes, layer_fn, logits_of
from kdjax.models._linen import from_linen
from kdjax.types import Array, FeaturePaths, Model

_STEM_WIDTH, _LAST_WIDTH = 32, 1280


class Row(NamedTuple):
    """Blocks of one width: by how much they are wider inside, their number, the first's stride."""

    expansion: int
    width: int
    repeats: int
    stride: int


STAGES = (
    (Row(1, 16, 1, 1), Row(6, 24, 2, 1)),
    (Row(6, 32, 3, 2),),
    (Row(6, 64, 4, 2), Row(6, 96, 3, 1)),
    (Row(6, 160, 3, 2), Row(6, 320, 1, 1)),
)
_LARGE_STAGES = ((Row(1, 16, 1, 1), Row(6, 24, 2, 2)), *STAGES[1:])


class InvertedBlock(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions with BatchNorm, wide inside; no ReLU at the end.

    There is a shortcut where the shape stays. For `large` images ReLU ends at 6, and what is not
    wider inside has no first convolution.
    """

    width: int
    stride: int
    expansion: int
    dtype: DType = None
    large: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels]."""
        layer, inner = layer_fn(self.dtype, train), self.expansion * x.shape[-1]
        y, relu = x, nn.relu6 if self.large else nn.relu
        if self.expansion > 1 or not self.large:
            y = relu(layer(x, inner, 1, 1, "conv_1"))
        y = relu(layer(y, inner, 3, self.stride, "depthwise", feature_group_count=inner))
        y = layer(y, self.width, 1, 1, "conv_2")
        return y if x.shape != y.shape else Sum(name="sum")(x, y)


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images: a stem that halves them, then four stages, three of which do.

    Modules: `stem`, `stem_norm`, `stage_1/block_0` to `stage_4`, `final` (the last 1x1 convolution,
    `final/conv` and `final/norm`), `pool` (the embedding), `head`; within a block `conv_1`,
    `norm_1`, `depthwise`, `depthwise_norm`, `conv_2`, `norm_2`, `sum`. A stage's output is linear,
    not that of a ReLU.

    References:
        Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
        Bottlenecks", 2018, arXiv:1801.04381, table 2.

    Differs from the paper: as in the tables of the distillation literature the blocks of 24
    channels have no stride, ReLU has no upper limit, and the first block has the 1x1 convolution
    that others need to widen. For `large` images none of that is so, and the channels are
    multiples of 8, as in torchvision; the paper's dropout before the classifier is left out.
    """

    num_classes: int
    width_multiplier: float = 0.5
    dtype: DType = None
    large: bool = False

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        factor, relu = self.width_multiplier, nn.relu6 if self.large else nn.relu
        layer, width = layer_fn(self.dtype, train), _eights if self.large else int
        x = relu(layer(inputs, width(_STEM_WIDTH * factor), 3, 2, "stem"))
        for i, rows in enumerate(_LARGE_STAGES if self.large else STAGES, start=1):
            blocks = [
                functools.partial(block, dtype=self.dtype, large=self.large)
                for row in rows
                for block in _blocks_of(row, width(row.width * factor))
            ]
            x = Stage(blocks, name=f"stage_{i}")(x, train=train)
        last = width(_LAST_WIDTH * max(1.0, factor))
        x = Final(last, self.dtype, relu=relu, name="final")(x, train=train)
        return logits_of(x, self.num_classes, self.dtype)


def mobilenet_v2(
    num_classes: int, *, width_multiplier: float = 0.5, dtype: DType = None, features: Features = ()
) -> Model:
    """Make MobileNetV2 for small images, [batch, height, width, channels], of half the width.

    Args:
        num_classes: the number of logits.
        width_multiplier: what the channels are multiplied by, rounded down; the last ones, 1280,
            do not become fewer. 0.5 is what the tables of the distillation literature have.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_2/block_0", "final", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if the multiplier leaves a block without channels, or `num_classes` is not
            positive.

    Example:
        >>> from kdjax import models
        >>> network = models.mobilenet_v2(100)
        >>> network.paths.last_map
        'final'
    """
    _check("mobilenet_v2", num_classes, width_multiplier)
    module = MobileNetV2(num_classes, width_multiplier, dtype)
    return from_linen(module, features=features, paths=_paths())


def imagenet_mobilenet_v2(
    num_classes: int, *, width_multiplier: float = 1.0, dtype: DType = None, features: Features = ()
) -> Model:
    """Make MobileNetV2 for large images, [batch, height, width, channels], as torchvision has it.

    Args:
        num_classes: the number of logits.
        width_multiplier: what the channels are multiplied by, then rounded to multiples of 8; the
            last ones, 1280, do not become fewer.
        dtype: as for `mobilenet_v2`.
        features: paths to capture: "stage_1", "stage_2/block_0", "final", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if the multiplier is less than 1/16, or `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.imagenet_mobilenet_v2(1000)
        >>> network.paths.last_map
        'final'
    """
    _check("imagenet_mobilenet_v2", num_classes, width_multiplier)
    module = MobileNetV2(num_classes, width_multiplier, dtype, large=True)
    return from_linen(module, features=features, paths=_paths())


def _check(name: str, num_classes: int, width_multiplier: float) -> None:
    if not width_multiplier * STAGES[0][0].width >= 1:
        raise ValueError(f"{name}: width_multiplier is {width_multiplier}, expected at least 1/16")
    check_classes(name, num_classes)


def _paths() -> FeaturePaths:
    paths = feature_paths([sum(row.repeats for row in rows) for rows in STAGES], "norm_2", "norm_2")
    # No ReLU ends a stage: its map is what comes before one.
    return paths._replace(preactivations=paths.stages, last_map="final")


def _blocks_of(row: Row, width: int) -> list[Callable[..., nn.Module]]:
    strides = [row.stride] + [1] * (row.repeats - 1)
    return [functools.partial(InvertedBlock, width, x, row.expansion) for x in strides]


def _eights(width: float) -> int:
    """Round to a multiple of 8, but down by a tenth at most."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
