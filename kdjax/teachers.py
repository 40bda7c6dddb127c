"""Where the teacher's outputs come from: a frozen network, several, or logits stored in the batch.

A teacher is a pair of a function and its arrays. The arrays travel as arguments of the compiled
step; they are never trained, never closed over and bit-identical after training.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, Batch, Model, Outputs, Teacher, Variables

InputsFn = Callable[[Batch], Any]
"""Picks what a network is fed out of a batch."""


def frozen(
    model: Model, variables: Variables, *, inputs_fn: InputsFn = itemgetter("image")
) -> Teacher:
    """Run a trained network in evaluation mode.

    Args:
        model: the teacher's network.
        variables: its trained parameters and state.
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A teacher that answers with the network's logits and features, gradients stopped.
    """

    def apply(variables: Variables, batch: Batch) -> Outputs:
        outputs, _ = model.apply(
            variables.params, variables.state, inputs_fn(batch), train=False, key=None
        )
        return jax.lax.stop_gradient(outputs)

    return Teacher(variables, apply)


def ensemble(
    teachers: Sequence[Teacher], *, weights: Sequence[float] | None = None, temperature: float = 1.0
) -> Teacher:
    """Average the probabilities of several teachers, in log space.

    The answer is temperature * log(mean softmax(logits / temperature)), so that softening it at
    that temperature gives the arithmetic mean of the teachers' softened probabilities.

    Args:
        teachers: at least one teacher; all answer with logits of one shape.
        weights: their shares, positive numbers that are scaled to sum to one; equal by default.
        temperature: where the probabilities are averaged: the temperature of the distillation.

    Returns:
        A teacher that answers with logits only.

    Raises:
        ValueError: if there is no teacher, if weights and teachers differ in number, if a weight
            is not positive, or if the temperature is not.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, sections 2 and 4.
    """
    if not teachers:
        raise ValueError("ensemble: teachers is empty, expected at least one")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"ensemble: temperature must be positive and finite, got {temperature}")
    log_shares = _log_shares(weights, len(teachers))
    applies = [teacher.apply for teacher in teachers]

    def apply(variables: tuple[Any, ...], batch: Batch) -> Outputs:
        answers = [fn(v, batch).logits for fn, v in zip(applies, variables, strict=True)]
        logits = jnp.stack(answers)
        log_probs = jax.nn.log_softmax(
            logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature, axis=-1
        )
        shares = log_shares.astype(log_probs.dtype).reshape((-1,) + (1,) * (logits.ndim - 1))
        return Outputs(temperature * jax.nn.logsumexp(log_probs + shares, axis=0))

    return Teacher(tuple(teacher.variables for teacher in teachers), apply)


def stored(name: str = "teacher_logits") -> Teacher:
    """Read the teacher's logits from the batch, where an earlier pass over the data put them.

    Args:
        name: the batch's key that holds them, [batch..., num_classes].

    Returns:
        A teacher without variables.
    """

    def apply(variables: tuple[()], batch: Batch) -> Outputs:
        if name not in batch:
            raise ValueError(f"stored: the batch has no {name!r}, only {sorted(batch)}")
        return Outputs(jax.lax.stop_gradient(jnp.asarray(batch[name])))

    return Teacher((), apply)


def absent() -> Teacher:
    """Answer with nothing: training from labels alone, in the form of training with a teacher.

    Returns:
        A teacher whose outputs have no logits; a term that asks for them fails at trace time.
    """

    def apply(variables: tuple[()], batch: Batch) -> Any:
        return None

    return Teacher((), apply)


def _log_shares(weights: Sequence[float] | None, num_teachers: int) -> Array:
    shares = np.ones(num_teachers) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (num_teachers,):
        raise ValueError(
            f"ensemble: weights has {shares.size} entries, expected {num_teachers}, one per teacher"
        )
    if not np.all(shares > 0) or not np.all(np.isfinite(shares)):
        raise ValueError(
            f"ensemble: weights must be positive and finite, got {list(weights or ())}"
        )
    return np.log(shares / shares.sum())
