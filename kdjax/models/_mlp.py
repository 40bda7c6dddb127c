"""Multilayer perceptrons, in Linen."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models._layers import DType, Features, check_rates, head
from kdjax.models._linen import from_linen
from kdjax.types import Array, FeaturePaths, Model


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


def mlp(
    num_classes: int,
    *,
    widths: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    dtype: DType = None,
    features: Features = (),
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

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models
        >>> network = models.mlp(10, widths=(32,), features=("hidden_0",))
        >>> images = np.ones((2, 8, 8, 1), np.float32)
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
        >>> answer = lambda variables: network.apply(*variables, images, train=False)[0]
        >>> outputs = jax.eval_shape(answer, variables)
        >>> outputs.logits.shape, outputs.features["hidden_0"].shape
        ((2, 10), (2, 32))
    """
    for name, sizes in (("num_classes", [num_classes]), ("widths", list(widths))):
        if any(size < 1 for size in sizes):
            raise ValueError(f"mlp: {name} has {min(sizes)}, expected positive sizes")
    check_rates("mlp", dropout=dropout, input_dropout=input_dropout)
    module = MLP(num_classes, tuple(widths), dropout, input_dropout, dtype)
    layers = range(len(module.widths))
    stages, sums = (tuple(f"{kind}_{i}" for i in layers) for kind in ("drop", "hidden"))
    paths = FeaturePaths(stages, sums, embedding=stages[-1] if stages else "", head="head")
    return from_linen(module, features=features, paths=paths)
