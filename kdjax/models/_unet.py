"""A fully convolutional network that says something of every pixel, in Linen."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models._layers import DType, Features, check_classes, layer_fn, max_pool
from kdjax.models._linen import from_linen
from kdjax.types import Array, FeaturePaths, Model


class Stage(nn.Module):
    """Two convolutions of one width, each with BatchNorm and ReLU.

    Modules: `conv_1`, `norm_1`, `conv_2`, `norm_2`.
    """

    width: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return [batch, height, width, self.width]."""
        layer = layer_fn(self.dtype, train)
        x = nn.relu(layer(x, self.width, 3, 1, "conv_1"))
        return nn.relu(layer(x, self.width, 3, 1, "conv_2"))


class UNet(nn.Module):
    """Maps that become smaller and large again, each joined by that of its size on the way down.

    Modules: `down_0`, `down_1`, ..., `up_0` (of the size of the images last), `head`.
    """

    num_classes: int
    widths: Sequence[int]
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Return logits [batch, height, width, num_classes] of images of any size."""
        passed: list[Array] = []
        for i, width in enumerate(self.widths):
            if i:
                x = max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
            x = Stage(width, self.dtype, name=f"down_{i}")(x, train=train)
            passed.append(x)
        for i in reversed(range(len(self.widths) - 1)):
            large = passed[i]
            x = jax.image.resize(x, (*large.shape[:-1], x.shape[-1]), "nearest")
            x = jnp.concatenate([x, large], axis=-1)
            x = Stage(self.widths[i], self.dtype, name=f"up_{i}")(x, train=train)
        wide = None if self.dtype is None else jnp.promote_types(self.dtype, jnp.float32)
        return nn.Conv(self.num_classes, (1, 1), dtype=wide, name="head")(x)


def unet(
    num_classes: int, *, widths: Sequence[int], dtype: DType = None, features: Features = ()
) -> Model:
    """Make a U-Net: logits for every pixel of images of any size.

    Args:
        num_classes: the number of logits of a pixel.
        widths: channels at each size of the maps, from that of the images on; each is half as
            large as the one before.
        dtype: what the layers compute in; parameters and logits are float32 all the same.
        features: paths to capture: "down_0", "down_1", ..., "up_0".

    Returns:
        A model, whose embedding is the smallest map.

    Raises:
        ValueError: if a size is not positive, or there is none.

    Example:
        >>> from kdjax import models
        >>> network = models.unet(21, widths=(16, 32))
        >>> network.paths.stages
        ('down_0', 'down_1', 'up_0')

    References:
        Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
        Segmentation", 2015, arXiv:1505.04597.

    Differs from the paper: with BatchNorm, with padding, and maps grow by repetition.
    """
    sizes = tuple(widths)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"unet: widths is {sizes}, expected positive numbers")
    check_classes("unet", num_classes)
    down = tuple(f"down_{i}" for i in range(len(sizes)))
    stages = (*down, *(f"up_{i}" for i in reversed(range(len(sizes) - 1))))
    norms = tuple(f"{stage}/norm_2" for stage in stages)
    paths = FeaturePaths(stages, norms, down[-1], head="head", spatial=True, norms=norms)
    return from_linen(UNet(num_classes, sizes, dtype), features=features, paths=paths)
