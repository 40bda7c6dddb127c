"""VGG networks with BatchNorm for small images, in Linen."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from kdjax.models._blocks import Stage, feature_paths
from kdjax.models._layers import DType, Features, check_classes, layer_fn, logits_of, max_pool
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_WIDTHS = (64, 128, 256, 512, 512)
_LARGE = 64  # pixels from which on the last stage is pooled before, too


class ConvBlock(nn.Module):
    """A 3x3 convolution with a bias, BatchNorm and ReLU: `conv` and `norm`."""

    width: int
    stride: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels]."""
        layer = layer_fn(self.dtype, train)
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
    """
    sizes = tuple(stage_sizes)
    if len(sizes) != len(_WIDTHS) or min(sizes) < 1:
        raise ValueError(f"vgg: stage_sizes is {sizes}, expected five positive numbers")
    check_classes("vgg", num_classes)
    # The first stage is the stem to methods.
    paths = feature_paths(sizes[1:], "norm", "norm")
    return from_linen(VGG(sizes, num_classes, dtype), features=features, paths=paths)


vgg8 = functools.partial(vgg, stage_sizes=(1, 1, 1, 1, 1))
vgg13 = functools.partial(vgg, stage_sizes=(2, 2, 2, 2, 2))
