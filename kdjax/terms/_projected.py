"""Terms that learn how to bring the student's features to the teacher's width."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._base import feature_of, teacher_of
from kdjax.terms._layers import batch_norm, init_linear, init_norm, linear
from kdjax.terms._stages import Paths, pair_paths, stages, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def inter_channel_correlation(student_features: Paths, teacher_features: Paths) -> Term:
    """Keep how channels relate: ICKD, through a learned connector for each stage.

    See `kdjax.losses.inter_channel_correlation_loss`. The connector is a 1x1 convolution and
    BatchNorm over the batch, as in the authors' code.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many; heights and widths may differ.

    Returns:
        A term with parameters `connect` and `norm` for each stage.

    Raises:
        ValueError: if the paths are not as many; at trace time, if a feature was not captured.

    References:
        Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for
        Diversity-preserved Knowledge Distillation", 2022, arXiv:2202.03680.
    """
    name = "inter_channel_correlation"
    paths = pair_paths(name, student_features, teacher_features)

    def init(key: Array, inputs: TermInputs) -> Variables:
        pairs = stages(name, inputs, paths)
        params = {
            f"stage_{i}": _init_connector(jax.random.fold_in(key, i), s.shape[-1], t.shape[-1])
            for i, (s, t) in enumerate(pairs)
        }
        return Variables(params, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        pairs = enumerate(stages(name, inputs, paths))
        values = total(
            losses.inter_channel_correlation_loss(
                _connect(params[f"stage_{i}"], student, inputs.mask), teacher
            )
            for i, (student, teacher) in pairs
        )
        return values, state

    return Term(init, apply, couples_batch=True)


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

    References:
        Zhang, Lan, Dai, Zeng, Bai, Chang, Wei, "Prime-Aware Adaptive Distillation", 2020,
        arXiv:2008.01458.
    """
    paths = (student_feature, teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        first, second = jax.random.split(key)
        student, teacher = _features("prime_aware", inputs, paths)
        widths = student.shape[-1], teacher.shape[-1]
        params = {
            "mean": init_linear(first, *widths),
            "log_variance": init_linear(second, *widths, bias=False),
            "norm": init_norm(widths[1]),
        }
        return Variables(params, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = _features("prime_aware", inputs, paths)
        mean, spread = linear(params["mean"], student), linear(params["log_variance"], student)
        spread = batch_norm(params["norm"], spread, inputs.mask)
        return losses.prime_aware_loss(mean, teacher, spread, eps=eps), state

    return Term(init, apply, couples_batch=True)


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

    References:
        Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression
        Representation Learning", 2021, openreview ZzwDy_wiWv.
    """
    paths = (student_feature, teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = _features("softmax_regression", inputs, paths)
        params = _init_connector(key, student.shape[-1], teacher.shape[-1])
        # A copy: the state's buffers are donated, and the teacher needs its own.
        return Variables(params, {name: jnp.array(x) for name, x in classifier.items()})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = _features("softmax_regression", inputs, paths)
        x = jax.nn.relu(_connect(params, student, inputs.mask))
        pooled = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        values = losses.softmax_regression_loss(
            x,
            teacher,
            linear(jax.lax.stop_gradient(state), pooled),
            teacher_of(inputs).logits,
            feature_weight=feature_weight,
            logit_weight=logit_weight,
        )
        return values, state

    return Term(init, apply, couples_batch=True)


def _features(term: str, inputs: TermInputs, paths: tuple[str, str]) -> tuple[Array, Array]:
    return (
        feature_of(term, "student", inputs.student, paths[0]),
        feature_of(term, "teacher", teacher_of(inputs), paths[1]),
    )


def _init_connector(key: Array, inputs: int, outputs: int) -> PyTree:
    return {"connect": init_linear(key, inputs, outputs, bias=False), "norm": init_norm(outputs)}


def _connect(params: PyTree, x: Array, mask: Array) -> Array:
    return batch_norm(params["norm"], linear(params["connect"], x), mask)
