"""Terms of relations between the examples of a batch: they need the whole batch at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses._numerics import norms
from kdjax.terms._base import stateless
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._stages import Paths, pair_paths, stages, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def distance_relation(
    student_features: Paths, teacher_features: Paths, *, squared: bool = False
) -> Term:
    """Distances in proportion (RKD), see `kdjax.losses.distance_relation_loss`."""

    def loss(student: Array, teacher: Array, **kwargs: Any) -> Array:
        return losses.distance_relation_loss(student, teacher, squared=squared, **kwargs)

    return _relation("distance_relation", student_features, teacher_features, loss)


def angle_relation(student_features: Paths, teacher_features: Paths) -> Term:
    """Angles of triplets (RKD), see `kdjax.losses.angle_relation_loss`."""
    return _relation(
        "angle_relation", student_features, teacher_features, losses.angle_relation_loss
    )


def hard_dark_rank(
    student_features: Paths,
    teacher_features: Paths,
    *,
    scale: float = 3.0,
    power: float = 3.0,
    num_ranked: int = 4,
    normalize: bool = False,
) -> Term:
    """The order of nearest neighbours, see `kdjax.losses.hard_dark_rank_loss`.

    With `normalize` the features are divided by their norms, so that the scale means the same
    whatever the network.
    """

    def loss(student: Array, teacher: Array, **kwargs: Any) -> Array:
        if normalize:
            student, teacher = map(_unit_rows, (student, teacher))
        return losses.hard_dark_rank_loss(
            student, teacher, scale=scale, power=power, num_ranked=num_ranked, **kwargs
        )

    return _relation("hard_dark_rank", student_features, teacher_features, loss)


def similarity_preserving(student_features: Paths, teacher_features: Paths) -> Term:
    """Similarity of activations (SP), see `kdjax.losses.similarity_preserving_loss`."""
    return _relation(
        "similarity_preserving",
        student_features,
        teacher_features,
        losses.similarity_preserving_loss,
    )


def correlation_congruence(
    student_features: Paths, teacher_features: Paths, *, gamma: float = 0.4, max_power: int = 2
) -> Term:
    """A kernel between examples (CC), see `kdjax.losses.correlation_congruence_loss`."""

    def loss(student: Array, teacher: Array, **kwargs: Any) -> Array:
        return losses.correlation_congruence_loss(
            student, teacher, gamma=gamma, max_power=max_power, **kwargs
        )

    return _relation("correlation_congruence", student_features, teacher_features, loss)


def probabilistic_transfer(
    student_features: Paths, teacher_features: Paths, *, eps: float = 1e-7
) -> Term:
    """Probabilities of neighbours (PKT), see `kdjax.losses.probabilistic_transfer_loss`."""

    def loss(student: Array, teacher: Array, **kwargs: Any) -> Array:
        return losses.probabilistic_transfer_loss(student, teacher, eps=eps, **kwargs)

    return _relation("probabilistic_transfer", student_features, teacher_features, loss)


def consecutive_correlation(
    student_feature: str, teacher_feature: str, *, width: int = 128
) -> Term:
    """Products of errors of neighbours in the batch, as RepDistiller has it under the name CC.

    Both networks' features, flattened, go through learned linear maps; see
    `kdjax.losses.consecutive_correlation_loss`.

    Args:
        student_feature: module path of a student feature, [batch, ...].
        teacher_feature: module path of a teacher feature, likewise.
        width: what both are mapped to.

    Returns:
        A term with parameters `student` and `teacher`, each a `kernel` [feature_width, width] and
        a `bias` [width].

    Raises:
        ValueError: at trace time, if a network captured no feature of that name.

    References:
        Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
        Distillation", 2019, arXiv:1904.01802.
    """
    name = "consecutive_correlation"

    def init(key: Array, inputs: TermInputs) -> Variables:
        pair = rows_of(name, inputs, student_feature, teacher_feature)
        keys = dict(zip(pair, jax.random.split(key), strict=True))
        return Variables(
            {who: init_linear(keys[who], x.shape[-1], width) for who, x in pair.items()}, {}
        )

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        pair = rows_of(name, inputs, student_feature, teacher_feature)
        mapped = {who: linear(params[who], x) for who, x in pair.items()}
        # The loss is one of the difference alone, in which the teacher's map learns too.
        error = mapped["student"] - mapped["teacher"]
        loss = losses.consecutive_correlation_loss(error, jnp.zeros_like(error), mask=inputs.mask)
        return loss, state

    return Term(init, apply, couples_batch=True)


def itrd(
    student_feature: str,
    teacher_feature: str,
    *,
    order: float = 1.5,
    correlation_weight: float = 2.0,
    mutual_weight: float = 1.0,
) -> Term:
    """Correlation and mutual information with the teacher (ITRD), through one learned linear map.

    See `kdjax.losses.itrd_correlation_loss` and `kdjax.losses.itrd_mutual_loss`.

    Args:
        student_feature: module path of a student feature, [batch, ...], flattened and mapped.
        teacher_feature: module path of a teacher feature, [batch, ...], flattened.
        order: of the entropy in the correlation.
        correlation_weight: of that loss.
        mutual_weight: of the other.

    Returns:
        A term with parameters `kernel` [student_width, teacher_width] and `bias` [teacher_width].

    Raises:
        ValueError: at trace time, if a network captured no feature of that name.

    References:
        Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation",
        2022, arXiv:2112.00459.
    """

    def init(key: Array, inputs: TermInputs) -> Variables:
        pair = rows_of("itrd", inputs, student_feature, teacher_feature)
        return Variables(init_linear(key, *(x.shape[-1] for x in pair.values())), {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        pair = rows_of("itrd", inputs, student_feature, teacher_feature)
        mapped = linear(params, pair["student"])
        correlation = losses.itrd_correlation_loss(
            mapped, pair["teacher"], order=order, mask=inputs.mask
        )
        mutual = losses.itrd_mutual_loss(mapped, pair["teacher"], mask=inputs.mask)
        return correlation_weight * correlation + mutual_weight * mutual, state

    return Term(init, apply, couples_batch=True)


def _unit_rows(x: Array) -> Array:
    wide = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return norms.normalize(wide)


def _relation(
    term: str, student_features: Paths, teacher_features: Paths, loss: Callable[..., Array]
) -> Term:
    """Sum a loss of two features and a mask over the stages."""
    paths = pair_paths(term, student_features, teacher_features)

    def values(inputs: TermInputs) -> Array:
        return total(loss(*pair, mask=inputs.mask) for pair in stages(term, inputs, paths))

    return stateless(values, couples_batch=True)


def rows_of(
    term: str, inputs: TermInputs, student_feature: str, teacher_feature: str
) -> dict[str, Array]:
    """Return both features as rows, [batch, width], float32 or wider, for a map to learn on.

    The teacher's is constant, and padding, which may hold anything, is 0.
    """
    [(student, teacher)] = stages(term, inputs, [(student_feature, teacher_feature)])
    pair = {"student": student, "teacher": jax.lax.stop_gradient(teacher)}
    flat = {who: x.reshape(len(x), -1) for who, x in pair.items()}
    return {
        who: jnp.where(inputs.mask[:, None], x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
        for who, x in flat.items()
    }
