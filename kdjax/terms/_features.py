"""Terms of features."""

import jax

from kdjax import losses
from kdjax.losses import _inputs
from kdjax.terms._base import feature_of, teacher_of
from kdjax.terms._layers import batch_norm, init_linear, init_norm, linear
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


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

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", 2014,
        arXiv:1412.6550.
    """

    def features(inputs: TermInputs) -> tuple[Array, Array]:
        student = feature_of("hint", "student", inputs.student, student_feature)
        teacher = feature_of("hint", "teacher", teacher_of(inputs), teacher_feature)
        student, teacher = _inputs.as_one_size("hint", student, teacher)
        return student, teacher

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = features(inputs)
        width = teacher.shape[-1]
        own = init_linear(key, student.shape[-1], width, bias=not norm)
        return Variables(own | (init_norm(width) if norm else {}), {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = features(inputs)
        if norm:
            mapped = batch_norm(params, linear({"kernel": params["kernel"]}, student), inputs.mask)
            return losses.hint_loss(jax.nn.relu(mapped), teacher), state
        return losses.hint_loss(linear(params, student), teacher), state

    return Term(init, apply, couples_batch=norm)
