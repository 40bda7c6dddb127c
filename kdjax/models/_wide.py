"""Wide residual networks for small images, in Linen: BatchNorm and ReLU before the convolutions."""

import functools

import flax.linen as nn

from kdjax.models._blocks import Sum, feature_paths, stages
from kdjax.models._layers import DType, Features, check_classes, conv, logits_of, norm
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_STEM_WIDTH = 16
_NUM_STAGES = 3


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, and a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of what the first convolution sees.
    """

    width: int
    stride: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height / stride, width / stride, channels], a sum without a ReLU."""
        named = norm(self.dtype, train)
        active = nn.relu(named(name="norm_0")(x))
        y = conv(self.width, 3, self.stride, self.dtype, "conv_1")(active)
        y = nn.relu(named(name="norm_1")(y))
        y = conv(self.width, 3, 1, self.dtype, "conv_2")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, self.dtype, "shortcut_conv")(active)
        return Sum(name="sum")(x, y)


class Activation(nn.Module):
    """BatchNorm and ReLU, a module so that the map that is averaged can be captured."""

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return relu(norm(x))."""
        return nn.relu(norm(self.dtype, train)(name="norm")(x))


class WideResNet(nn.Module):
    """The wide residual network for small images: 6n + 4 layers, stages of 16, 32 and 64 times k.

    Modules: `stem`, `stage_1/block_0` to `stage_3`, `final` (the last BatchNorm, `final/norm`, and
    its ReLU), `pool` (the embedding), `head`; within a block `norm_0`, `conv_1`, `norm_1`,
    `conv_2`, `shortcut_conv`, `sum`. A stage's output is a sum that the next BatchNorm sees, not
    the output of a ReLU.

    References:
        Zagoruyko, Komodakis, "Wide Residual Networks", 2016, arXiv:1605.07146, table 1.
    """

    depth: int
    num_classes: int
    widen_factor: int = 1
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = conv(_STEM_WIDTH, 3, 1, self.dtype, "stem")(inputs)
        widths = [_STEM_WIDTH * self.widen_factor * 2**i for i in range(_NUM_STAGES)]
        sizes = _num_blocks(self.depth)
        x = stages(x, widths, sizes, self.dtype, train=train, block=WideBlock)
        x = Activation(self.dtype, name="final")(x, train=train)
        return logits_of(x, self.num_classes, self.dtype)


def wide_resnet(
    depth: int, num_classes: int, *, widen_factor: int, dtype: DType = None, features: Features = ()
) -> Model:
    """Make the wide residual network for small images, [batch, height, width, channels].

    Args:
        depth: the number of layers, 6n + 4.
        num_classes: the number of logits.
        widen_factor: k: the stages have 16 k, 32 k and 64 k channels.
        dtype: what the convolutions compute in, such as `jnp.bfloat16`; parameters, statistics and
            logits stay in float32. None: the inputs' type, float32 at least.
        features: paths to capture: "stage_1", "stage_2/block_0/norm_0", "final", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if the depth is not 6n + 4, or the factor or `num_classes` is not positive.

    Example:
        >>> from kdjax import models
        >>> network = models.wide_resnet(16, 100, widen_factor=2)
        >>> network.paths.stages
        ('stage_1', 'stage_2', 'stage_3')
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wide_resnet: depth is {depth}, expected 6n + 4: 10, 16, 22, ...")
    if widen_factor < 1:
        raise ValueError(f"wide_resnet: widen_factor is {widen_factor}, expected at least 1")
    check_classes("wide_resnet", num_classes)
    module = WideResNet(depth, num_classes, widen_factor, dtype)
    # The ReLU that sees a stage's output comes first in what follows the stage.
    norms = (*(f"stage_{i}/block_0/norm_0" for i in range(2, _NUM_STAGES + 1)), "final/norm")
    paths = feature_paths(_num_blocks(depth), "sum")._replace(
        preactivations=norms, last_map="final", norms=norms
    )
    return from_linen(module, features=features, paths=paths)


wrn_16_1 = functools.partial(wide_resnet, 16, widen_factor=1)
wrn_16_2 = functools.partial(wide_resnet, 16, widen_factor=2)
wrn_40_1 = functools.partial(wide_resnet, 40, widen_factor=1)
wrn_40_2 = functools.partial(wide_resnet, 40, widen_factor=2)


def _num_blocks(depth: int) -> list[int]:
    return [(depth - 4) // 6] * _NUM_STAGES
