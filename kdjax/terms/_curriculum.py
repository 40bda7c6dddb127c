"""Terms that change while the student learns: a temperature, a target."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax import losses, metrics
from kdjax.terms._reading import teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def _soft_targets(inputs: TermInputs, temperature: Array) -> Array:
    logits = inputs.student.logits, teacher_of(inputs).logits
    return losses.soft_target_loss(*logits, temperature=temperature)


def curriculum_temperature(
    num_steps: int,
    *,
    loss_fn: Callable[[TermInputs, Array], Array] = _soft_targets,
    low: float = 1.0,
    span: float = 20.0,
    couples_batch: bool = False,
) -> Term:
    """A loss at one temperature that is learned against the student (CTKD).

    The temperature lies between `low` and `low + span`, 15.6 at the start by default, and climbs
    the loss that the student descends; how much of that gradient it gets rises as a cosine from
    none to all, see `kdjax.losses.curriculum_temperature`. The parameter is trained by the
    student's optimizer, weight decay included, unless `optax.partition` says otherwise.

    Args:
        num_steps: over how many steps the gradient rises, the paper's 10 epochs; each micro-batch
            is a step.
        loss_fn: maps `TermInputs` and the temperature, a scalar, to one value per example; the
            soft targets by default.
        low: the lowest temperature.
        span: how far it may rise above that.
        couples_batch: whether that loss relates the examples of a batch to one another.

    Returns:
        A term with a parameter `temperature`, a scalar before the sigmoid, and a state `step`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.curriculum_temperature(1000), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge
        Distillation", 2022, arXiv:2211.16231.
    """
    losses.curriculum_strength(0, num_steps)  # a wrong number is refused here, not in the step

    def init(key: Array, inputs: TermInputs) -> Variables:
        return Variables(
            {"temperature": jnp.ones((), jnp.float32)}, {"step": jnp.zeros((), jnp.int32)}
        )

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        strength = losses.curriculum_strength(state["step"], num_steps)
        temperature = losses.curriculum_temperature(
            params["temperature"], strength, low=low, span=span
        )
        return loss_fn(inputs, temperature), {"step": state["step"] + 1}

    return Term(init, apply, couples_batch)


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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.taid(num_steps=1000), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)
    """
    if num_steps < 1:
        raise ValueError(f"taid: num_steps must be positive, got {num_steps}")

    update = functools.partial(
        losses.taid_schedule_update, start=start, end=end, step_size=step_size, decay=decay
    )

    def init(key: Array, inputs: TermInputs) -> Variables:
        return Variables({}, losses.taid_schedule_init(start=start))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        logits = inputs.student.logits, teacher_of(inputs).logits
        values = losses.taid_loss(*logits, interpolation=state["interpolation"])
        total, count = metrics.masked_sum(values, inputs.mask)
        progress = state["num_updates"] / num_steps
        moved = update(state, total / jnp.maximum(count, 1), progress)
        return values, jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), moved, state)

    return Term(init, apply)
