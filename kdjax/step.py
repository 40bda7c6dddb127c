"""One compiled step of training, and one of evaluation, as pure functions of arrays."""

import functools
import warnings
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import many, sharding
from kdjax import metrics as measures
from kdjax._steps import ViewFn, hits, kept_if, key_of, mask_of, updated, view_of
from kdjax.teachers import InputsFn
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Model,
    Objective,
    Outputs,
    PyTree,
    Teacher,
    TermInputs,
    TrainState,
    Variables,
)

__all__ = [
    "TrainStep", "ViewFn", "init_train_state", "make_eval_step", "make_train_step", "with_teacher",
]  # fmt: skip

TrainStep = Callable[[TrainState, Batch, Outputs | None], tuple[TrainState, Metrics]]
GradFn = Callable[..., tuple[PyTree, tuple[PyTree, Metrics]]]


@functools.partial(jax.jit, static_argnames=("student", "objective", "optimizer", "inputs_fn"))
def init_train_state(
    key: Array,
    student: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    teacher_outputs: Outputs | None,
    *,
    inputs_fn: InputsFn = itemgetter("image"),
) -> TrainState:
    """Make the state that training starts from.

    Args:
        key: a PRNG key; the student, the terms and the steps draw from it.
        student: the network to train.
        objective: what to minimize.
        optimizer: how to; it sees `{"student": ..., "terms": ...}`.
        batch: a batch as the step will get it, for its shapes.
        teacher_outputs: the teacher's outputs for it, or None.
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A state at step 0.
    """
    student_key, term_key, step_key = jax.random.split(key, 3)
    variables = student.init(student_key, inputs_fn(batch))
    outputs, _ = student.apply(*variables, inputs_fn(batch), train=False)
    inputs = TermInputs(batch, outputs, teacher_outputs, mask_of(batch))
    terms = objective.init(term_key, inputs)
    params = {"student": variables.params, "terms": terms.params}
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    return TrainState(step, params, variables.state, terms.state, opt_state, step_key)


def make_train_step(
    student: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    num_micro_batches: int = 1,
    skip_nonfinite: bool = False,
    inputs_fn: InputsFn = itemgetter("image"),
    layout_fn: sharding.LayoutFn | None = None,
) -> TrainStep:
    """Compile training: forward, loss, gradient, update.

    The gradient is that of the mean over the batch's valid examples (`batch["mask"]`, all of them
    without one), however many micro-batches it is accumulated over. BatchNorm alone changes with
    micro-batches, by whose statistics it normalizes; a warning says so when the step is traced.
    Terms that couple the examples of a batch would see fewer of them, and are refused.

    Args:
        student: the network to train.
        objective: what to minimize.
        optimizer: any optax transformation.
        num_micro_batches: over how many parts of the batch the gradient is accumulated.
        skip_nonfinite: leave everything as it was but the step's number where the loss or the
            gradient is not finite. The step then adds nothing to the metrics, and 1 to `skipped`,
            whose mean is the share of such steps.
        inputs_fn: what the network is fed, `batch["image"]` by default.
        layout_fn: where the arrays of the state live, the same that it was made with: gradients
            and the new state are kept there. None leaves that to the compiler, which does well
            where every device holds the whole state.

    Returns:
        `train_step(state, batch, teacher_outputs) -> (state, metrics)`, jitted; the state's
        buffers are donated. The metrics are means as `(total, count)`: `loss`, `loss/<term>`, and
        where the batch has labels and there is a teacher, `accuracy`, `agreement` and
        `teacher/accuracy`.

    Raises:
        ValueError: if `num_micro_batches` is not positive, or at trace time if it does not divide
            the batch or the objective couples its examples.
    """
    if num_micro_batches < 1:
        raise ValueError(
            f"make_train_step: num_micro_batches must be positive, got {num_micro_batches}"
        )

    def loss_fn(
        params: PyTree, carried: PyTree, step: Array, key: Array, part: tuple[Any, ...]
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        batch, teacher_outputs, mask, share = part
        params, (model_state, term_state) = sharding.gather(params, layout_fn), carried
        outputs, model_state = student.apply(
            params["student"], model_state, inputs_fn(batch), train=True, key=key
        )
        inputs = TermInputs(batch, outputs, teacher_outputs, mask)
        loss, term_state, metrics = objective.apply(params["terms"], term_state, inputs, step=step)
        return loss * share, ((model_state, term_state), {**metrics, **hits(inputs)})

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: Batch, teacher_outputs: Outputs | None
    ) -> tuple[TrainState, Metrics]:
        loss = sharding.gathered_again(loss_fn, state.params, layout_fn)
        grad_fn = jax.grad(loss, has_aux=True)
        if num_micro_batches == 1:
            carried, whole = (state.model_state, state.term_state), (batch, teacher_outputs)
            part = *whole, mask_of(batch), 1.0
            grads, aux = grad_fn(state.params, carried, state.step, key_of(state), part)
        else:
            _check_coupling(objective, state)
            parts = _split(batch, teacher_outputs, num_micro_batches)
            grads, aux = _accumulate(grad_fn, state, parts, layout_fn)
        grads, (carried, metrics) = sharding.hold(grads, layout_fn), aux
        new = sharding.hold(updated(state, optimizer, grads, carried), layout_fn)
        return _unless_nonfinite(state, new, grads, metrics) if skip_nonfinite else (new, metrics)

    return train_step


def with_teacher(
    train_step: TrainStep, teacher: Teacher, *, view_fn: ViewFn | None = None
) -> many.Step:
    """Run the teacher inside the compiled step, on the view of the batch that the student sees.

    The teacher's variables are passed to the compiled function as an argument at every call; they
    are neither copied into the program nor changed. NumPy arrays among them are put on the device
    here, once; where several processes train together, place them with `kdjax.sharding.place`. They
    may be split over the mesh in their own way: what is split over the axes of the batch is
    gathered when the teacher runs.

    Args:
        train_step: what `make_train_step` returns.
        teacher: where the teacher's outputs come from.
        view_fn: augmentation, drawn anew at each step from the state's key and shared by teacher
            and student (function matching: Beyer et al., "Knowledge distillation: A good teacher
            is patient and consistent", 2021, arXiv:2106.05237). None leaves the batch as it is.

    Returns:
        `step(state, batch) -> (state, metrics)`, jitted; the state's buffers are donated.
    """
    variables = teacher.variables
    if jax.process_count() == 1:
        variables = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, variables
        )
    layout = sharding.layout_of(variables)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, batch: Batch, *, teacher_variables: PyTree
    ) -> tuple[TrainState, Metrics]:
        view = view_of(view_fn, state, batch)
        whole = sharding.gather(teacher_variables, layout)
        return train_step(state, view, teacher.apply(whole, view))

    return many.carrying(step, teacher_variables=variables)


def make_eval_step(
    model: Model,
    *,
    inputs_fn: InputsFn = itemgetter("image"),
    layout_fn: sharding.LayoutFn | None = None,
) -> Callable[[Variables, Batch], Metrics]:
    """Compile evaluation of a network in evaluation mode.

    Args:
        model: the network.
        inputs_fn: what it is fed, `batch["image"]` by default.
        layout_fn: where its variables live, as in `make_train_step`.

    Returns:
        `eval_step(variables, batch) -> metrics`: `accuracy`, `nll` (nats) and `ece` against
        `batch["label"]`, and `agreement` where the batch carries `teacher_logits`; examples that
        `batch["mask"]` leaves out do not count.
    """

    @jax.jit
    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        variables = sharding.gather(variables, layout_fn)
        outputs, _ = model.apply(*variables, inputs_fn(batch), train=False)
        logits, labels, mask = outputs.logits, batch["label"], mask_of(batch)
        metrics = {
            "accuracy": measures.accuracy(logits, labels, mask),
            "nll": measures.nll(logits, labels, mask),
            "ece": measures.calibration(logits, labels, mask),
        }
        if "teacher_logits" in batch:
            metrics["agreement"] = measures.agreement(logits, batch["teacher_logits"], mask)
        return metrics

    return eval_step


def _split(
    batch: Batch, teacher_outputs: Outputs | None, num_parts: int
) -> tuple[Batch, Outputs | None, Array, Array]:
    """Cut a batch into interleaved parts, each with its share of the valid examples.

    Part i holds rows i, i + n, i + 2n, ...: a batch that is split over devices stays where it is.
    """
    mask = mask_of(batch)
    if mask.shape[0] % num_parts:
        raise ValueError(
            f"train_step: a batch of {mask.shape[0]} does not divide into {num_parts} micro-batches"
        )

    def cut(x: Array) -> Array:
        return jnp.swapaxes(jnp.reshape(x, (-1, num_parts, *x.shape[1:])), 0, 1)

    batch, teacher_outputs, mask = jax.tree.map(cut, (batch, teacher_outputs, mask))
    counts = jnp.sum(mask, axis=tuple(range(1, mask.ndim)), dtype=jnp.float32)
    return batch, teacher_outputs, mask, counts / jnp.maximum(jnp.sum(counts), 1)


def _accumulate(
    grad_fn: GradFn, state: TrainState, parts: PyTree, layout_fn: sharding.LayoutFn | None
) -> tuple[PyTree, tuple[PyTree, Metrics]]:
    """Sum gradients and metrics over the parts; each part hands its state on to the next."""
    key = key_of(state)

    def body(carry: PyTree, index_and_part: PyTree) -> tuple[PyTree, Metrics]:
        grads, carried = carry
        index, part = index_and_part
        part_key = jax.random.fold_in(key, index)
        new_grads, (carried, metrics) = grad_fn(state.params, carried, state.step, part_key, part)
        new_grads = sharding.hold(new_grads, layout_fn)
        return (jax.tree.map(jnp.add, grads, new_grads), carried), metrics

    first = jax.tree.map(jnp.zeros_like, state.params), (state.model_state, state.term_state)
    indices = jnp.arange(len(jax.tree.leaves(parts)[0]))
    (grads, carried), metrics = many.scan(body, first, (indices, parts))
    return grads, (carried, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics))


def _unless_nonfinite(
    state: TrainState, new: TrainState, grads: PyTree, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Undo a step whose loss or gradient is not finite; its number stays, its metrics go."""
    leaves = [metrics["loss"][0], *jax.tree.leaves(grads)]
    skipped = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    chosen: TrainState = kept_if(skipped, state, new)
    counted = kept_if(skipped, jax.tree.map(jnp.zeros_like, metrics), metrics)
    share = skipped.astype(jnp.float32), jnp.ones(())
    return chosen.replace(step=new.step), {**counted, "skipped": share}


def _check_coupling(objective: Objective, state: TrainState) -> None:
    """Refuse terms that need the whole batch, and warn of a network that would rather have it."""
    if objective.couples_batch:
        raise ValueError(
            f"train_step: the terms {', '.join(objective.couples_batch)} relate the examples of a "
            "batch to one another, so that their gradient cannot be accumulated over "
            "micro-batches; use num_micro_batches=1"
        )
    if jax.tree.leaves(state.model_state):
        warnings.warn(
            "micro-batches: the network carries running statistics (BatchNorm), which are taken "
            "over each micro-batch; the gradient is not that of the full batch",
            stacklevel=2,
        )
