"""Memory for time: parts of a network are computed again for the gradient, not kept."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from flax import linen as nn

from kdjax.types import Array, Model, Outputs, PyTree


def rematerialised(model: Model, *, blocks: Sequence[str] = ("block_*",)) -> Model:
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

    References:
        Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
        arXiv:1604.06174.
    """
    if isinstance(blocks, str):
        raise TypeError(
            f"rematerialised: blocks is the string {blocks!r}, expected a sequence of patterns"
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
                f"rematerialised: blocks is {tuple(blocks)}, but the network calls no Linen module "
                "whose path ends so"
            )
        return result

    return Model(model.init, apply)


def _again(blocks: Sequence[str], found: set[tuple[str, ...]]) -> Callable[..., Any]:
    """Make an interceptor that checkpoints the calls of some modules, and notes which."""

    def intercept(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
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
