"""The networks of the field's tables, in Linen: multilayer perceptrons and CIFAR ResNets."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models._blocks import DType, Pool, check_classes, conv, head, norm, stages
from kdjax.models._linen import from_linen
from kdjax.types import Array, Model, Outputs, PyTree, Variables

_WIDTHS = (16, 16, 32, 64)
_WIDTHS_X4 = (32, 64, 128, 256)


class MLP(nn.Module):
    """A multilayer perceptron with ReLU and dropout.

    Modules: `hidden_0`, `hidden_1`, ... (before the ReLU), `drop_0`, ... (after it), `head`.
    """

    num_classes: int
    widths: Sequence[int]
    dropout: float = 0.0
    input_dropout: float = 0.0
    dtype: DType = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for inputs [batch, ...]."""
        x = jnp.reshape(inputs, (inputs.shape[0], -1))
        x = nn.Dropout(self.input_dropout, deterministic=not train, name="drop_inputs")(x)
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")(x)
        return head(self.num_classes, self.dtype)(x)


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
        num_blocks = (self.depth - 2) // 6
        x = conv(self.widths[0], 3, 1, self.dtype, "stem")(inputs)
        x = nn.relu(norm(self.dtype, train)(name="stem_norm")(x))
        widths = self.widths[1:]
        x = stages(x, widths, [num_blocks] * len(widths), self.dtype, train=train)
        return head(self.num_classes, self.dtype)(Pool(name="pool")(x))


def mlp(
    num_classes: int,
    *,
    widths: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    dtype: DType = None,
    features: Sequence[str] = (),
) -> Model:
    """Make a multilayer perceptron with ReLU, for inputs of any shape [batch, ...].

    Args:
        num_classes: the number of logits.
        widths: the hidden layers' sizes; () is a linear classifier.
        dropout: the share of hidden units dropped in training.
        input_dropout: the share of inputs dropped in training.
        dtype: what the hidden layers compute in, for example `jnp.bfloat16`; parameters and
            logits are float32 all the same. None: the inputs' type, float32 at least.
        features: paths to capture: "hidden_0" (before its ReLU), "drop_0" (after it), ...

    Returns:
        A model.

    Raises:
        ValueError: if a size is not positive or a dropout rate is outside [0, 1).
    """
    for name, sizes in (("num_classes", [num_classes]), ("widths", list(widths))):
        if any(size < 1 for size in sizes):
            raise ValueError(f"mlp: {name} has {min(sizes)}, expected positive sizes")
    for name, rate in (("dropout", dropout), ("input_dropout", input_dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f"mlp: {name} is {rate}, expected a rate in [0, 1)")
    module = MLP(num_classes, tuple(widths), dropout, input_dropout, dtype)
    return from_linen(module, features=features)


def resnet(
    depth: int,
    num_classes: int,
    *,
    widths: Sequence[int] = _WIDTHS,
    dtype: DType = None,
    features: Sequence[str] = (),
) -> Model:
    """Make the residual network for small images, [batch, height, width, channels].

    Args:
        depth: the number of layers, 6n + 2.
        num_classes: the number of logits.
        widths: channels of the stem and of the three stages; those of `resnet8x4` and
            `resnet32x4` are four times the usual, but for the stem.
        dtype: what the convolutions compute in, for example `jnp.bfloat16`; parameters, BatchNorm
            statistics and logits are float32 all the same. None: the inputs' type, float32 at
            least.
        features: paths to capture: "stage_1", "stage_2/block_0", "pool", ...

    Returns:
        A model.

    Raises:
        ValueError: if the depth is not 6n + 2, the widths are not four positive numbers, or
            `num_classes` is not positive.
    """
    widths = tuple(widths)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet: depth is {depth}, expected 6n + 2: 8, 14, 20, ...")
    if len(widths) != len(_WIDTHS) or min(widths) < 1:
        raise ValueError(f"resnet: widths is {widths}, expected four positive numbers")
    check_classes("resnet", num_classes)
    return from_linen(ResNet(depth, num_classes, dtype, widths), features=features)


resnet8 = functools.partial(resnet, 8)
resnet14 = functools.partial(resnet, 14)
resnet20 = functools.partial(resnet, 20)
resnet32 = functools.partial(resnet, 32)
resnet44 = functools.partial(resnet, 44)
resnet56 = functools.partial(resnet, 56)
resnet110 = functools.partial(resnet, 110)
resnet8x4 = functools.partial(resnet, 8, widths=_WIDTHS_X4)
resnet32x4 = functools.partial(resnet, 32, widths=_WIDTHS_X4)


def normalized(model: Model, mean: Any, std: Any) -> Model:
    """Let a model take raw images: it sees (images / 255 - mean) / std, in float32.

    Args:
        model: a model of normalised images [batch..., channels].
        mean: [channels], in units where white is 1.
        std: [channels], likewise; positive.

    Returns:
        A model with the same variables, of images [batch..., channels] between 0 and 255, uint8 or
        any float type.

    Raises:
        ValueError: if mean and std differ in shape or std is not positive; from init and apply, if
            the images have another number of channels.
    """
    center, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if center.ndim != 1 or center.shape != scale.shape:
        raise ValueError(
            f"normalized: mean has shape {center.shape} and std {scale.shape}, "
            "expected [channels] for both"
        )
    if not np.all(np.isfinite(center)) or not np.all((scale > 0) & np.isfinite(scale)):
        raise ValueError(f"normalized: mean is {center} and std {scale}, expected std > 0")

    def view(images: Any) -> Array:
        if images.ndim < 2 or images.shape[-1] != center.size:
            raise ValueError(
                f"normalized: images have shape {images.shape}, "
                f"expected {center.size} channels like mean"
            )
        channels = (1,) * (images.ndim - 1) + center.shape
        x = jnp.asarray(images, jnp.float32) / 255
        return (x - center.reshape(channels)) / scale.reshape(channels)

    def init(key: Array, inputs: Any) -> Variables:
        return model.init(key, view(inputs))

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        return model.apply(params, state, view(inputs), train=train, key=key)

    return Model(init, apply)


def num_params(params: PyTree) -> int:
    """Count the numbers in a tree of parameters (arrays, or their shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
