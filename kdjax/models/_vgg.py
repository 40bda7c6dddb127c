"""VGG networks, in Linen: with BatchNorm for small images, and as the paper's for large ones."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kdjax.models._blocks import Stage, feature_paths
from kdjax.models._layers import (
    DType,
    Features,
    check_classes,
    check_rates,
    head,
    layer_fn,
    logits_of,
    max_pool,
)
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_WIDTHS = (64, 128, 256, 512, 512)
_SIDE, _HIDDEN = 7, 4096  # of the last map, and of the linear layers, for large images
_LARGE = 64  # pixels from which on the last stage is pooled before, too


class ConvBlock(nn.Module):
    """A 3x3 convolution with a bias, perhaps BatchNorm, and ReLU: `conv` and `norm`."""

    width: int
    stride: int = 1
    dtype: DType = None
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels]."""
        layer = layer_fn(self.dtype, train, batch_norm=self.batch_norm)
        return nn.relu(layer(x, self.width, 3, self.stride, "conv", use_bias=True))


class VGG(nn.Module):
    """Five stages of 3x3 convolutions of 64, 128, 256, 512 and 512 channels, pooled between.

    The largest of every 2 x 2 positions is kept before each stage but the first, and before the
    last only where images have 64 pixels a side or more: on 32 the last two see 4 x 4 positions.
    Modules: `stage_0/block_0` (in place of a stem) to `stage_4`, `pool` (the embedding), `head`;
    within a block `conv` and `norm`.

    References:
        Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        2014, arXiv:1409.1556, table 1.

    Differs from the paper: BatchNorm, and the mean over all positions with one linear layer in
    place of the last pooling and three, as in the tables of the distillation literature.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x, last = inputs, len(_WIDTHS) - 1
        for i, (width, num_blocks) in enumerate(zip(_WIDTHS, self.stage_sizes, strict=True)):
            if 0 < i < last or (i == last and min(inputs.shape[1:3]) >= _LARGE):
                x = max_pool(x, (2, 2), strides=(2, 2))
            blocks = [functools.partial(ConvBlock, width, 1, self.dtype)] * num_blocks
            x = Stage(blocks, name=f"stage_{i}")(x, train=train)
        return logits_of(x, self.num_classes, self.dtype)


def vgg(
    num_classes: int, *, stage_sizes: Sequence[int], dtype: DType = None, features: Features = ()
) -> Model:
    """Make a VGG network with BatchNorm for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        stage_sizes: the number of convolutions in each of the five stages.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_0", "stage_4/block_0/norm", "pool", ...

    Returns:
        A model, for images of 8 pixels a side or more.

    Raises:
        ValueError: if the sizes are not five positive numbers, or `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.vgg(100, stage_sizes=(1, 1, 1, 1, 1))
        >>> network.paths.stages
        ('stage_1', 'stage_2', 'stage_3', 'stage_4')
    """
    sizes = _sizes("vgg", stage_sizes, num_classes)
    # The first stage is the stem to methods.
    paths = feature_paths(sizes[1:], "norm", "norm")
    return from_linen(VGG(sizes, num_classes, dtype), features=features, paths=paths)


class ImageNetVGG(nn.Module):
    """Five stages of 3x3 convolutions, each pooled, then three linear layers, for large images.

    Modules: `stage_0/block_0` to `stage_4`; `hidden_0`, `drop_0`, `hidden_1`, `drop_1` (the
    embedding), `head`; within a block `conv`, and `norm` with BatchNorm.

    References:
        Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        2014, arXiv:1409.1556, table 1.

    Differs from the paper: BatchNorm, if it is wanted, and images of any size: the last map is
    averaged to 7 x 7, both as in torchvision.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    batch_norm: bool = False
    dropout: float = 0.5
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x, block = inputs, functools.partial(ConvBlock, dtype=self.dtype)
        for i, (width, num_blocks) in enumerate(zip(_WIDTHS, self.stage_sizes, strict=True)):
            blocks = [functools.partial(block, width, batch_norm=self.batch_norm)] * num_blocks
            x = Stage(blocks, name=f"stage_{i}")(x, train=train)
            x = max_pool(x, (2, 2), strides=(2, 2))
        # Channels first: the order of the weights that others have trained.
        x = jnp.transpose(_averaged(x, _SIDE), (0, 3, 1, 2)).reshape(len(x), -1)
        for i in range(2):
            x = nn.relu(nn.Dense(_HIDDEN, dtype=self.dtype, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(x)
        return head(self.num_classes, self.dtype)(x)


def imagenet_vgg(
    num_classes: int,
    *,
    stage_sizes: Sequence[int],
    batch_norm: bool = False,
    dropout: float = 0.5,
    dtype: DType = None,
    features: Features = (),
) -> Model:
    """Make a VGG network for large images, [batch, height, width, channels], of 32 pixels or more.

    Args:
        num_classes: the number of logits.
        stage_sizes: the number of convolutions in each of the five stages.
        batch_norm: whether each has BatchNorm behind it.
        dropout: share of the hidden units of the linear layers that are dropped in training.
        dtype: as for `vgg`.
        features: paths to capture: "stage_0", "stage_4/block_0", "drop_1", ...

    Returns:
        A model.

    Raises:
        ValueError: if the sizes are not five positive numbers, the dropout is no rate, or
            `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.imagenet_vgg(1000, stage_sizes=(1, 1, 2, 2, 2))
        >>> network.paths.head
        'head'
    """
    sizes = _sizes("imagenet_vgg", stage_sizes, num_classes)
    check_rates("imagenet_vgg", dropout=dropout)
    end, norm = ("norm", "norm") if batch_norm else ("conv", "")
    paths = feature_paths(sizes[1:], end, norm)._replace(embedding="drop_1")
    module = ImageNetVGG(sizes, num_classes, batch_norm, dropout, dtype)
    return from_linen(module, features=features, paths=paths)


def _sizes(name: str, stage_sizes: Sequence[int], num_classes: int) -> tuple[int, ...]:
    sizes = tuple(stage_sizes)
    if len(sizes) != len(_WIDTHS) or min(sizes) < 1:
        raise ValueError(f"{name}: stage_sizes is {sizes}, expected five positive numbers")
    check_classes(name, num_classes)
    return sizes


def _averaged(x: Array, side: int) -> Array:
    """Return means over parts of maps, [batch, side, side, channels]; parts overlap by a pixel.

    Part i goes from floor(i n / side) to ceil((i + 1) n / side).
    """
    for axis in (1, 2):
        size, i = x.shape[axis], np.arange(side)
        if size == side:
            continue
        starts, ends = i * size // side, -(-(i + 1) * size // side)
        at = np.arange(size)
        within = (at >= starts[:, None]) & (at < ends[:, None])
        shares = (within / (ends - starts)[:, None]).astype(x.dtype)
        x = jnp.moveaxis(jnp.tensordot(shares, x, (1, axis)), 0, axis)
    return x


vgg8 = functools.partial(vgg, stage_sizes=(1, 1, 1, 1, 1))
vgg13 = functools.partial(vgg, stage_sizes=(2, 2, 2, 2, 2))
imagenet_vgg11 = functools.partial(imagenet_vgg, stage_sizes=(1, 1, 2, 2, 2))
imagenet_vgg13 = functools.partial(imagenet_vgg, stage_sizes=(2, 2, 2, 2, 2))
imagenet_vgg16 = functools.partial(imagenet_vgg, stage_sizes=(2, 2, 3, 3, 3))
imagenet_vgg19 = functools.partial(imagenet_vgg, stage_sizes=(2, 2, 4, 4, 4))
