"""Residual networks of bottlenecks for small images, in Linen."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from kdjax.models._blocks import (
    Bottleneck,
    DType,
    Pool,
    check_classes,
    check_sizes,
    conv,
    head,
    norm,
    stages,
)
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_STEM_WIDTH = 64


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
        x = conv(_STEM_WIDTH, 3, 1, self.dtype, "stem")(inputs)
        x = nn.relu(norm(self.dtype, train)(name="stem_norm")(x))
        widths = [_STEM_WIDTH * 2**i for i in range(len(self.stage_sizes))]
        x = stages(x, widths, self.stage_sizes, self.dtype, train=train, block=Bottleneck)
        return head(self.num_classes, self.dtype)(Pool(name="pool")(x))


def bottleneck_resnet(
    num_classes: int,
    *,
    stage_sizes: Sequence[int],
    dtype: DType = None,
    features: Sequence[str] = (),
) -> Model:
    """Make a residual network of bottlenecks for small images, [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        stage_sizes: the number of blocks in each stage.
        dtype: what the convolutions compute in, for example `jnp.bfloat16`; parameters, BatchNorm
            statistics and logits are float32 all the same. None: the inputs' type, float32 at
            least.
        features: paths to capture: "stage_1", "stage_4/block_0", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if a stage has no block, there is no stage, or `num_classes` is not positive.
    """
    sizes = tuple(stage_sizes)
    check_sizes("bottleneck_resnet", sizes)
    check_classes("bottleneck_resnet", num_classes)
    return from_linen(BottleneckResNet(sizes, num_classes, dtype), features=features)


cifar_resnet50 = functools.partial(bottleneck_resnet, stage_sizes=(3, 4, 6, 3))
