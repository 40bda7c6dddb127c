"""Terms of divergences between the student's and the teacher's probabilities."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax import losses, metrics
from kdjax.terms._base import stateless, teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def generalized_js(*, beta: float | Array = 0.5, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.generalized_js_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.generalized_js_divergence, temperature, beta=beta)


def reverse_kl(*, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.reverse_kl_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.reverse_kl_divergence, temperature)


def symmetric_kl(*, reverse_weight: float | Array = 0.5, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.symmetric_kl_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.symmetric_kl_divergence, temperature, reverse_weight=reverse_weight)


def skew_kl(*, skew: float | Array = 0.1, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.skew_kl_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.skew_kl_divergence, temperature, skew=skew)


def skew_reverse_kl(*, skew: float | Array = 0.1, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.skew_reverse_kl_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.skew_reverse_kl_divergence, temperature, skew=skew)


def total_variation(*, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.total_variation`, of softened probabilities."""
    return _divergence(losses.total_variation, temperature)


def adaptive_kl(*, head_mass: float | Array = 0.5, temperature: float | Array = 1.0) -> Term:
    """See `kdjax.losses.adaptive_kl_divergence`, of softened probabilities, without T^2."""
    return _divergence(losses.adaptive_kl_divergence, temperature, head_mass=head_mass)


def top_k_js(*, num_kept: int, beta: float | Array = 0.5, temperature: float | Array = 1.0) -> Term:
    """Jensen-Shannon divergence over the student's largest classes and all others as one.

    Args:
        num_kept: how many classes stay apart, see `kdjax.losses.top_k_log_probs_with_tail`.
        beta: see `kdjax.losses.generalized_js_divergence`.
        temperature: of both sides; there is no T^2.
    """

    def of_kept(student: Array, teacher: Array) -> Array:
        pair = losses.top_k_log_probs_with_tail(student, teacher, num_kept=num_kept)
        return losses.generalized_js_divergence(*pair, beta=beta)

    return _divergence(of_kept, temperature)


def universal_logits(
    *, temperature: float | Array = 1.0, teacher_temperature: float | Array | None = None
) -> Term:
    """See `kdjax.losses.universal_logit_loss`: a teacher of another vocabulary.

    Position by position; where the tokens differ too, line teacher and student up beforehand
    (`kdjax.losses.marked_first`) and mark in the batch's mask what both have.
    """
    return stateless(
        lambda x: losses.universal_logit_loss(
            x.student.logits,
            teacher_of(x).logits,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
        )
    )


def taid(
    *,
    num_steps: int,
    start: float = 0.4,
    end: float = 1.0,
    step_size: float = 5e-4,
    decay: float = 0.99,
) -> Term:
    """Follow a target that moves from the student to the teacher, see `kdjax.losses.taid_loss`.

    The target moves after every call that saw an example, faster while the loss falls; see
    `kdjax.losses.taid_schedule_update`. A micro-batch is a call: with n of them a training of
    `num_steps` steps has n times as many.

    Args:
        num_steps: how many calls the training has.
        start: the first interpolation, in [0, 1].
        end: the last one.
        step_size: how far one call may move it beyond the straight line.
        decay: of the running mean of the relative improvement.

    Returns:
        A term whose state is the schedule's.

    Raises:
        ValueError: if there are no steps, or at trace time if a number is out of its range.
    """
    if num_steps < 1:
        raise ValueError(f"taid: num_steps must be positive, got {num_steps}")

    def init(key: Array, inputs: TermInputs) -> Variables:
        return Variables({}, losses.taid_schedule_init(start=start))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = losses.taid_loss(
            inputs.student.logits,
            teacher_of(inputs).logits,
            interpolation=state["interpolation"],
        )
        total, count = metrics.masked_sum(values, inputs.mask)
        moved = losses.taid_schedule_update(
            state,
            total / jnp.maximum(count, 1),
            state["num_updates"] / num_steps,
            start=start,
            end=end,
            step_size=step_size,
            decay=decay,
        )
        return values, jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), moved, state)

    return Term(init, apply)


def _divergence(
    fn: Callable[..., Array], temperature: float | Array, **hyper: float | Array
) -> Term:
    """A function of log-probabilities as a term of logits; the teacher is constant."""
    divergence = functools.partial(fn, **hyper)

    def values(x: TermInputs) -> Array:
        teacher = jax.lax.stop_gradient(teacher_of(x).logits)
        pair = (losses.tempered_log_softmax(z, temperature) for z in (x.student.logits, teacher))
        return divergence(*pair)

    return stateless(values)
