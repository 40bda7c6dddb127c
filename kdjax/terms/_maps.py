"""Terms of feature maps that neither learn nor remember."""

from collections.abc import Sequence

from kdjax import losses
from kdjax.terms._base import stateless
from kdjax.terms._stages import Paths, pair_paths, stages, summed
from kdjax.types import Array, Term


def attention(
    student_features: Paths, teacher_features: Paths, *, power: float | Array = 2
) -> Term:
    """Look where the teacher looks, see `kdjax.losses.attention_transfer_loss`.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many.
        power: of the attention map.
    """
    return summed(
        "attention",
        lambda s, t: losses.attention_transfer_loss(s, t, power=power),
        student_features,
        teacher_features,
    )


def neuron_selectivity(student_features: Paths, teacher_features: Paths) -> Term:
    """Select what the teacher's neurons select, see `kdjax.losses.neuron_selectivity_loss`.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many.
    """
    return summed(
        "neuron_selectivity", losses.neuron_selectivity_loss, student_features, teacher_features
    )


def flow(student_features: Sequence[str], teacher_features: Sequence[str]) -> Term:
    """Go from stage to stage as the teacher does, see `kdjax.losses.flow_loss`.

    Args:
        student_features: module paths of two feature maps or more, from the input to the output.
        teacher_features: as many, of the same widths.
    """
    paths = pair_paths("flow", student_features, teacher_features)
    return stateless(lambda x: losses.flow_loss(*zip(*stages("flow", x, paths), strict=True)))
