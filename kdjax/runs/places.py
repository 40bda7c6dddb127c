"""Where the features of a network are, by the names that methods know them by."""

import dataclasses
from typing import NamedTuple

from kdjax.runs import networks
from kdjax.runs.convolutions import maps_of
from kdjax.runs.networks import NetworkSpec
from kdjax import models
from kdjax.types import Model, PyTree


class Places(NamedTuple):
    """Where a network's features are: module paths.

    `stages` are its maps or hidden layers after the ReLU, from the input to the output, `bare` the
    same before the ReLU (in a transformer: hidden units before the GELU), and `embedding` is what
    its classifier reads. `spatial` tells maps [batch, height, width, channels] from vectors and
    tokens. Of maps, `last` is the one that the embedding is the mean of, and `norms` are the
    parameters of the BatchNorm right before each ReLU; see `kdjax.runs.convolutions`.
    """

    stages: tuple[str, ...]
    bare: tuple[str, ...]
    embedding: str
    spatial: bool
    last: str = ""
    norms: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All paths of features, each once."""
        last = (self.last,) if self.last else ()
        return tuple(dict.fromkeys((*self.stages, *self.bare, *last, self.embedding)))


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
    maps = maps_of(spec.name)
    return Places(maps.stages, maps.bare, "pool", True, maps.last, maps.norms)


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
        model = models.with_class_maps(model, feature=places.last)
    return networks.reusing(model, spec, classifier) if spec.reused_width else model


def classifier_of(method: str, teacher_params: PyTree) -> PyTree:
    """Return the last layer of a teacher, for a method that reads it.

    Raises:
        ValueError: if the teacher answers through the classifier of its own teacher.
    """
    if "head" not in teacher_params:
        raise ValueError(f"--method {method} needs a teacher with a classifier of its own")
    return teacher_params["head"]
