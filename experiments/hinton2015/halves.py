"""A network cut in two: what all specialists share, and what each of them trains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.networks import Network
from kdjax import data, models, specialists
from kdjax.types import Array, Model, Variables


class Halves(NamedTuple):
    """A generalist as two parts.

    `below` captures, as feature `path`, what `above_fn(num_classes)` is fed; `above` are the
    generalist's variables of the second part.
    """

    below: Model
    path: str
    variables: Variables
    above_fn: Callable[[int], Model]
    above: Variables


class LastBlock(nn.Module):
    """The last block of a ResNet with a head; its modules are named as in the whole network."""

    num_classes: int
    index: int

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Return logits [batch, num_classes] for what comes before, [batch, height, width, c]."""
        stride = 1 if self.index else 2
        x = models.BasicBlock(64, stride, name=f"block_{self.index}")(inputs, train=train)
        return nn.Dense(self.num_classes, name="head")(models.Pool(name="pool")(x))


def cut(network: Network) -> Halves:
    """Cut a ResNet before its last block, a perceptron after its first layer."""
    spec, (params, state) = network.spec, network.variables
    mean, std = np.array(spec.mean), np.array(spec.std)
    if spec.name == "mlp":
        path, widths = "drop_0", spec.widths
        whole = models.mlp(spec.num_classes, widths=widths, features=(path,))
        kept = {f"hidden_{i - 1}": params[f"hidden_{i}"] for i in range(1, len(widths))}

        def above_fn(num_classes: int) -> Model:
            return models.mlp(num_classes, widths=widths[1:])

    else:
        depth = int(spec.name.removeprefix("resnet"))
        last = (depth - 2) // 6 - 1
        path, block = f"stage_3/block_{last - 1}" if last else "stage_2", f"block_{last}"
        whole = models.resnet(depth, spec.num_classes, features=(path,))
        kept = {block: params["stage_3"][block]}
        state = {"batch_stats": {block: state["batch_stats"]["stage_3"][block]}}

        def above_fn(num_classes: int) -> Model:
            return models.from_linen(LastBlock(num_classes, last))

    above = Variables({**kept, "head": params["head"]}, state)
    return Halves(models.normalized(whole, mean, std), path, network.variables, above_fn, above)


def with_head(above: Variables, classes: np.ndarray, shift: float) -> Variables:
    """Start a specialist: the generalist's second part, its head for the specialist's classes.

    The dustbin starts lower by `shift`, as it must be on batches that oversample the classes: the
    corrected specialist starts as the generalist.
    """
    head = above.params["head"]
    kernel, bias = specialists.specialist_head(head["kernel"], head["bias"], classes)
    lowered = specialists.shift_dustbin(bias, -shift)
    return Variables({**above.params, "head": {"kernel": kernel, "bias": lowered}}, above.state)


def read(halves: Halves, images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the first part's features, as float16 to halve the memory, and the logits."""

    @jax.jit
    def answer(variables: Variables, batch: Array) -> tuple[Array, Array]:
        outputs, _ = halves.below.apply(*variables, batch, train=False)
        features = outputs.features[halves.path].astype(jnp.float16)
        return features, outputs.logits.astype(jnp.float32)

    size, parts = min(1000, len(images)), []
    arrays = {"image": images, "label": np.zeros(len(images), np.int32)}
    for batch in data.eval_batches(arrays, batch_size=size):
        answers = answer(halves.variables, batch["image"])
        parts.append([np.asarray(x)[batch["mask"]] for x in answers])
    features, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return features, logits
