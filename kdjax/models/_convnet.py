"""A few convolutions, in Linen: networks for small images that train in minutes on a CPU."""

from collections.abc import Sequence

import flax.linen as nn

from kdjax.models._blocks import feature_paths, stages
from kdjax.models._layers import DType, Features, check_classes, logits_of
from kdjax.models._linen import from_linen
from kdjax.models._vgg import ConvBlock
from kdjax.types import Array, Model


class ConvNet(nn.Module):
    """A 3x3 convolution with BatchNorm and ReLU for each width, each of stride 2.

    Modules: `stage_1/block_0`, `stage_2/block_0`, ..., `pool` (the embedding), `head`; within a
    block `conv` and `norm`.
    """

    widths: Sequence[int]
    num_classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, height, width, channels]."""
        sizes = [1] * len(self.widths)
        x = stages(
            inputs, self.widths, sizes, self.dtype, train=train, block=ConvBlock, first_stride=2
        )
        return logits_of(x, self.num_classes, self.dtype)


def convnet(
    num_classes: int, *, widths: Sequence[int], dtype: DType = None, features: Features = ()
) -> Model:
    """Make a plain network of convolutions, for images [batch, height, width, channels].

    Args:
        num_classes: the number of logits.
        widths: the channels of each convolution.
        dtype: as for `vgg`.
        features: paths to capture: "stage_1", "stage_2/block_0/norm", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if there is no width, one is not positive, or `num_classes` is not.

    Example:
        >>> from kdjax import models
        >>> network = models.convnet(10, widths=(8, 16, 32))
        >>> network.paths.stages
        ('stage_1', 'stage_2', 'stage_3')
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"convnet: widths is {tuple(widths)}, expected positive numbers")
    check_classes("convnet", num_classes)
    module = ConvNet(tuple(widths), num_classes, dtype)
    return from_linen(
        module, features=features, paths=feature_paths([1] * len(widths), "norm", "norm")
    )
