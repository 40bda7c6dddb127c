"""One compiled step of training, and one of evaluation, as pure functions of arrays."""

import functools
import warnings
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import many, sharding
from kdjax import metrics as measures
from kdjax._steps import (
    OF_CLASSES,
    MetricFn,
    ViewFn,
    are_numbers,
    check_batch,
    check_labels,
    check_numbers,
    check_view,
    examples_in,
    fitting,
    hits,
    in_types_of,
    kept_if,
    key_of,
    mask_of,
    measured,
    seen_by_terms,
    student_of,
    updated,
    view_of,
)
from kdjax.teachers import InputsFn, fed, stored
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Model,
    Objective,
    OnlineTeacher,
    Outputs,
    PyTree,
    Teacher,
    TermInputs,
    TrainState,
    Variables,
)

__all__ = [
    "MetricFn", "TrainStep", "ViewFn", "check_batch", "init_train_state", "make_eval_step",
    "make_train_step", "with_teacher",
]  # fmt: skip

TrainStep = Callable[[TrainState, Batch, Outputs | None], tuple[TrainState, Metrics]]
"""What `make_train_step` makes: (state, batch, teacher_outputs) -> (state, metrics)."""

GradFn = Callable[..., tuple[PyTree, tuple[PyTree, Metrics]]]


def init_train_state(
    key: Array,
    student: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    teacher_outputs: Outputs | None,
    *,
    inputs_fn: InputsFn = itemgetter("image"),
    variables: Variables | None = None,
    average: OnlineTeacher | None = None,
) -> TrainState:
    """Make the state that training starts from.

    A first batch whose values are known, outside of `jax.jit`, is looked at: labels that are no
    class, weights that are none and probabilities in the place of logits are refused here.

    Args:
        key: a PRNG key; the student, the terms and the steps draw from it.
        student: the network to train.
        objective: what to minimize.
        optimizer: how to; it sees `{"student": ..., "terms": ...}`.
        batch: a batch as the step will get it.
        teacher_outputs: the teacher's outputs for it, or None.
        inputs_fn: what the network is fed, `batch["image"]` by default.
        variables: where the student starts, trained before; by default it is drawn. The optimizer
            starts there too, which matters where its state holds copies of the parameters. They
            are copied; None in the place of an array leaves that one drawn.
        average: what `make_train_step` gets as `average`, if anything.

    Returns:
        A state at step 0.

    Raises:
        TypeError: if an entry of the batch holds no numbers.
        ValueError: if the batch or the teacher's outputs do not mean what training takes them for,
            or `variables` are of another network.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, step, terms
        >>> from kdjax.objective import combine
        >>> from kdjax.types import Outputs
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> batch["teacher_logits"] = 9 * jnp.eye(10)[:4]
        >>> teacher = Outputs(batch["teacher_logits"])
        >>> parts = {"student": student, "objective": objective, "optimizer": optimizer}
        >>> make = functools.partial(step.init_train_state, **parts, teacher_outputs=teacher)
        >>> state = jax.eval_shape(make, jax.random.key(0), batch=batch)
        >>> sorted(state.params)
        ['student', 'terms']
    """
    check_batch(batch, teacher_outputs)
    parts = student, objective, optimizer, inputs_fn, average
    state: TrainState
    state, like = _state_from(parts, key, batch, teacher_outputs, variables)
    check_labels(objective, state, batch, teacher_outputs, like)
    return state


def make_train_step(
    student: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    num_micro_batches: int = 1,
    skip_nonfinite: bool = False,
    inputs_fn: InputsFn = itemgetter("image"),
    layout_fn: sharding.LayoutFn | None = None,
    metrics: Mapping[str, MetricFn] | None = None,
    average: OnlineTeacher | None = None,
) -> TrainStep:
    """Compile training: forward, loss, gradient, update.

    The gradient is that of the mean over the batch's valid examples (`batch["mask"]`, all of them
    without one), however many micro-batches it is accumulated over. A mask of numbers weighs them:
    the mean is sum(mask * value) / sum(mask) everywhere. BatchNorm alone changes with
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
        metrics: more to measure in training, by name: functions of the batch and the student's
            outputs.
        average: what keeps a moving average of the student in the state's `teacher_state`, such as
            `kdjax.teachers.ema(student)`: variables to evaluate and to export.

    Returns:
        `train_step(state, batch, teacher_outputs) -> (state, metrics)`, jitted; the state's
        buffers are donated. The metrics are means as `(total, count)`: `loss`, `loss/<term>`, and
        where the labels are classes and there is a teacher, `accuracy`, `agreement` and
        `teacher/accuracy`. An optimizer that asks for them gets `value`, the loss of the step,
        `grad` and `value_fn`, the loss of the whole batch as a function of the parameters.

    Raises:
        ValueError: if `num_micro_batches` is not positive, or at trace time if it does not divide
            the batch or the objective couples its examples.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, step, terms
        >>> from kdjax.objective import combine
        >>> from kdjax.types import Outputs
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> batch["teacher_logits"] = 9 * jnp.eye(10)[:4]
        >>> teacher = Outputs(batch["teacher_logits"])
        >>> parts = {"student": student, "objective": objective, "optimizer": optimizer}
        >>> make = functools.partial(step.init_train_state, **parts, teacher_outputs=teacher)
        >>> state = jax.eval_shape(make, jax.random.key(0), batch=batch)
        >>> train_step = step.make_train_step(**parts)
        >>> state, metrics = jax.eval_shape(train_step, state, batch, teacher)  # or run it
        >>> sorted(metrics)[:3]
        ['accuracy', 'agreement', 'loss']
    """
    if num_micro_batches < 1:
        raise ValueError(
            f"make_train_step: num_micro_batches must be positive, got {num_micro_batches}"
        )

    def loss_fn(
        params: PyTree,
        carried: PyTree,
        step: Array,
        key: Array,
        part: tuple[Any, ...],
        whole: Array | Batch | None = None,
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        batch, teacher_outputs, mask = part
        params, (model_state, term_state) = sharding.gather(params, layout_fn), carried
        outputs, model_state = student.apply(
            params["student"], model_state, fed(inputs_fn, batch), train=True, key=key
        )
        inputs = seen_by_terms(batch, outputs, teacher_outputs, mask)
        loss, term_state, found = objective.apply(
            params["terms"], term_state, inputs, step=step, whole=whole
        )
        own = measured(metrics or {}, batch, outputs, mask)
        carried = in_types_of(carried, (model_state, term_state))
        return loss, (carried, {**found, **hits(inputs), **own})

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: Batch, teacher_outputs: Outputs | None
    ) -> tuple[TrainState, Metrics]:
        loss = sharding.gathered_again(loss_fn, state.params, layout_fn)
        whole = batch, teacher_outputs, mask_of(batch, examples_in(fed(inputs_fn, batch)))
        carried, grad_fn = (state.model_state, state.term_state), jax.grad(loss, has_aux=True)
        rest = carried, state.step, key_of(state), whole
        if num_micro_batches == 1:
            grads, (carried, found) = grad_fn(state.params, *rest)
        else:
            _check_coupling(objective, state)
            parts = _split(whole, num_micro_batches)
            every = _shown_of_all(objective, batch, whole[-1])
            grads, (carried, found) = _accumulate(grad_fn, state, *parts, every, layout_fn)
        seen = {
            "value": measures.mean_of(*found["loss"]),
            "value_fn": lambda params: loss(params, *rest)[0],
        }
        grads = sharding.hold(grads, layout_fn)
        new = updated(state, optimizer, grads, carried, **seen)
        if average is not None:
            moved = average.update(state.teacher_state, student_of(new), new.step)
            new = new.replace(teacher_state=moved)
        new = sharding.hold(new, layout_fn)
        return _unless_nonfinite(state, new, grads, found) if skip_nonfinite else (new, found)

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

    Raises:
        ValueError: at trace time, if `view_fn` changes the batch but not the answers that
            `kdjax.teachers.stored` reads from it: the teacher saw something else.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import step, teachers
        >>> def train_step(state, batch, outputs):  # `make_train_step` makes it in real life
        ...     return state + 1, {"loss": (outputs.logits.sum(), jnp.array(1))}
        ...
        >>> train_step = step.with_teacher(train_step, teachers.stored())
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "teacher_logits": jnp.ones((4, 10))}
        >>> state, metrics = train_step(jnp.array(0), batch)
        >>> print(metrics["loss"][0])
        40.0
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
        check_view(batch, view, teacher.held_in)
        whole = sharding.gather(teacher_variables, layout)
        return train_step(state, view, teacher.apply(whole, view))

    return many.carrying(step, teacher_variables=variables)


def make_eval_step(
    model: Model,
    *,
    inputs_fn: InputsFn = itemgetter("image"),
    layout_fn: sharding.LayoutFn | None = None,
    metrics: Mapping[str, MetricFn] | None = None,
) -> Callable[[Variables, Batch], Metrics]:
    """Compile evaluation of a network in evaluation mode.

    Floating labels are class probabilities where every row is nonnegative and sums to 1, or where
    they are traced and have several columns; all others are real numbers.

    Args:
        model: the network.
        inputs_fn: what it is fed, `batch["image"]` by default.
        layout_fn: where its variables live, as in `make_train_step`.
        metrics: more to measure, by name: functions of the batch and the outputs.

    Returns:
        `eval_step(variables, batch) -> metrics`: against `batch["label"]` the `accuracy`, `nll`
        (nats) and `ece` of classes and class probabilities, `binary_accuracy` and
        `mean_average_precision` of integers or booleans for each logit, where -1 is not known, or
        the mean squared error `mse` of real numbers; `agreement` on classes where the batch carries
        `teacher_logits`. `kdjax.metrics` has more, `metrics={name: kdjax.metrics.of(measure)}`.
        Examples count as `batch["mask"]` says, in training as here.

    Raises:
        ValueError: from the step, if nothing is known for such labels and no metric is given.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import models, step
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> network = models.mlp(10, widths=(8,))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), batch["image"])
        >>> sorted(jax.eval_shape(step.make_eval_step(network), variables, batch))
        ['accuracy', 'ece', 'nll']
    """

    @functools.partial(jax.jit, static_argnums=2)
    def evaluated(variables: Variables, batch: Batch, real: bool) -> Metrics:
        variables = sharding.gather(variables, layout_fn)
        inputs = fed(inputs_fn, batch)
        outputs, _ = model.apply(*variables, inputs, train=False)
        logits, mask = outputs.logits, mask_of(batch, examples_in(inputs))
        labels = batch.get("label")
        fns = fitting(logits, labels, real)
        if not fns and not metrics:
            label = "no label" if labels is None else f"label {labels.dtype}{labels.shape}"
            raise ValueError(
                f"make_eval_step: there is {label} beside logits {logits.shape}, for which no "
                f"measure is known; the batch has {sorted(batch)}; pass metrics={{name: function}}"
            )
        found = {name: fn(logits, labels, mask) for name, fn in fns.items()}
        if "teacher_logits" in batch and logits.shape[-1] > 1 and (not fns or fns is OF_CLASSES):
            said = stored().apply((), batch).logits
            found["agreement"] = measures.agreement(logits, said, mask)
        return {**found, **measured(metrics or {}, batch, outputs, mask)}

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        check_numbers(batch)
        found: Metrics = evaluated(variables, batch, are_numbers(batch))
        return found

    return eval_step


@functools.partial(jax.jit, static_argnums=0)
def _state_from(
    parts: tuple[Model, Objective, optax.GradientTransformation, InputsFn, OnlineTeacher | None],
    key: Array,
    batch: Batch,
    teacher_outputs: Outputs | None,
    given: Variables | None,
) -> tuple[TrainState, Outputs]:
    """Make a state, and empty arrays with the shapes of the student's outputs."""
    student, objective, optimizer, inputs_fn, average = parts
    student_key, term_key, step_key = jax.random.split(key, 3)
    images = fed(inputs_fn, batch)
    variables = student.init(student_key, images)
    if given is not None:
        variables = _as_like(given, variables)
    outputs, _ = student.apply(*variables, images, train=False)
    inputs = TermInputs(batch, outputs, teacher_outputs, mask_of(batch, examples_in(images)))
    terms = objective.init(term_key, inputs)
    params = {"student": variables.params, "terms": terms.params}
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    state = TrainState(step, params, variables.state, terms.state, opt_state, step_key)
    if average is not None:
        state = state.replace(teacher_state=average.init(variables))
    return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), outputs)


def _as_like(given: Variables, like: Variables) -> Variables:
    """Return copies of variables in the types of a network's own, which they must fit."""
    flat = (jax.tree.leaves_with_path(tuple(x), is_leaf=lambda x: x is None) for x in (given, like))
    theirs, ours = ({jax.tree_util.keystr(path): x for path, x in leaves} for leaves in flat)
    theirs = {path: ours.get(path) if x is None else x for path, x in theirs.items()}
    for path in [*ours, *theirs]:
        shapes = [jnp.shape(tree[path]) if path in tree else None for tree in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"init_train_state: variables have {shapes[0]} at {path}, the student {shapes[1]}"
            )
    # A copy: the step donates the buffers of its state.
    leaves = [jnp.array(theirs[path], x.dtype, copy=True) for path, x in ours.items()]
    found: Variables = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return found


def _split(parts: PyTree, num_parts: int) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """Cut a batch into interleaved parts.

    Part i holds rows i, i + n, i + 2n, ...: a batch that is split over devices stays where it is.
    What is one for the whole batch, such as a scalar or a teacher's head, is in every part.

    Returns:
        What has rows, [parts, rows, ...], and what makes a part of one of each.
    """
    leaves, tree = jax.tree.flatten(parts)
    size = len(leaves[-1])
    if size % num_parts:
        raise ValueError(
            f"train_step: a batch of {size} does not divide into {num_parts} micro-batches"
        )
    has_rows = [x.shape[:1] == (size,) for x in leaves]

    def cut(x: Array) -> Array:
        return jnp.swapaxes(jnp.reshape(x, (size // num_parts, num_parts, *x.shape[1:])), 0, 1)

    def part_of(rows: list[Array]) -> PyTree:
        own = iter(rows)
        pairs = zip(leaves, has_rows, strict=True)
        return jax.tree.unflatten(tree, [next(own) if cut else x for x, cut in pairs])

    return [cut(x) for x, rows in zip(leaves, has_rows, strict=True) if rows], part_of


def _shown_of_all(objective: Objective, batch: Batch, mask: Array) -> Array | Batch:
    """Return what an objective is to know of a batch that it sees in parts."""
    if objective.ignores_labels and "label" in batch:
        return {"mask": mask, "label": batch["label"]}
    return mask


def _accumulate(
    grad_fn: GradFn,
    state: TrainState,
    rows: list[Array],
    part_of: Callable[[list[Array]], PyTree],
    whole: Array | Batch,
    layout_fn: sharding.LayoutFn | None,
) -> tuple[PyTree, tuple[PyTree, Metrics]]:
    """Sum gradients and metrics over the parts; each part hands its state on to the next."""
    key = key_of(state)

    def body(carry: PyTree, index_and_rows: PyTree) -> tuple[PyTree, Metrics]:
        grads, carried = carry
        index, own = index_and_rows
        part_key = jax.random.fold_in(key, index)
        new_grads, (carried, metrics) = grad_fn(
            state.params, carried, state.step, part_key, part_of(own), whole
        )
        new_grads = sharding.hold(new_grads, layout_fn)
        return (jax.tree.map(jnp.add, grads, new_grads), carried), metrics

    first = jax.tree.map(jnp.zeros_like, state.params), (state.model_state, state.term_state)
    indices = jnp.arange(len(rows[-1]))
    (grads, carried), metrics = many.scan(body, first, (indices, rows))
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
