"""Factor transfer: small networks that condense the features of student and teacher."""

import itertools

import jax

from kdjax import losses
from kdjax.terms._layers import conv, init_conv, init_norm, then_norm
from kdjax.terms._learned import learned
from kdjax.terms._reading import feature_of, teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables

_SLOPE = 0.1  # of the leaky ReLUs


def factor_transfer(
    student_feature: str,
    teacher_feature: str,
    *,
    paraphraser: PyTree = None,
    rate: float = 0.5,
    power: float | Array = 1,
    reconstruction_weight: float = 0.005,
) -> Term:
    """Have a translator of the student's features say what a paraphraser makes of the teacher's.

    factor_transfer_loss(translator(s), paraphraser(t)), and without a trained paraphraser
    + reconstruction_weight * mean (decoder(paraphraser(t)) - t)^2

    Translator and paraphraser are three 3x3 convolutions with leaky ReLU, the translator's with
    BatchNorm over the batch. The paraphraser learns to reconstruct the teacher's features and
    nothing else: the first part has no gradient for it.

    Args:
        student_feature: module path of a student feature, [batch, height, width, channels].
        teacher_feature: module path of a teacher feature, likewise.
        paraphraser: parameters that a `paraphrase` term of the same feature and rate has learned,
            as the paper trains them first; kept in the term's state and held constant. None: one
            is learned beside the student.
        rate: the factors' channels as a share of the teacher's.
        power: of the differences, see `kdjax.losses.factor_transfer_loss`.
        reconstruction_weight: of the paraphraser's loss. The objective's weight of this term,
            hundreds as a rule, multiplies it too.

    Returns:
        A term with parameters `translator` and, unless it is given, `paraphraser`.

    Raises:
        ValueError: if the rate is not positive; at trace time, if a feature was not captured.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.factor_transfer("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977.
    """
    _check_rate("factor_transfer", rate)

    def init(key: Array, inner: int, outer: int) -> PyTree:
        first, second = jax.random.split(key)
        width = _width(outer, rate)
        params = {"translator": _init_translator(first, inner, width)}
        if paraphraser is None:
            params["paraphraser"] = _init_paraphraser(second, outer, width)
        return params

    def loss(params: PyTree, given: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        theirs = {**params, **given}["paraphraser"]
        factors = _translate(params["translator"], student, x.mask)
        values = losses.factor_transfer_loss(factors, _encode(theirs, teacher), power=power)
        if paraphraser is None:
            values += reconstruction_weight * _reconstruction(theirs, teacher)
        return values

    paths = student_feature, teacher_feature
    constants = None if paraphraser is None else {"paraphraser": paraphraser}
    return learned("factor_transfer", paths, init, loss, constants=constants)


def paraphrase(teacher_feature: str, *, rate: float = 0.5) -> Term:
    """Learn to condense the teacher's features so that they can be reconstructed.

    mean (decoder(paraphraser(t)) - t)^2

    To be trained before `factor_transfer`, which takes its parameters; the student stays out.

    Args:
        teacher_feature: module path of a teacher feature, [batch, height, width, channels].
        rate: the factors' channels as a share of the teacher's.

    Returns:
        A term with parameters `encoder` and `decoder`.

    Raises:
        ValueError: if the rate is not positive; at trace time, if the feature was not captured.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.paraphrase("stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977, section 3.1.
    """
    _check_rate("paraphrase", rate)

    def teacher_of_batch(inputs: TermInputs) -> Array:
        return feature_of("paraphrase", "teacher", teacher_of(inputs), teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        width = teacher_of_batch(inputs).shape[-1]
        return Variables(_init_paraphraser(key, width, _width(width, rate)), {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return _reconstruction(params, teacher_of_batch(inputs)), state

    return Term(init, apply)


def _check_rate(term: str, rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"{term}: rate is {rate}, expected more than 0")


def _width(teacher_width: int, rate: float) -> int:
    return max(1, int(teacher_width * rate))


def _init_translator(key: Array, student_width: int, width: int) -> PyTree:
    widths = [student_width, student_width, width, width]
    layers = _init_convs(key, widths, bias=False)
    norms = map(init_norm, widths[1:])
    return {name: layers[name] | norm for name, norm in zip(layers, norms, strict=True)}


def _init_paraphraser(key: Array, teacher_width: int, width: int) -> PyTree:
    widths = [teacher_width, teacher_width, width, width]
    first, second = jax.random.split(key)
    return {
        "encoder": _init_convs(first, widths, bias=True),
        "decoder": _init_convs(second, widths[::-1], bias=True),
    }


def _init_convs(key: Array, widths: list[int], *, bias: bool) -> PyTree:
    return {
        f"layer_{i}": init_conv(jax.random.fold_in(key, i), *pair, 3, bias=bias)
        for i, pair in enumerate(itertools.pairwise(widths))
    }


def _translate(params: PyTree, x: Array, mask: Array) -> Array:
    for i in range(len(params)):
        x = jax.nn.leaky_relu(then_norm(conv, params[f"layer_{i}"], x, mask), _SLOPE)
    return x


def _stack(params: PyTree, x: Array) -> Array:
    for i in range(len(params)):
        x = jax.nn.leaky_relu(conv(params[f"layer_{i}"], x), _SLOPE)
    return x


def _encode(params: PyTree, teacher: Array) -> Array:
    return _stack(params["encoder"], jax.lax.stop_gradient(teacher))


def _reconstruction(params: PyTree, teacher: Array) -> Array:
    return losses.hint_loss(_stack(params["decoder"], _encode(params, teacher)), teacher)
