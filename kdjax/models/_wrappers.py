"""Networks that take raw images, or that compute parts again for the gradient to save memory."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from kdjax.metrics import known
from kdjax.types import Array, Model, Outputs, PyTree, Variables


def rematerialized(model: Model, *, blocks: Sequence[str] = ("block_*",)) -> Model:
    """Keep only what goes in and out of a network's blocks; their insides are computed again.

    The gradient is the same. A step takes about one more forward pass of the blocks, and holds one
    block's activations at a time beside the blocks' inputs.

    Args:
        model: a model made of a Linen module.
        blocks: which of its modules, as patterns of the last names of their paths: "block_*" for
            every block of our residual networks and transformers, "stage_1/block_*" for some.

    Returns:
        A model with the same variables, outputs and features; evaluation is as before.

    Raises:
        TypeError: if `blocks` is a string.
        ValueError: from apply in training, if the network calls no such module.

    Example:
        >>> from kdjax import models
        >>> models.rematerialized(models.resnet(8, 10)).paths.stages
        ('stage_1', 'stage_2', 'stage_3')

    References:
        Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
        arXiv:1604.06174.
    """
    if isinstance(blocks, str):
        raise TypeError(
            f"rematerialized: blocks is the string {blocks!r}, expected a sequence of patterns"
        )

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        if not train:
            return model.apply(params, state, inputs, train=train, key=key)
        found: set[tuple[str, ...]] = set()
        with nn.intercept_methods(_again(blocks, found)):
            result = model.apply(params, state, inputs, train=train, key=key)
        if not found:
            raise ValueError(
                f"rematerialized: blocks is {tuple(blocks)}, but the network calls no Linen module "
                "whose path ends so"
            )
        return result

    return model._replace(apply=apply)


def _again(blocks: Sequence[str], found: set[tuple[str, ...]]) -> Callable[..., Any]:
    """Make an interceptor that checkpoints the calls of some modules, and notes which."""

    def intercept(
        next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        path = PurePosixPath("/".join(module.path))
        if context.method_name != "__call__" or not any(path.match(block) for block in blocks):
            return next_fun(*args, **kwargs)
        found.add(module.path)
        # The method as it was written: called through the module it would be captured twice.
        method: Any = context.orig_method
        # Closed over, not passed: what says how to call (train=True) has to stay Python's.
        return nn.remat(lambda module: method.func(module, *args, **kwargs))(module)

    return intercept


def normalized(model: Model, mean: ArrayLike, std: ArrayLike) -> Model:
    """Return a model of raw images, which computes (images / 255 - mean) / std in float32 first.

    Args:
        model: a model of normalized images [batch..., channels].
        mean: [channels], in units where white is 1.
        std: [channels], positive, in the same units.

    Returns:
        A model with the same variables, of images [batch..., channels] between 0 and 255, uint8 or
        any float type.

    Raises:
        ValueError: if mean and std differ in shape or std is not positive; from init and apply, if
            the images have another number of channels, or are no raw ones by type or, where they
            are known, by value.

    Example:
        >>> from kdjax import models
        >>> models.normalized(models.resnet(8, 10), mean=(0.5,) * 3, std=(0.25,) * 3).paths.head
        'head'
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
        if images.ndim > 2:
            check_raw(images)
        channels = (1,) * (images.ndim - 1) + center.shape
        x = jnp.asarray(images, jnp.float32) / 255
        return (x - center.reshape(channels)) / scale.reshape(channels)

    def init(key: Array, inputs: Any) -> Variables:
        return model.init(key, view(inputs))

    def apply(params: PyTree, state: PyTree, inputs: Any, **mode: Any) -> tuple[Outputs, PyTree]:
        return model.apply(params, state, view(inputs), **mode)

    return model._replace(init=init, apply=apply)


def scaled(model: Model, mean: ArrayLike, std: ArrayLike) -> Model:
    """Return a model of real numbers in their own unit, which answers with mean + std * logits.

    Args:
        model: a model whose outputs are about as large as 1.
        mean: [values], of the numbers that it is to answer with, or one for all.
        std: [values], their standard deviations, or one for all.

    Raises:
        ValueError: if a deviation is not positive; from the model, if it answers with more or fewer
            numbers.

    Example:
        >>> from kdjax import models
        >>> models.scaled(models.mlp(1, widths=(8,)), 20.0, 4.0).paths.head
        'head'
    """
    center, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if not (scale > 0).all():
        raise ValueError(f"scaled: std is {scale}, expected std > 0")

    def in_unit(logits: Array) -> Array:
        for name, x in {"mean": center, "std": scale}.items():
            if x.size > 1 and x.shape != logits.shape[-1:]:
                raise ValueError(
                    f"scaled: {name} has shape {x.shape}, and the model answers {logits.shape}"
                )
        axes = (1,) * (logits.ndim - 1) + (-1,)
        return logits * scale.reshape(axes) + center.reshape(axes)

    def apply(params: PyTree, state: PyTree, inputs: Any, **mode: Any) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(params, state, inputs, **mode)
        return outputs._replace(logits=in_unit(outputs.logits)), state

    # What decodes answers in another unit: it reads everything again.
    return model._replace(apply=apply, decode=None)


def check_raw(images: Any) -> None:
    """Raise a ValueError if images cannot be raw, of 0 to 255."""
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if not floats and not jnp.issubdtype(images.dtype, jnp.integer):
        raise ValueError(f"images have dtype {images.dtype}, expected raw ones of 0 to 255")
    values = known(images) if images.dtype != np.uint8 else None
    if values is None or not values.size:
        return
    low, high = float(values.min()), float(values.max())
    scaled = (high <= 1 and bool(np.any(values % 1))) or (low < 0 and high < 16)
    if scaled or high > 512 or low < -256:
        raise ValueError(
            f"images have values of {low:.4g} to {high:.4g}, expected raw ones of 0 to 255, which "
            "the network normalizes itself"
        )


def num_params(params: PyTree) -> int:
    """Count the numbers in a tree of parameters (arrays, or their shapes).

    Example:
        >>> import numpy as np
        >>> from kdjax import models
        >>> models.num_params({"kernel": np.zeros((4, 10)), "bias": np.zeros(10)})
        50
    """
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
