"""The flow of the solution procedure: how one stage's features become the next one's."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _maps

Array = jax.Array


def flow_matrix(first_features: Array, second_features: Array) -> Array:
    """How two stages of one network go together: the mean product of their channels.

    G[i, j] = mean over the positions of first[..., i] * second[..., j]

    Along each axis the larger map is averaged to the size of the smaller.

    Args:
        first_features: [batch, ..., first_channels], one axis of positions or more, any floating
            type.
        second_features: [batch, ..., second_channels], likewise, of a later stage.

    Returns:
        [batch, first_channels, second_channels], float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if there are no positions, or the batch or the number of axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import flow_matrix
        >>> print(flow_matrix(jnp.array([[[1.0], [3.0]]]), jnp.array([[[2.0, 1.0], [0.0, 1.0]]])))
        [[[1. 2.]]]

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning", 2017, doi:10.1109/CVPR.2017.754, equation 1.

    Differs from the paper: maps of different sizes are brought to one by averaging, as the code
    behind its successors' tables does it, and not by the maximum.
    """
    return _flow("flow_matrix", first_features, second_features)


def flow_loss(student_features: Sequence[Array], teacher_features: Sequence[Array]) -> Array:
    """Solve the task as the teacher does: mean squared difference of the flow matrices.

    sum over consecutive stages of mean over i, j of (G_student[i, j] - G_teacher[i, j])^2

    with G the `flow_matrix` of two consecutive stages.

    Args:
        student_features: two stages or more, each [batch, ..., channels], any floating type.
        teacher_features: as many, with as many channels each; constant, their gradient is zero.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if a feature is not of a floating type.
        ValueError: if the numbers of stages, examples or channels differ, or there are fewer than
            two stages.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import flow_loss
        >>> one, two = jnp.array([[[1.0], [3.0]]]), jnp.array([[[2.0], [0.0]]])
        >>> print(flow_loss([one, two], [two, two]))
        [1.]

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning", 2017, doi:10.1109/CVPR.2017.754, equation 2.

    Differs from the paper: the mean of the squares, as the code behind its successors' tables has
    it, and not their sum.
    """
    if len(student_features) != len(teacher_features) or len(student_features) < 2:
        raise ValueError(
            f"flow_loss: teacher_features has {len(teacher_features)} stages and student_features "
            f"{len(student_features)}, expected two or more of each, as many"
        )
    pairs = zip(_flows(student_features), _flows(teacher_features), strict=True)
    gaps = [_gap(student, jax.lax.stop_gradient(teacher)) for student, teacher in pairs]
    return functools.reduce(jnp.add, gaps)


def _flows(features: Sequence[Array]) -> list[Array]:
    return [_flow("flow_loss", *pair) for pair in itertools.pairwise(features)]


def _flow(function: str, first: Array, second: Array) -> Array:
    names = ("first_features", "second_features")
    pair = [_maps.as_map(function, n, x) for n, x in zip(names, (first, second), strict=True)]
    first, second = _maps.one_size(function, names, *pair)
    first, second = (x.reshape(len(x), -1, x.shape[-1]) for x in (first, second))
    product = jnp.einsum("bpc,bpd->bcd", first, second, precision="highest")
    return product / first.shape[1]


def _gap(student: Array, teacher: Array) -> Array:
    names = ("student_features' flow matrix", "teacher_features' flow matrix")
    student, teacher = _checks.as_pair("flow_loss", names, student, teacher)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2))
