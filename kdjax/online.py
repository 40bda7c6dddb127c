"""Training with teachers that learn meanwhile: the student's moving average, and its peers.

A frozen teacher's arrays are arguments of the step (`kdjax.step.with_teacher`). Those of a teacher
that changes are part of what training changes, so they live in its state, where they are donated,
split over the mesh and saved in checkpoints with the rest:

- `init_online_state` and `with_online_teacher` train with a teacher that follows the student, such
  as its moving average, `kdjax.teachers.ema`;
- `init_mutual_states` and `make_mutual_step` train several students at once, each taught by what
  the others say about the batch, `kdjax.teachers.peers`.
"""

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdjax import sharding, teachers
from kdjax._steps import (
    ViewFn,
    check_batch,
    examples_in,
    hits,
    in_types_of,
    kept_if,
    key_of,
    mask_of,
    seen_by_terms,
    student_of,
    updated,
    view_of,
)
from kdjax.metrics import mean_of
from kdjax.step import TrainStep, init_train_state
from kdjax.teachers import InputsFn, fed
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Model,
    Objective,
    OnlineTeacher,
    PyTree,
    TrainState,
)

__all__ = ["init_mutual_states", "init_online_state", "make_mutual_step", "with_online_teacher"]


def init_online_state(
    key: Array,
    student: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    teacher: OnlineTeacher,
    *,
    inputs_fn: InputsFn = itemgetter("image"),
) -> TrainState:
    """Make the state that training with an online teacher starts from.

    Args:
        key: a PRNG key; the student, the terms and the steps draw from it.
        student: the network to train.
        objective: what to minimize.
        optimizer: how to.
        batch: a batch as the step will get it, for its shapes.
        teacher: such as `kdjax.teachers.ema(student)`.
        inputs_fn: what the network is fed, `batch["image"]` by default.

    Returns:
        A state at step 0 with the teacher's arrays in `teacher_state`.

    Raises:
        TypeError, ValueError: as `kdjax.step.init_train_state`, if the batch does not mean what
            training takes it for.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, online, teachers, terms
        >>> from kdjax.objective import combine
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> parts = {"student": student, "objective": objective, "optimizer": optimizer}
        >>> make = functools.partial(
        ...     online.init_online_state, **parts, teacher=teachers.ema(student)
        ... )
        >>> state = jax.eval_shape(make, jax.random.key(0), batch=batch)
        >>> sorted(state.params), len(state.teacher_state)
        (['student', 'terms'], 2)
    """
    check_batch(batch)
    parts = student, objective, optimizer, teacher, inputs_fn
    state: TrainState = _online_state(parts, key, batch)
    return state


@functools.partial(jax.jit, static_argnums=0)
def _online_state(parts: tuple[Any, ...], key: Array, batch: Batch) -> TrainState:
    student, objective, optimizer, teacher, inputs_fn = parts
    # For the shapes that terms look at: the student's variables do not exist yet.
    answers = teacher.apply(teacher.init(student.init(key, fed(inputs_fn, batch))), batch)
    state: TrainState = init_train_state(
        key, student, objective, optimizer, batch, answers, inputs_fn=inputs_fn
    )
    return state.replace(teacher_state=teacher.init(student_of(state)))


def with_online_teacher(
    train_step: TrainStep,
    teacher: OnlineTeacher,
    *,
    view_fn: ViewFn | None = None,
    layout_fn: sharding.LayoutFn | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Run a teacher that follows the student inside the compiled step.

    It answers with its arrays from before the step, and is updated after it.

    Args:
        train_step: what `kdjax.step.make_train_step` returns.
        teacher: such as `kdjax.teachers.ema(student)`.
        view_fn: augmentation, drawn anew at each step from the state's key and shared by teacher
            and student; None leaves the batch as it is.
        layout_fn: where the teacher's arrays live, as in `make_train_step`.

    Returns:
        `step(state, batch) -> (state, metrics)`, jitted; the state's buffers are donated. The
        state is one of `init_online_state`.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, online, step, teachers, terms
        >>> from kdjax.objective import combine
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> teacher = teachers.ema(student)
        >>> parts = {"student": student, "objective": objective, "optimizer": optimizer}
        >>> make = functools.partial(online.init_online_state, **parts, teacher=teacher)
        >>> state = jax.eval_shape(make, jax.random.key(0), batch=batch)
        >>> train_step = online.with_online_teacher(step.make_train_step(**parts), teacher)
        >>> state, metrics = jax.eval_shape(train_step, state, batch)
        >>> sorted(metrics)[:2]
        ['accuracy', 'agreement']
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        view = view_of(view_fn, state, batch)
        variables = sharding.gather(state.teacher_state, layout_fn)
        new, metrics = train_step(state, view, teacher.apply(variables, view))
        renewed = teacher.update(state.teacher_state, student_of(new), new.step)
        renewed = sharding.hold(renewed, layout_fn)
        if "skipped" in metrics:
            renewed = kept_if(metrics["skipped"][0] > 0, state.teacher_state, renewed)
        return new.replace(teacher_state=renewed), metrics

    return step


def init_mutual_states(
    key: Array,
    students: tuple[Model, ...],
    objectives: tuple[Objective, ...],
    optimizers: tuple[optax.GradientTransformation, ...],
    batch: Batch,
    *,
    temperature: float = 1.0,
    inputs_fn: InputsFn = itemgetter("image"),
) -> tuple[TrainState, ...]:
    """Make the states that mutual learning starts from, each from a key of its own.

    Args:
        key: a PRNG key.
        students: two networks or more.
        objectives: what each minimizes; its teacher are the others.
        optimizers: how each does.
        batch: a batch as the step will get it, for its shapes.
        temperature: of the distillation, see `kdjax.teachers.peers`.
        inputs_fn: what the networks are fed, `batch["image"]` by default.

    Returns:
        A state at step 0 for every student.

    Raises:
        TypeError: if an entry of the batch holds no numbers.
        ValueError: if students, objectives and optimizers are not as many, or fewer than two, or
            the batch does not mean what training takes it for.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, online, terms
        >>> from kdjax.objective import combine
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> parts = (student, student), (objective, objective), (optimizer, optimizer)
        >>> make = lambda key: online.init_mutual_states(key, *parts, batch)
        >>> states = jax.eval_shape(make, jax.random.key(0))
        >>> len(states)
        2
    """
    _check_as_many("init_mutual_states", students, objectives, optimizers)
    check_batch(batch)
    parts = tuple(students), tuple(objectives), tuple(optimizers), temperature, inputs_fn
    states: tuple[TrainState, ...] = _mutual_states(parts, key, batch)
    return states


@functools.partial(jax.jit, static_argnums=0)
def _mutual_states(parts: tuple[Any, ...], key: Array, batch: Batch) -> tuple[TrainState, ...]:
    students, objectives, optimizers, temperature, inputs_fn = parts
    keys, inputs = jax.random.split(key, len(students)), fed(inputs_fn, batch)
    variables = [student.init(k, inputs) for student, k in zip(students, keys, strict=True)]
    answers = [
        student.apply(*own, inputs, train=False)[0]
        for student, own in zip(students, variables, strict=True)
    ]
    members = zip(keys, students, objectives, optimizers, strict=True)
    taught = teachers.peers(answers, temperature=temperature)
    return tuple(
        init_train_state(*member, batch, teacher, inputs_fn=inputs_fn)
        for member, teacher in zip(members, taught, strict=True)
    )


def make_mutual_step(
    students: Sequence[Model],
    objectives: Sequence[Objective],
    optimizers: Sequence[optax.GradientTransformation],
    *,
    temperature: float = 1.0,
    view_fn: ViewFn | None = None,
    inputs_fn: InputsFn = itemgetter("image"),
    layout_fn: sharding.LayoutFn | None = None,
) -> Callable[[Sequence[TrainState], Batch], tuple[tuple[TrainState, ...], Metrics]]:
    """Compile mutual learning: several students trained together, each taught by the others.

    All see the same view of the batch. Each objective gets what the other students say in
    training, before the step, as its teacher's outputs, which are constant to it. The students may
    differ in everything but the classes.

    Args:
        students: two networks or more.
        objectives: what each minimizes, such as cross-entropy plus soft targets.
        optimizers: how each does.
        temperature: of the distillation, for what more than one peer says, see
            `kdjax.teachers.peers`.
        view_fn: augmentation, drawn at each step from the first state's key; None leaves the batch
            as it is.
        inputs_fn: what the networks are fed, `batch["image"]` by default.
        layout_fn: where the arrays of all states live, as in `kdjax.step.make_train_step`.

    Returns:
        `step(states, batch) -> (states, metrics)`, jitted; the buffers of the states are donated.
        The metrics are those of `kdjax.step.make_train_step` under `peer_<i>/`, and `loss`, the
        sum of all students' losses.

    Raises:
        ValueError: if students, objectives and optimizers are not as many, or fewer than two.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import models, online, terms
        >>> from kdjax.objective import combine
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> parts = (student, student), (objective, objective), (optimizer, optimizer)
        >>> make = lambda key: online.init_mutual_states(key, *parts, batch)
        >>> states = jax.eval_shape(make, jax.random.key(0))
        >>> states, metrics = jax.eval_shape(online.make_mutual_step(*parts), states, batch)
        >>> len(states), "peer_1/loss" in metrics
        (2, True)

    References:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384.

    Differs from the paper: all students are updated at once, from what all said before, where its
    algorithm updates one after the other and asks the updated ones again.
    """
    _check_as_many("make_mutual_step", students, objectives, optimizers)

    def loss_fn(
        params: list[PyTree], states: Sequence[TrainState], batch: Batch
    ) -> tuple[Array, tuple[list[PyTree], Metrics]]:
        params, inputs = sharding.gather(params, layout_fn), fed(inputs_fn, batch)
        mask = mask_of(batch, examples_in(inputs))
        answers = [
            student.apply(own["student"], state.model_state, inputs, train=True, key=key_of(state))
            for student, state, own in zip(students, states, params, strict=True)
        ]
        taught = teachers.peers([outputs for outputs, _ in answers], temperature=temperature)
        loss, total, carried = jnp.zeros(()), jnp.zeros(()), []
        metrics: Metrics = {}
        for i, (outputs, model_state) in enumerate(answers):
            seen, state = seen_by_terms(batch, outputs, taught[i], mask), states[i]
            own_loss, term_state, own = objectives[i].apply(
                params[i]["terms"], state.term_state, seen, step=state.step
            )
            old = state.model_state, state.term_state
            carried.append(in_types_of(old, (model_state, term_state)))
            metrics |= {f"peer_{i}/{name}": x for name, x in {**own, **hits(seen)}.items()}
            loss, total = loss + own_loss, total + own["loss"][0]
        # The peers' counts are the same.
        return loss, (carried, {"loss": (total, metrics["peer_0/loss"][1]), **metrics})

    @functools.partial(jax.jit, donate_argnums=0)
    def step(states: Sequence[TrainState], batch: Batch) -> tuple[tuple[TrainState, ...], Metrics]:
        view = view_of(view_fn, states[0], batch)
        params = [state.params for state in states]
        loss = sharding.gathered_again(loss_fn, params, layout_fn)
        grads, (carried, metrics) = jax.grad(loss, has_aux=True)(params, states, view)
        grads = sharding.hold(grads, layout_fn)
        parts = zip(states, optimizers, grads, carried, strict=True)
        values = [mean_of(*metrics[f"peer_{i}/loss"]) for i in range(len(states))]
        new = tuple(updated(*part, value=own) for part, own in zip(parts, values, strict=True))
        return sharding.hold(new, layout_fn), metrics

    return step


def _check_as_many(function: str, *parts: Sequence[Any]) -> None:
    counts = [len(part) for part in parts]
    if len(set(counts)) != 1 or counts[0] < 2:
        raise ValueError(
            f"{function}: there are {counts[0]} students, {counts[1]} objectives and {counts[2]} "
            "optimizers, expected as many of each and at least two"
        )
