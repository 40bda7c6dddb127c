"""Where the features of a network are, by the names that methods know them by."""

import dataclasses
from typing import NamedTuple

from experiments import networks
from experiments.networks import NetworkSpec
from kdjax import models
from kdjax.types import Model, PyTree


class Places(NamedTuple):
    """Where a network's features are: module paths.

    `stages` are its maps or hidden layers after the ReLU, from the input to the output, `bare` the
    same before the ReLU (in a transformer: hidden units before the GELU), and `embedding` is what
    its classifier reads. `spatial` tells maps [batch, height, width, channels] from vectors and
    tokens.
    """

    stages: tuple[str, ...]
    bare: tuple[str, ...]
    embedding: str
    spatial: bool

    @property
    def all(self) -> tuple[str, ...]:
        """All paths, each once."""
        return tuple(dict.fromkeys((*self.stages, *self.bare, self.embedding)))


def places_of(spec: NetworkSpec) -> Places:
    """Say where the features of a network are; of a transformer, four blocks stand for stages."""
    if spec.name == "mlp":
        layers = range(len(spec.widths))
        stages, bare = (tuple(f"{kind}_{i}" for i in layers) for kind in ("drop", "hidden"))
        return Places(stages, bare, stages[-1] if stages else "", spatial=False)
    if networks.is_vit(spec.name):
        depth = getattr(models, spec.name).keywords["depth"]
        blocks = sorted({max(1, depth * i // 4) - 1 for i in range(1, 5)})
        stages, bare = (tuple(f"block_{i}{inner}" for i in blocks) for inner in ("", "/mlp/up"))
        return Places(stages, bare, "embedding", spatial=False)
    sizes = networks.stage_sizes(spec.name)
    stages = tuple(f"stage_{i}" for i in range(1, len(sizes) + 1))
    bare = tuple(f"{stage}/block_{n - 1}/sum" for stage, n in zip(stages, sizes, strict=True))
    return Places(stages, bare, "pool", spatial=True)


def with_features(spec: NetworkSpec, *, classifier: PyTree = None) -> Model:
    """Build a network that captures all that a method may look at; what none does costs nothing.

    Args:
        spec: describes it.
        classifier: the teacher's, where the network answers through it.

    Returns:
        A model.
    """
    places = places_of(spec)
    model = networks.build(dataclasses.replace(spec, reused_width=0), features=places.all)
    if places.spatial:
        model = models.with_class_maps(model, feature=places.stages[-1])
    return networks.reusing(model, spec, classifier) if spec.reused_width else model
