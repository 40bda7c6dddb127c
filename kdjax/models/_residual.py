"""Residual networks, in Linen: for small images, of bottlenecks, and for large images."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from kdjax.models._blocks import BasicBlock, Bottleneck, feature_paths, stages
from kdjax.models._layers import DType, Features, check_sizes, layer_fn, logits_of, max_pool
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_WIDTHS = (16, 16, 32, 64)
_WIDTHS_X4 = (32, 64, 128, 256)
_STEM_WIDTH = 64  # of the networks of bottlenecks and of those for large images


class ResNet(nn.Module):
    """The residual network for small images: 6n + 2 layers, the widths of its stem and stages.

    Modules: `stem`, `stem_norm`, `stage_1/block_0` to `stage_3`, `pool` (the embedding), `head`;
    within a block `conv_1`, `norm_1`, `conv_2`, `norm_2`, `shortcut_conv`, `shortcut_norm`, `sum`
    (before the last ReLU).

    Differs from the paper: where the shape changes, the shortcut is a 1x1 convolution with
    BatchNorm, as in the tables of the distillation literature, not a strided copy.

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
        arXiv:1512.03385, section 4.2.
    """

    depth: int
    num_classes: int
    dtype: DType = None
    widths: Sequence[int] = _WIDTHS

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = nn.relu(layer_fn(self.dtype, train)(inputs, self.widths[0], 3, 1, "stem"))
        x = stages(x, self.widths[1:], _num_blocks(self.depth), self.dtype, train=train)
        return logits_of(x, self.num_classes, self.dtype)


class BottleneckResNet(nn.Module):
    """The residual network of bottlenecks, for small images: stages of 256, 512, 1024, ...

    The stem is a 3x3 convolution that keeps the size; every stage but the first halves it.
    Modules: `stem`, `stem_norm`, `stage_1/block_0`, ..., `stage_4`, `pool` (the embedding), `head`;
    within a block those of `ResNet`, `conv_3` and `norm_3`.

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
        arXiv:1512.03385, table 1.

    Differs from the paper: the stem, for images of 32 pixels, and the stride, which the 3x3
    convolution has, as in the tables of the distillation literature.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = nn.relu(layer_fn(self.dtype, train)(inputs, _STEM_WIDTH, 3, 1, "stem"))
        widths = [_STEM_WIDTH * 2**i for i in range(len(self.stage_sizes))]
        x = stages(x, widths, self.stage_sizes, self.dtype, train=train, block=Bottleneck)
        return logits_of(x, self.num_classes, self.dtype)


class ImageNetResNet(nn.Module):
    """The residual network for large images: a strided stem, then stages of 64, 128, 256, ...

    With `bottlenecks` its stages are four times as wide: 256, 512, 1024, ...

    The stem and its pooling leave a quarter of the pixels a side, every stage but the first halves
    them. Modules: `stem`, `stem_norm`, `stage_1/block_0`, ..., `stage_4`, `pool` (the embedding),
    `head`; within a block those of `ResNet`.

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
        arXiv:1512.03385, table 1, with projections where the shape changes.

    Differs from the paper: the 3x3 convolution of a bottleneck has the stride, as in torchvision.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: DType = None
    bottlenecks: bool = False

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = nn.relu(layer_fn(self.dtype, train)(inputs, _STEM_WIDTH, 7, 2, "stem"))
        x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        widths = [_STEM_WIDTH * 2**i for i in range(len(self.stage_sizes))]
        block = Bottleneck if self.bottlenecks else BasicBlock
        x = stages(x, widths, self.stage_sizes, self.dtype, train=train, block=block)
        return logits_of(x, self.num_classes, self.dtype)


def resnet(
    depth: int,
    num_classes: int,
    *,
    widths: Sequence[int] = _WIDTHS,
    dtype: DType = None,
    features: Features = (),
) -> Model:
    """Make the residual network for small images, [batch, height, width, channels].

    Args:
        depth: the number of layers, 6n + 2.
        num_classes: the number of logits.
        widths: channels of the stem and of the three stages; those of `resnet8x4` and
            `resnet32x4` are four times the usual, but for the stem.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_2/block_0", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if the depth is not 6n + 2, the widths are not four positive numbers, or
            `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.resnet(8, 10)
        >>> network.paths.stages
        ('stage_1', 'stage_2', 'stage_3')
    """
    widths = tuple(widths)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet: depth is {depth}, expected 6n + 2: 8, 14, 20, ...")
    if len(widths) != len(_WIDTHS) or min(widths) < 1:
        raise ValueError(f"resnet: widths is {widths}, expected four positive numbers")
    sizes = check_sizes("resnet", _num_blocks(depth), num_classes)
    paths = feature_paths(sizes, "sum", "norm_2")
    return from_linen(ResNet(depth, num_classes, dtype, widths), features=features, paths=paths)


def bottleneck_resnet(
    num_classes: int, *, stage_sizes: Sequence[int], dtype: DType = None, features: Features = ()
) -> Model:
    """Make a residual network of bottlenecks for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        stage_sizes: the number of blocks in each stage.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_4/block_0", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if a stage has no block, there is no stage, or `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.bottleneck_resnet(10, stage_sizes=(3, 4, 6, 3))
        >>> network.paths.stages
        ('stage_1', 'stage_2', 'stage_3', 'stage_4')
    """
    sizes = check_sizes("bottleneck_resnet", stage_sizes, num_classes)
    paths = feature_paths(sizes, "sum", "norm_3")
    return from_linen(BottleneckResNet(sizes, num_classes, dtype), features=features, paths=paths)


def imagenet_resnet(
    num_classes: int,
    *,
    stage_sizes: Sequence[int],
    bottlenecks: bool = False,
    dtype: DType = None,
    features: Features = (),
) -> Model:
    """Make a residual network for large images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        stage_sizes: the number of blocks in each stage.
        bottlenecks: whether blocks are bottlenecks, as in `resnet50` and deeper ones.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_4/block_0", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if a stage has no block, there is no stage, or `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.imagenet_resnet(1000, stage_sizes=(2, 2, 2, 2))
        >>> network.paths.last_map
        'stage_4'
    """
    sizes = check_sizes("imagenet_resnet", stage_sizes, num_classes)
    paths = feature_paths(sizes, "sum", "norm_3" if bottlenecks else "norm_2")
    module = ImageNetResNet(sizes, num_classes, dtype, bottlenecks)
    return from_linen(module, features=features, paths=paths)


resnet8 = functools.partial(resnet, 8)
resnet14 = functools.partial(resnet, 14)
resnet20 = functools.partial(resnet, 20)
resnet32 = functools.partial(resnet, 32)
resnet44 = functools.partial(resnet, 44)
resnet56 = functools.partial(resnet, 56)
resnet110 = functools.partial(resnet, 110)
resnet8x4 = functools.partial(resnet, 8, widths=_WIDTHS_X4)
resnet32x4 = functools.partial(resnet, 32, widths=_WIDTHS_X4)
cifar_resnet50 = functools.partial(bottleneck_resnet, stage_sizes=(3, 4, 6, 3))
resnet18 = functools.partial(imagenet_resnet, stage_sizes=(2, 2, 2, 2))
resnet34 = functools.partial(imagenet_resnet, stage_sizes=(3, 4, 6, 3))
resnet50 = functools.partial(imagenet_resnet, stage_sizes=(3, 4, 6, 3), bottlenecks=True)
resnet101 = functools.partial(imagenet_resnet, stage_sizes=(3, 4, 23, 3), bottlenecks=True)


def _num_blocks(depth: int) -> tuple[int, ...]:
    return ((depth - 2) // 6,) * 3
