"""What compiled steps are made of: random keys, the view of a batch, the update of a state."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import metrics as measures
from kdjax.heads import TopK
from kdjax.losses._inputs import within
from kdjax.teachers import check_logits
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Objective,
    Outputs,
    PyTree,
    TermInputs,
    TrainState,
    Variables,
)

__all__ = [
    "OF_CLASSES", "SAMPLE_STREAM", "STUDENT_STREAM", "MetricFn", "ViewFn", "are_numbers",
    "check_batch", "check_labels", "check_numbers", "check_view", "examples_in", "fitting", "hits",
    "in_types_of", "kept_if", "key_of", "mask_of", "measured", "seen_by_terms", "student_of",
    "updated", "view_of",
]  # fmt: skip

ViewFn = Callable[[Array, Batch], Batch]
"""Augments a batch on the device: (key, batch) -> batch."""

MetricFn = Callable[[Batch, Outputs], Any]
"""Measures a network's outputs for a batch: one value per example [batch...], or (total, count)."""

# The uses of a step's key: they must never share random numbers.
STUDENT_STREAM, _VIEW_STREAM, SAMPLE_STREAM = 0, 1, 2


def key_of(state: TrainState, stream: int = STUDENT_STREAM) -> Array:
    """Return the key of a step for one of its uses."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), stream)


def view_of(view_fn: ViewFn | None, state: TrainState, batch: Batch) -> Batch:
    """Return a batch as a step sees it: augmented with random numbers of the step's own."""
    return batch if view_fn is None else view_fn(key_of(state, _VIEW_STREAM), batch)


def check_view(batch: Batch, view: Batch, held_in: tuple[str, ...]) -> None:
    """Raise a ValueError if a batch was augmented, but not the answers that are stored in it."""
    old = [name for name in held_in if name in batch and view.get(name) is batch[name]]
    moved = [name for name in batch if view.get(name) is not batch[name]] if old else []
    if moved:
        raise ValueError(
            f"with_teacher: view_fn changes {', '.join(map(repr, moved))}, but the teacher's "
            f"answers in {old[0]!r} are to what it saw without; take teachers.frozen, or a view_fn "
            f"that replaces {old[0]!r} too"
        )


def check_batch(batch: Batch, teacher_outputs: Outputs | None = None) -> None:
    """Refuse a batch that cannot mean what a step takes it for, where its values are known.

    Args:
        batch: arrays by name.
        teacher_outputs: the teacher's outputs for it, if they are known.

    Raises:
        TypeError: if an entry holds no numbers.
        ValueError: if weights are none, or logits are probabilities.

    Example:
        >>> import numpy as np
        >>> from kdjax import step
        >>> step.check_batch({"image": np.zeros((4, 8, 8, 1)), "label": np.arange(4)})
    """
    check_numbers(batch)
    if "mask" in batch:
        measures.weights_of(batch["mask"])
    if "teacher_logits" in batch:
        check_logits("batch['teacher_logits']", batch["teacher_logits"])
    if teacher_outputs is not None:
        check_logits("the teacher's logits", teacher_outputs.logits)


def check_numbers(batch: Batch) -> None:
    """Raise a TypeError if an entry of a batch holds no numbers, such as file names."""
    for name, value in batch.items():
        for x in jax.tree.leaves(value):
            kind = getattr(getattr(x, "dtype", None), "kind", "")
            if isinstance(x, str | bytes) or kind in tuple("OSUT"):
                raise TypeError(
                    f"batch[{name!r}] holds no numbers; leave it out of what a step gets"
                )


def check_labels(
    objective: Objective, state: TrainState, batch: Batch, teacher: Outputs | None, like: Outputs
) -> None:
    """Raise a ValueError if labels that count are no classes, and the loss is nan for that.

    Args:
        objective: what to minimize; a loss may leave out a label of its own.
        state: of its terms.
        batch: arrays by name.
        teacher: the teacher's outputs for it, or None.
        like: arrays in the shapes of the student's outputs, behind an axis of none.
    """
    labels, shape = measures.known(batch.get("label")), like.logits.shape[1:]
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != shape[:-1]:
        return
    mask, wrong = mask_of(batch, len(labels)), (labels < 0) | (labels >= shape[-1])
    counts = measures.known(measures.counted(measures.spread(mask, labels.shape)))
    found = labels[wrong & counts] if counts is not None else labels[:0]
    if not found.size:
        return
    student = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), like)

    @jax.jit
    def loss(label: Array) -> Array:
        inputs = TermInputs({**batch, "label": label}, student, teacher, mask)
        return objective.apply(state.params["terms"], state.term_state, inputs)[0]

    if not jnp.isfinite(loss(labels)) and jnp.isfinite(loss(np.where(wrong, 0, labels))):
        raise ValueError(
            f"init_train_state: label {found[0]} is no class of {shape[-1]}; leave it out by "
            "batch['mask'], or name it as the loss's ignore_label"
        )


def examples_in(inputs: Any) -> int:
    """Return how many examples a network is fed: the first axis of its inputs."""
    return next(int(x.shape[0]) for x in jax.tree.leaves(inputs) if x.ndim)


def mask_of(batch: Batch, size: int) -> Array:
    """Return which of some examples count, `batch["mask"]`, or all; numbers are weights."""
    if "mask" not in batch:
        return jnp.ones((size,), bool)
    mask = measures.weights_of(batch["mask"])
    if mask.shape[:1] != (size,):
        raise ValueError(
            f"batch['mask'] has shape {mask.shape}, expected {size} examples as the network is fed"
        )
    return mask


def seen_by_terms(
    batch: Batch, student: Outputs, teacher: Outputs | None, mask: Array
) -> TermInputs:
    """Return what a loss may look at; no gradient, nan or not, comes from what does not count."""
    counts = measures.counted(mask)

    def gated(x: Array) -> Array:
        if x.shape[: mask.ndim] != mask.shape or x.ndim == mask.ndim > 1:
            return x
        return jnp.where(measures.spread(counts, x.shape), x, jax.lax.stop_gradient(x))

    student = student if "mask" not in batch else jax.tree.map(gated, student)
    return TermInputs(batch, student, teacher, mask)


def student_of(state: TrainState) -> Variables:
    """Return the variables of the network alone."""
    return Variables(state.params["student"], state.model_state)


def hits(inputs: TermInputs) -> Metrics:
    """Return training accuracy and agreement, for whatever the batch and the teacher provide.

    Accuracy is of labels that are classes: of real numbers it would mean nothing, and nothing
    tells class probabilities from them in a compiled step. One that is no class is no label. Nor
    do networks agree on a class where there is a label, true or false, for each logit.
    """
    student, teacher, mask = inputs.student.logits, inputs.teacher, inputs.mask
    metrics: Metrics = {}
    if student.shape[-1] < 2:
        return metrics
    labels = inputs.batch.get("label", student)
    has_classes = labels.shape == student.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer)
    if has_classes:
        known = measures.spread(mask, labels.shape)
        is_class = within(labels, student.shape[-1])
        known = jnp.where(is_class, known, jnp.zeros_like(known))
        metrics["accuracy"] = measures.accuracy(student, labels, known)
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    by_itself = labels.shape == (student.shape[:-1] if floating else student.shape)
    said = None if teacher is None or by_itself else teacher.logits
    if said is not None and (isinstance(said, TopK) or said.shape == student.shape):
        metrics["agreement"] = measures.agreement(student, said, mask)
        if has_classes:
            metrics["teacher/accuracy"] = measures.accuracy(said, labels, known)
    return metrics


def measured(fns: Mapping[str, MetricFn], batch: Batch, outputs: Outputs, mask: Array) -> Metrics:
    """Return metrics of a user's own; values per example are averaged over those that count."""
    found = {name: fn(batch, outputs) for name, fn in fns.items()}
    return {
        name: x if isinstance(x, tuple) else measures.masked_sum(jnp.asarray(x), mask)
        for name, x in found.items()
    }


OF_CLASSES = {
    "accuracy": measures.accuracy, "nll": measures.nll, "ece": measures.calibration,
}  # fmt: skip
_OF_LABELS: dict[str, Callable[..., Any]] = {
    "binary_accuracy": functools.partial(measures.binary_accuracy, ignore_label=-1),
    "mean_average_precision": functools.partial(measures.mean_average_precision, ignore_label=-1),
}
_OF_NUMBERS = {"mse": measures.squared_error}


def fitting(logits: Array, labels: Any, real: bool) -> Mapping[str, Callable[..., Any]]:
    """Return what can be measured of logits against labels, by name."""
    if labels is None:
        return {}
    one = logits.shape[-1] == 1
    by_itself = labels.shape == logits.shape or (one and labels.shape == logits.shape[:-1])
    if real:
        return _OF_NUMBERS if by_itself else {}
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    if by_itself and not floating:
        return _OF_LABELS
    axes = logits.ndim if floating else logits.ndim - 1
    return OF_CLASSES if labels.shape == logits.shape[:axes] and not one else {}


def are_numbers(batch: Batch) -> bool:
    """Return whether labels are real numbers: neither classes nor distributions over them."""
    labels: Any = batch.get("label")
    if not jnp.issubdtype(getattr(labels, "dtype", jnp.int32), jnp.floating):
        return False
    if labels.ndim < 2 or labels.shape[-1] < 2:
        return True
    values = measures.known(labels)
    if values is None:
        return False
    counts = measures.known(measures.spread(mask_of(batch, len(values)), values.shape[:-1]) > 0)
    is_some = counts is not None and counts.any()
    return not measures.are_probabilities(values[counts] if is_some else values)


def in_types_of(old: PyTree, new: PyTree) -> PyTree:
    """Return a new state in the types of the old: wide inputs, as under x64, widen statistics."""
    return jax.tree.map(lambda x, y: y if y.dtype == x.dtype else y.astype(x.dtype), old, new)


def updated(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    carried: tuple[PyTree, PyTree],
    **seen: Any,
) -> TrainState:
    """Take a step along a gradient; `carried` is the new state of the network and of the terms.

    What optimizers may ask for beside it, such as `value`, the loss, is in `seen`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    # Optimizers of optax count on promotion: decay ** count.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, grad=grads, **seen
        )
        params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1,
        params=params,
        model_state=carried[0],
        term_state=carried[1],
        opt_state=opt_state,
    )


def kept_if(skipped: Array, state: PyTree, new: PyTree) -> PyTree:
    """Return the arrays from before a step that is skipped, or the new ones."""
    return jax.tree.map(lambda old, x: jnp.where(skipped, old, x), state, new)
