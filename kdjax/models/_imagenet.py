"""Residual networks for large images, in Linen: the ImageNet form of the blocks of `_blocks`."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from kdjax.models._blocks import DType, Pool, check_classes, check_sizes, conv, head, norm, stages
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model

_STEM_WIDTH = 64


class ImageNetResNet(nn.Module):
    """The residual network for large images: a strided stem, then stages of 64, 128, 256, ...

    The stem and its pooling leave a quarter of the pixels a side, every stage but the first halves
    them. Modules: `stem`, `stem_norm`, `stage_1/block_0`, ..., `stage_4`, `pool` (the embedding),
    `head`; within a block those of `ResNet`.

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
        arXiv:1512.03385, table 1, with projections where the shape changes.
    """

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        x = conv(_STEM_WIDTH, 7, 2, self.dtype, "stem")(inputs)
        x = nn.relu(norm(self.dtype, train)(name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        widths = [_STEM_WIDTH * 2**i for i in range(len(self.stage_sizes))]
        x = stages(x, widths, self.stage_sizes, self.dtype, train=train)
        return head(self.num_classes, self.dtype)(Pool(name="pool")(x))


def imagenet_resnet(
    num_classes: int,
    *,
    stage_sizes: Sequence[int],
    dtype: DType = None,
    features: Sequence[str] = (),
) -> Model:
    """Make a residual network for large images, [batch, height, width, channels].

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
    check_sizes("imagenet_resnet", sizes)
    check_classes("imagenet_resnet", num_classes)
    return from_linen(ImageNetResNet(sizes, num_classes, dtype), features=features)


resnet18 = functools.partial(imagenet_resnet, stage_sizes=(2, 2, 2, 2))
resnet34 = functools.partial(imagenet_resnet, stage_sizes=(3, 4, 6, 3))
