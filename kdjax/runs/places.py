"""Where the features of a network are, by the names that methods know them by."""

import dataclasses

from kdjax import models
from kdjax.runs import networks
from kdjax.runs.convolutions import maps_of
from kdjax.runs.networks import NetworkSpec
from kdjax.types import FeaturePaths, Model, PyTree


def places_of(spec: NetworkSpec) -> FeaturePaths:
    """Return where a network has its features; of a transformer, four blocks stand for stages."""
    if spec.name == "mlp":
        layers = range(len(spec.widths))
        stages, bare = (tuple(f"{kind}_{i}" for i in layers) for kind in ("drop", "hidden"))
        return FeaturePaths(stages, bare, stages[-1] if stages else "", "head")
    if networks.is_vit(spec.name):
        depth = getattr(models, spec.name).keywords["depth"]
        blocks = sorted({max(1, depth * i // 4) - 1 for i in range(1, 5)})
        stages, bare = (tuple(f"block_{i}{inner}" for i in blocks) for inner in ("", "/mlp/up"))
        return FeaturePaths(stages, bare, "embedding", "head")
    maps = maps_of(spec.name)
    return FeaturePaths(maps.stages, maps.bare, "pool", "head", True, maps.last, maps.norms)


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
        model = models.with_class_maps(model, feature=places.last_map)
    return networks.reusing(model, spec, classifier) if spec.reused_width else model
