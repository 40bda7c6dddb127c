"""Losses as terms of an objective: each sees the batch, the student and the teacher.

A term that learns (a projection) or remembers (a memory bank) keeps that in variables of its own,
which are trained and checkpointed with the student and never enter it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables


def stateless(fn: Callable[[TermInputs], Array], *, couples_batch: bool = False) -> Term:
    """Lift a function of the inputs to a term that neither learns nor remembers.

    Args:
        fn: maps `TermInputs` to one value per example, [batch...].
        couples_batch: whether an example's value depends on the others (relations between
            examples do), in which case micro-batches change the loss.

    Returns:
        A term with empty variables.
    """

    def init(key: Array, inputs: TermInputs) -> Variables:
        return Variables({}, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return fn(inputs), state

    return Term(init, apply, couples_batch)


def cross_entropy() -> Term:
    """Cross-entropy of the student at temperature 1 with `batch["label"]`."""
    return stateless(lambda x: losses.cross_entropy(x.student.logits, x.batch["label"]))


def soft_targets(*, temperature: float | Array = 4.0) -> Term:
    """The soft part of distillation, see `kdjax.losses.soft_target_loss`; it needs no labels."""
    return stateless(
        lambda x: losses.soft_target_loss(
            x.student.logits, _teacher(x).logits, temperature=temperature
        )
    )


def kd(*, temperature: float | Array = 4.0, soft_weight: float = 0.9) -> Term:
    """Soft targets and labels in one value, see `kdjax.losses.kd_loss`."""
    return stateless(
        lambda x: losses.kd_loss(
            x.student.logits,
            _teacher(x).logits,
            x.batch["label"],
            temperature=temperature,
            soft_weight=soft_weight,
        )
    )


def hint(student_feature: str, teacher_feature: str) -> Term:
    """Regress the teacher's features from the student's through a learned linear map.

    The map acts on the last axis (a 1x1 convolution on images, a dense layer on vectors and
    tokens), belongs to the term and is thrown away after training.

    Args:
        student_feature: module path of a student feature, [batch, ..., student_width].
        teacher_feature: module path of a teacher feature, [batch, ..., teacher_width]; the axes
            between agree with the student's.

    Returns:
        A term with parameters `kernel` [student_width, teacher_width] and `bias` [teacher_width].

    Raises:
        ValueError: at trace time, if a network captured no feature of that name.

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", 2014,
        arXiv:1412.6550.
    """

    def features(inputs: TermInputs) -> tuple[Array, Array]:
        return (
            _feature("student", inputs.student, student_feature),
            _feature("teacher", _teacher(inputs), teacher_feature),
        )

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = features(inputs)
        shape = (student.shape[-1], teacher.shape[-1])
        kernel = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
        return Variables({"kernel": kernel, "bias": jnp.zeros(shape[1:], jnp.float32)}, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = features(inputs)
        projected = jnp.einsum("...i,ij->...j", student.astype(jnp.float32), params["kernel"])
        bias = jnp.broadcast_to(params["bias"], projected.shape)
        return losses.hint_loss(projected + bias, teacher), state

    return Term(init, apply)


def _teacher(inputs: TermInputs) -> Outputs:
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher's outputs, but the step was given none")
    return inputs.teacher


def _feature(whose: str, outputs: Outputs, name: str) -> Array:
    if name not in outputs.features:
        raise ValueError(
            f"hint: the {whose} captured no feature {name!r}, only {sorted(outputs.features)}"
        )
    return outputs.features[name]
