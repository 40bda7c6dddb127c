"""Where networks of convolutions have their maps, by module path."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kdjax import models


class Maps(NamedTuple):
    """Paths in a network of convolutions.

    `stages` are its maps after each stage, `bare` what the ReLU behind each sees, and `norms` the
    BatchNorm before that ReLU, empty where it sees more than one. `last` is the map whose mean the
    classifier reads.
    """

    stages: tuple[str, ...]
    bare: tuple[str, ...]
    norms: tuple[str, ...]
    last: str


def maps_of(name: str) -> Maps:
    """Say where the maps of a network are; what the tables call its stages is what is here."""
    make_fn = getattr(models, name)
    family = getattr(make_fn, "func", make_fn)
    sizes = _num_blocks(make_fn, family)
    stages = tuple(f"stage_{i}" for i in range(1, len(sizes) + 1))
    ends = [f"{stage}/block_{n - 1}" for stage, n in zip(stages, sizes, strict=True)]
    if family is models.wide_resnet:
        # Its ReLUs come first in a block: those of a stage's output are in what follows it.
        norms = (*(f"{stage}/block_0/norm_0" for stage in stages[1:]), "final/norm")
        return Maps(stages, norms, norms, "final")
    if family is models.mobilenet_v2:
        # Its stages end without a ReLU.
        return Maps(stages, stages, _in_each(ends, "norm_2"), "final")
    if family is models.shufflenet_v2:
        return Maps(stages, _in_each(ends, "join"), (), "final")
    if family is models.vgg:
        norms = _in_each(ends, "norm")
        return Maps(stages, norms, norms, stages[-1])
    norm = "norm_3" if family is models.bottleneck_resnet else "norm_2"
    return Maps(stages, _in_each(ends, "sum"), _in_each(ends, norm), stages[-1])


def _in_each(blocks: Sequence[str], module: str) -> tuple[str, ...]:
    return tuple(f"{block}/{module}" for block in blocks)


def _num_blocks(make_fn: Any, family: Callable[..., Any]) -> tuple[int, ...]:
    if family is models.resnet:
        return ((make_fn.args[0] - 2) // 6,) * 3
    if family is models.wide_resnet:
        return ((make_fn.args[0] - 4) // 6,) * 3
    if family is models.mobilenet_v2:
        return (3, 3, 7, 4)
    if family in (models.shufflenet_v1, models.shufflenet_v2):
        return (4, 8, 4)
    sizes = tuple(make_fn.keywords["stage_sizes"])
    return sizes[1:] if family is models.vgg else sizes
