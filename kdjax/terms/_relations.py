"""Terms of relations between the examples of a batch, of features that learned maps make alike."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._reading import rows_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


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
