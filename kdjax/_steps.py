"""What compiled steps are made of: random keys, the view of a batch, the update of a state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdjax import metrics as measures
from kdjax.types import Array, Batch, Metrics, PyTree, TermInputs, TrainState, Variables

__all__ = [
    "STUDENT_STREAM", "ViewFn", "hits", "kept_if", "key_of", "mask_of", "student_of", "updated",
    "view_of",
]  # fmt: skip

ViewFn = Callable[[Array, Batch], Batch]
"""Augments a batch on the device: (key, batch) -> batch."""

# The two uses of a step's key: they must never share random numbers.
STUDENT_STREAM, _VIEW_STREAM = 0, 1


def key_of(state: TrainState, stream: int = STUDENT_STREAM) -> Array:
    """Return the key of a step for one of its uses."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), stream)


def view_of(view_fn: ViewFn | None, state: TrainState, batch: Batch) -> Batch:
    """Return a batch as a step sees it: augmented with random numbers of the step's own."""
    return batch if view_fn is None else view_fn(key_of(state, _VIEW_STREAM), batch)


def mask_of(batch: Batch) -> Array:
    """Return which examples of a batch count: `batch["mask"]`, or all of them."""
    if "mask" in batch:
        mask: Array = batch["mask"]
        return mask
    return jnp.ones(jax.tree.leaves(batch)[0].shape[:1], bool)


def student_of(state: TrainState) -> Variables:
    """Return the variables of the network alone."""
    return Variables(state.params["student"], state.model_state)


def hits(inputs: TermInputs) -> Metrics:
    """Return training accuracy and agreement, for whatever the batch and the teacher provide."""
    student, teacher, mask = inputs.student.logits, inputs.teacher, inputs.mask
    labels, metrics = inputs.batch.get("label"), {}
    if labels is not None:
        metrics["accuracy"] = measures.accuracy(student, labels, mask)
    if teacher is not None and teacher.logits.shape == student.shape:
        metrics["agreement"] = measures.agreement(student, teacher.logits, mask)
        if labels is not None:
            metrics["teacher/accuracy"] = measures.accuracy(teacher.logits, labels, mask)
    return metrics


def updated(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    carried: tuple[PyTree, PyTree],
) -> TrainState:
    """Take a step along a gradient; `carried` is the new state of the network and of the terms."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=carried[0],
        term_state=carried[1],
        opt_state=opt_state,
    )


def kept_if(skipped: Array, state: PyTree, new: PyTree) -> PyTree:
    """Return the arrays from before a step that is skipped, or the new ones."""
    return jax.tree.map(lambda old, x: jnp.where(skipped, old, x), state, new)
