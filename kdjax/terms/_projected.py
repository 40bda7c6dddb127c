"""Terms that bring one of the student's features to the teacher's width by a layer they learn."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms import _layers
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._learned import learned, one_size
from kdjax.terms._reading import at_positions, teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs


def hint(student_feature: str, teacher_feature: str, *, norm: bool = False) -> Term:
    """Regress the teacher's features from the student's through a learned linear map.

    The map acts on the last axis (a 1x1 convolution on images, a dense layer on vectors and
    tokens), belongs to the term and is thrown away after training. Of maps of different sizes the
    larger is averaged first, see `kdjax.losses.match_sizes`.

    Args:
        student_feature: module path of a student feature, [batch, ..., student_width].
        teacher_feature: module path of a teacher feature, [batch, ..., teacher_width], with as many
            axes.
        norm: follow the map by BatchNorm over the batch and ReLU, as the RepDistiller tables do for
            features behind a ReLU: large weights then need no small learning rate.

    Returns:
        A term with parameters `kernel` [student_width, teacher_width] and `bias` [teacher_width],
        with `norm` also `scale` [teacher_width].

    Raises:
        ValueError: at trace time, if a network captured no feature of that name, or the numbers of
            axes differ.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.hint("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", 2014,
        arXiv:1412.6550.
    """

    def init(key: Array, inner: int, outer: int) -> PyTree:
        own = init_linear(key, inner, outer, bias=not norm)
        return own | (_layers.init_norm(outer) if norm else {})

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        if norm:
            mapped = jax.nn.relu(_layers.then_norm(linear, params, student, x.mask))
        else:
            mapped = linear(params, student)
        pair = {"student_features": mapped, "teacher_features": teacher}
        return at_positions(losses.hint_loss, x.mask, **pair)

    paths = student_feature, teacher_feature
    return learned("hint", paths, init, loss, read=one_size, couples_batch=norm)


def prime_aware(student_feature: str, teacher_feature: str, *, eps: float | Array = 1e-6) -> Term:
    """Regress the teacher's embedding, with a learned uncertainty for each entry: PAD.

    See `kdjax.losses.prime_aware_loss`. Mean and logarithm of the variance are linear in the
    student's embedding; BatchNorm over the batch follows the latter.

    Args:
        student_feature: module path of a student embedding, [batch, ..., student_width].
        teacher_feature: module path of a teacher embedding, [batch, ..., teacher_width].
        eps: the least variance.

    Returns:
        A term with parameters `mean`, `log_variance` and `norm`.

    Raises:
        ValueError: at trace time, if a network captured no feature of that name.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.prime_aware("hidden", "hidden"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Zhang, Lan, Dai, Zeng, Bai, Chang, Wei, "Prime-Aware Adaptive Distillation", 2020,
        arXiv:2008.01458.
    """

    def init(key: Array, inner: int, outer: int) -> PyTree:
        first, second = jax.random.split(key)
        return {
            "mean": init_linear(first, inner, outer),
            "log_variance": init_linear(second, inner, outer, bias=False),
            "norm": _layers.init_norm(outer),
        }

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        mean, spread = linear(params["mean"], student), linear(params["log_variance"], student)
        spread = _layers.batch_norm(params["norm"], spread, x.mask)
        each = functools.partial(losses.prime_aware_loss, eps=eps)
        pair = {"student_features": mean, "teacher_features": teacher}
        return at_positions(each, x.mask, **pair, log_variances=spread)

    return learned("prime_aware", (student_feature, teacher_feature), init, loss)


def softmax_regression(
    student_feature: str,
    teacher_feature: str,
    *,
    classifier: Mapping[str, Array],
    feature_weight: float | Array = 1.0,
    logit_weight: float | Array = 1.0,
) -> Term:
    """Make features that the teacher's classifier reads as it reads the teacher's own: SRRL.

    See `kdjax.losses.softmax_regression_loss`. A learned connector (1x1 convolution, BatchNorm over
    the batch, ReLU) brings the student's features to the teacher's width.

    Args:
        student_feature: module path of a student feature, [batch, ..., student_width].
        teacher_feature: module path of a teacher feature, [batch, ..., teacher_width], whose mean
            over positions is what the teacher classifies.
        classifier: the teacher's last layer: `kernel` [teacher_width, num_classes] and `bias`
            [num_classes], such as `variables.params["head"]`. Kept in the term's state, constant.
        feature_weight: of the features' part.
        logit_weight: of the logits' part.

    Returns:
        A term with parameters `connect` and `norm`; its state is the classifier.

    Raises:
        ValueError: at trace time, if a network captured no feature of that name.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> head = {"kernel": jax.numpy.ones((7, 6)), "bias": jax.numpy.zeros(6)}
        >>> term, inputs = (
        ...     terms.softmax_regression("hidden", "hidden", classifier=head),
        ...     term_inputs(),
        ... )
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression
        Representation Learning", 2021, openreview ZzwDy_wiWv.
    """

    def loss(params: PyTree, last: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        mapped = jax.nn.relu(_layers.connect(params, student, x.mask))
        pooled = jnp.mean(mapped, axis=tuple(range(1, mapped.ndim - 1)))
        return losses.softmax_regression_loss(
            mapped,
            teacher,
            linear(jax.lax.stop_gradient(last), pooled),
            teacher_of(x).logits,
            feature_weight=feature_weight,
            logit_weight=logit_weight,
        )

    paths = student_feature, teacher_feature
    return learned("softmax_regression", paths, _layers.init_connector, loss, constants=classifier)
