"""Factor transfer: small networks that condense the features of student and teacher."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import batch_norm, conv, init_conv, init_norm
from kdjax.terms._reading import feature_of, pair_of, teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables

_SLOPE = 0.1  # of the leaky ReLUs


def factor_transfer(
    student_feature: str,
    teacher_feature: str,
    *,
    paraphraser: PyTree = None,
    rate: float = 0.5,
    power: Any = 1,
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

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977.
    """
    _check_rate("factor_transfer", rate)
    name, paths = "factor_transfer", (student_feature, teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = pair_of(name, inputs, *paths)
        keys = jax.random.split(key)
        own = _init_translator(keys[0], student.shape[-1], _width(teacher, rate))
        if paraphraser is not None:
            constant = jax.tree.map(jnp.asarray, paraphraser)
            return Variables({"translator": own}, {"paraphraser": constant})
        learned = _init_paraphraser(keys[1], teacher.shape[-1], _width(teacher, rate))
        return Variables({"translator": own, "paraphraser": learned}, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = pair_of(name, inputs, *paths)
        theirs = state["paraphraser"] if paraphraser is not None else params["paraphraser"]
        factors = _translate(params["translator"], student, inputs.mask)
        wanted = _encode(theirs, teacher)
        values = losses.factor_transfer_loss(factors, wanted, power=power)
        if paraphraser is None:
            values += reconstruction_weight * _reconstruction(theirs, teacher)
        return values, state

    return Term(init, apply, couples_batch=True)


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

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977, section 3.1.
    """
    _check_rate("paraphrase", rate)

    def teacher_of_batch(inputs: TermInputs) -> Array:
        return feature_of("paraphrase", "teacher", teacher_of(inputs), teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        teacher = teacher_of_batch(inputs)
        return Variables(_init_paraphraser(key, teacher.shape[-1], _width(teacher, rate)), {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return _reconstruction(params, teacher_of_batch(inputs)), state

    return Term(init, apply)


def _check_rate(term: str, rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"{term}: rate is {rate}, expected more than 0")


def _width(teacher: Array, rate: float) -> int:
    return max(1, int(teacher.shape[-1] * rate))


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
        layer = params[f"layer_{i}"]
        x = batch_norm(layer, conv({"kernel": layer["kernel"]}, x), mask)
        x = jax.nn.leaky_relu(x, _SLOPE)
    return x


def _stack(params: PyTree, x: Array) -> Array:
    for i in range(len(params)):
        x = jax.nn.leaky_relu(conv(params[f"layer_{i}"], x), _SLOPE)
    return x


def _encode(params: PyTree, teacher: Array) -> Array:
    return _stack(params["encoder"], jax.lax.stop_gradient(teacher))


def _reconstruction(params: PyTree, teacher: Array) -> Array:
    return losses.hint_loss(_stack(params["decoder"], _encode(params, teacher)), teacher)
