"""Training: resumable, logged, measured."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from kdjax import checkpoint, data, loop, many, metrics, models, sharding, step, teachers
from kdjax.distributed import gathered
from kdjax.runs import evaluation
from kdjax.runs.console import progress, say
from kdjax.runs.evaluation import Arrays, Run, least_steps_between, measure, on_mesh
from kdjax.runs.log import ScoreFn, TrainingLog
from kdjax.runs.settings import STEPS_PER_CALL
from kdjax.runs.tasks import SINGLE_LABEL, Task
from kdjax.types import (
    Batch,
    Metrics,
    Model,
    Objective,
    OnlineTeacher,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
    Variables,
)

RowsFn = Callable[[int, int], Iterator[dict[str, np.ndarray]]]
"""The examples of every batch: (seed, first step) -> an iterator of `index` [batch]."""
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
StepFn = Callable[[PyTree, Teacher], Step]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained, whatever the seed: the compiled step is shared by all seeds.

    `step_fn` makes the step of a setting, which networks that train together each have, and of the
    teacher. `watched` are the splits that are measured now and then, by name. `start` is where the
    network starts, `rows_fn` the order of the examples; by default both come from the seed.
    `average` is the moving average that is evaluated and kept in the place of the network. `spec`
    describes networks of images; `inputs_fn` is what one is fed; `task` says what is measured.
    The best by validation has most of `score_fn`, a metric of what is measured; by default of the
    first that its task shows.
    """

    phase: str
    spec: models.NetworkSpec | None
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    teacher: Teacher
    step_fn: StepFn
    examples: Arrays
    batch_size: int
    num_steps: int
    eval_step: Callable[[Variables, Batch], Any] | None = None
    watched: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)
    start: Variables | None = None
    rows_fn: RowsFn | None = None
    average: OnlineTeacher | None = None
    inputs_fn: teachers.InputsFn = itemgetter("image")
    eval_batch_size: int = evaluation.EVAL_BATCH_SIZE
    task: Task = SINGLE_LABEL
    score_fn: ScoreFn | None = None

    @functools.cached_property
    def train_step(self) -> Step:
        """The step of a network that trains alone."""
        return self.step_fn(None, self.teacher)

    @functools.cached_property
    def make_state(self) -> Callable[..., TrainState]:
        """What makes the state that it starts from: one function, so that seeds compile it once."""
        return functools.partial(_made, self)

    def trained(self, state: TrainState) -> Variables:
        """Return the variables of the network alone, or of its average."""
        if self.average is not None:
            averaged: Variables = state.teacher_state
            return averaged
        return Variables(state.params["student"], state.model_state)

    def network(self, variables: Variables) -> models.Network:
        """Return what is deployed of trained variables."""
        assert self.spec is not None
        return models.Network(self.spec, models.build(self.spec), variables)


class Feed(NamedTuple):
    """A step, what it is called with, and the most steps that it takes in a call."""

    train_step: Callable[..., tuple[Any, Metrics]]
    batches: Iterator[Any]
    steps_per_call: int = 1


def train(run: Run, training: Training, seed: int, *, directory: Path | None = None) -> Variables:
    """Train a network from a seed, or from where an earlier run in this directory left it.

    Args:
        run: where to log, and when to stop.
        training: what to train and how.
        seed: where its initial values, batches, dropout and views come from.
        directory: where its checkpoints are. Default: a folder of the work directory.

    Returns:
        The trained variables of the network alone.

    Raises:
        loop.NonFiniteLoss: if a loss was nan or infinite.
        loop.Stopped: if the run was asked to stop; the state is saved.
    """
    directory = directory or run.workdir / "checkpoints" / f"{training.phase}-{seed}"
    batch = _first_batch(run, training, seed)
    state = _restored_or_made(run, training, directory, seed, batch)
    most = 1
    if _may_take_several(run, training):
        # Traced here, for what it is made of, and not again where it is compiled.
        traced = jax.make_jaxpr(training.train_step)(state, batch)
        most = steps_per_call(run, traced)
    log = TrainingLog(run, training.phase, seed, label_of(training, seed), training.num_steps)
    log.hides = training.task.hides
    log.score_fn = training.score_fn or itemgetter(training.task.columns[0])
    least = least_steps_between(training.watched, training.batch_size)
    eval_every = run.eval_every or max(training.num_steps // 20, least)
    with _fed(run, training, seed, state, most) as feed:
        watch = functools.partial(_validate, run, training) if training.watched else None
        state = fit(log, state, feed, directory, eval_every, watch)
    return training.trained(state)


def label_of(training: Training, seed: int) -> str:
    """Name a training on the console."""
    return f"{training.phase}, seed {seed}"


def audit(
    run: Run,
    training: Training,
    seed: int,
    *,
    exempt: Mapping[str, tuple[str, ...]],
    of_logits: Callable[[Batch, Outputs, Any], tuple[Objective, Any]] | None = None,
) -> None:
    """Hold the objective against what it should satisfy, on the first batch of a training.

    Args:
        run: where it takes place.
        training: what is about to be trained.
        seed: of that training.
        exempt: for the name of a term, what it rightly breaks.
        of_logits: where the objective sees no logits, what makes one that does, and what that is
            given, of a batch and both networks' outputs.

    Raises:
        ValueError: naming what does not hold, after the table that says why.
    """
    # Here and not above: its imports take time that most runs have no use for.
    from kdjax import testing

    size = training.batch_size
    batch = data.train_batch(training.examples, 0, seed=seed, batch_size=size, rows=np.arange(size))
    outputs = training.teacher.apply(gathered(training.teacher.variables), batch)
    inputs = training.inputs_fn(batch)
    variables = training.model.init(jax.random.key(seed), inputs)
    student, _ = training.model.apply(*variables, inputs, train=False)
    objective, given = training.objective, (batch, student, outputs)
    if of_logits is not None:
        objective, given = of_logits(*given)
    report = testing.audit(objective, *jax.device_get(given), exempt=exempt)
    say(f"audit of {training.phase} on the first batch:\n{report}")
    if not report.passed:
        names = ", ".join(finding.name for finding in report.failures)
        raise ValueError(f"--audit: does not hold: {names}; the table above says what to do")


def restored(log: TrainingLog, directory: Path, state: Any) -> Any:
    """Return the newest state that a directory has of a training, or this one where it is empty."""
    found = checkpoint.restore(directory, state, owner=log.owner)
    return found[1] if found else state


def fit(
    log: TrainingLog,
    state: Any,
    feed: Feed,
    directory: Path,
    eval_every: int | None = None,
    watch: Callable[[int, Any], Mapping[str, Any]] | None = None,
) -> Any:
    """Take the steps that a training lacks; every training of a run goes through here.

    Args:
        log: of the training, which knows its run and its number of steps.
        state: where it goes on, a `TrainState` or another with a `step`; its buffers are donated.
        feed: the step, and the batches from the state's step on.
        directory: where the checkpoints go.
        eval_every: steps between calls of `watch`, which is called at the end too.
        watch: measures a state: metrics by split, of which the log's score of `validation` chooses
            the best checkpoint.

    Returns:
        The state at the end.

    Raises:
        loop.NonFiniteLoss: if a loss was nan or infinite.
        loop.Stopped: if the run was asked to stop; the state is saved.
        ValueError: if lines of its log are damaged or gone.
    """
    run, start = log.run, loop.step_of(state)
    log.goes_on(start)
    if start == log.num_steps:
        log.ended(directory)
        return state
    best = [-np.inf]
    with (
        contextlib.ExitStack() as stack,
        progress(log.label, start, log.num_steps) as log.update,
        checkpoint.saving(
            directory, keep=run.keep_last, keep_best=run.keep_best, owner=log.owner
        ) as save_fn,
    ):
        train_step = feed.train_step
        if run.profile:
            trace = run.workdir / "profile" / directory.name
            train_step = stack.enter_context(loop.profiled(train_step, trace))

        def eval_fn(at: int, state: Any) -> None:
            assert watch is not None
            for split, measured in watch(at, state).items():
                log.write(at, split, {"loss": measured.get("nll"), **measured})
                found = metrics.value(log.score_fn(measured))
                if split == "validation" and run.keep_best and found > best[0]:
                    best[0] = found
                    save_fn(at, state, score=found)

        state = loop.fit(
            train_step,
            state,
            feed.batches,
            num_steps=log.num_steps,
            steps_per_call=feed.steps_per_call,
            log_every=run.log_every,
            log_fn=lambda at, measured: log.write(at, "train", measured),
            eval_every=eval_every,
            eval_fn=eval_fn if watch else None,
            checkpoint_every=run.checkpoint_every or max(500, log.num_steps // 20),
            save_fn=save_fn,
            stop_fn=run.stop_fn,
        )
    log.ended(directory)
    return state


def _validate(run: Run, training: Training, at: int, state: TrainState) -> dict[str, Any]:
    own, size = (run, training.eval_step, training.trained(state)), training.eval_batch_size
    return {
        split: measure(*own, arrays, batch_size=size) for split, arrays in training.watched.items()
    }


@contextlib.contextmanager
def _fed(run: Run, training: Training, seed: int, state: TrainState, most: int) -> Iterator[Feed]:
    """Feed a training, and end the threads and processes that read ahead, if there are any."""
    start = loop.step_of(state)
    if most > 1 or training.rows_fn:
        held = many.with_examples(training.train_step, training.examples, run.mesh)
        step_of_rows = many.several(held) if most > 1 else held
        yield Feed(step_of_rows, rows_of(training, seed, start), most)
        return
    size, examples = training.batch_size, training.examples
    rows = sharding.local_rows(run.mesh, size)
    own = data.train_batches(
        examples, seed=seed, batch_size=size, start_step=start, rows=rows, workers=run.workers
    )
    batches = on_mesh(run, examples, own)
    try:
        yield Feed(training.train_step, batches)
    finally:
        getattr(batches, "close", lambda: None)()


def _may_take_several(run: Run, training: Training) -> bool:
    """Whether a call may take several steps: the examples are to be on the devices.

    A trace is one of single steps.
    """
    asked, examples = run.steps_per_call, training.examples
    if run.profile or data.is_lazy(examples) or asked == 1:
        return False
    fits = many.has_room(examples, run.mesh)
    if asked is not None and not fits:
        raise ValueError(f"--steps-per-call {asked}: the examples do not fit on every device")
    return fits


def steps_per_call(run: Run, traced: Any) -> int:
    """Return how many steps a call takes at most.

    Processes that train together cannot each go by their clock; they take one step a call unless
    they are told.
    """
    if run.steps_per_call is not None or jax.process_count() > 1:
        return run.steps_per_call or 1
    on_cpu = run.mesh.devices.flat[0].platform == "cpu"
    return 1 if on_cpu and many.has_convolutions(traced) else STEPS_PER_CALL


def rows_of(training: Training, seed: int, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the examples of every batch from a step on, as `index` [batch]."""
    if training.rows_fn:
        return training.rows_fn(seed, start)
    count, size = len(training.examples["label"]), training.batch_size
    return data.train_rows(count, seed=seed, batch_size=size, start_step=start)


def _made(
    training: Training,
    key: jax.Array,
    batch: Batch,
    outputs: Outputs | None,
    start: Variables | None,
) -> TrainState:
    """Make the state that a training starts from."""
    of = training.model, training.objective, training.optimizer
    state: TrainState = step.init_train_state(
        *(key, *of, batch, outputs),
        variables=start,
        average=training.average,
        inputs_fn=training.inputs_fn,
    )
    return state


def _restored_or_made(
    run: Run, training: Training, directory: Path, seed: int, batch: Batch
) -> TrainState:
    """Read the newest state, or make one, where its arrays live on this run's mesh."""
    make = training.make_state
    outputs = jax.jit(training.teacher.apply)(training.teacher.variables, batch)
    step.check_batch(batch, outputs)
    args = jax.random.key(seed), batch, outputs, training.start
    like = sharding.abstract(make, *args, layout_fn=run.layout_fn)
    found = checkpoint.restore(directory, like, owner=run.owner(training.phase, seed))
    state: TrainState = (
        found[1] if found else sharding.initialize(make, *args, layout_fn=run.layout_fn)
    )
    return state


def _first_batch(run: Run, training: Training, seed: int) -> Batch:
    size = training.batch_size
    rows = sharding.local_rows(run.mesh, size)
    first = data.train_batch(training.examples, 0, seed=seed, batch_size=size, rows=rows)
    return sharding.shard_batch(first, run.mesh)
