"""Terms of relations between the examples of a batch, of features that learned maps make alike."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.metrics import examples_of
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._learned import learned
from kdjax.terms._reading import rows_of
from kdjax.types import Array, PyTree, Term, TermInputs


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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.consecutive_correlation("hidden", "hidden"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
        Distillation", 2019, arXiv:1904.01802.
    """

    def init(key: Array, *widths: int) -> PyTree:
        sides = zip(("student", "teacher"), jax.random.split(key), widths, strict=True)
        return {side: init_linear(k, inputs, width) for side, k, inputs in sides}

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        # The loss is one of the difference alone, in which the teacher's map learns too.
        error = linear(params["student"], student) - linear(params["teacher"], teacher)
        mask = examples_of(x.mask)
        return losses.consecutive_correlation_loss(error, jnp.zeros_like(error), mask=mask)

    paths = student_feature, teacher_feature
    return learned("consecutive_correlation", paths, init, loss, read=rows_of)


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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.itrd("hidden", "hidden"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation",
        2022, arXiv:2112.00459.
    """

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        mapped = linear(params, student)
        mask = examples_of(x.mask)
        correlation = losses.itrd_correlation_loss(mapped, teacher, order=order, mask=mask)
        mutual = losses.itrd_mutual_loss(mapped, teacher, mask=mask)
        return correlation_weight * correlation + mutual_weight * mutual

    return learned("itrd", (student_feature, teacher_feature), init_linear, loss, read=rows_of)
