"""Several networks trained together in one program, each as if it were alone."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from kdjax import loop, many, sharding
from kdjax.runs.evaluation import Run
from kdjax.runs.log import TrainingLog
from kdjax.runs.training import Feed, Training, fit, restored, rows_of, steps_per_call
from kdjax.types import Batch, Metrics, PyTree, TrainState, Variables


def train_together(
    run: Run,
    training: Training,
    seeds: Sequence[int],
    *,
    settings: PyTree = None,
    directory: Path,
    watch_fn: Callable[[int, Variables], None] | None = None,
    watch_every: int | None = None,
) -> tuple[Variables, float]:
    """Train networks of one architecture in one program, each as if it were alone.

    Args:
        run: where to log, and when to stop.
        training: what they have in common.
        seeds: one per member: initial values, order of the batches, dropout and views.
        settings: arrays [members, ...] that steps depend on.
        directory: where the checkpoints are.
        watch_fn: called with a step and the variables [members, ...] now and then, and at the end;
            a training that was interrupted calls it for the remaining steps only.
        watch_every: steps between these calls.

    Returns:
        The trained variables, whose arrays have a leading axis [members], and the seconds that
        their training took.

    Raises:
        loop.NonFiniteLoss: if a member's loss was nan or infinite.
        loop.Stopped: if the run was asked to stop; the state is saved.
    """
    log = TrainingLog(run, training.phase, None, training.phase, training.num_steps)
    states = restored(log, directory, sharding.replicate(_made_alike(training, seeds), run.mesh))
    examples = sharding.replicate(dict(training.examples), run.mesh)
    most = min(steps_per_call(run, _traced(training, states, settings)), training.num_steps)
    program = _program(training, one_by_one=most == 1)
    source = jax.tree.map(jnp.asarray, training.teacher.variables)
    held = Partial(program, settings=settings, examples=examples, variables=source)
    feed = Feed(held, _rows_together(training, seeds, loop.step_of(states)), most)

    def watch(at: int, states: TrainState) -> dict[str, Any]:
        assert watch_fn is not None
        watch_fn(at, training.trained(states))
        return {}

    eval_every = watch_every or training.num_steps
    states = fit(log, states, feed, directory, eval_every, watch if watch_fn else None)
    return training.trained(states), run.log.seconds(training.phase, None)


def _rows_together(
    training: Training, seeds: Sequence[int], start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of all members, `index` [members, batch]; those of one seed are drawn once."""
    orders = {seed: rows_of(training, seed, start) for seed in dict.fromkeys(seeds)}
    while True:
        drawn = {seed: next(rows)["index"] for seed, rows in orders.items()}
        yield {"index": np.stack([drawn[seed] for seed in seeds])}


def _traced(training: Training, states: TrainState, settings: PyTree) -> Any:
    """Trace a step of the first member, for what it is made of."""
    batch = {name: x[: training.batch_size] for name, x in training.examples.items()}
    state, setting = many.member((states, settings), 0)
    return jax.make_jaxpr(training.step_fn(setting, training.teacher))(state, batch)


def _program(training: Training, *, one_by_one: bool) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make the program of several steps of all members, or of a single one without any loop."""

    def member(
        state: TrainState,
        rows: Batch,
        setting: PyTree,
        count: jax.Array | None,
        examples: Batch,
        held: PyTree,
    ) -> tuple[TrainState, Metrics]:
        source = training.teacher._replace(variables=held)
        one_step = training.step_fn(setting, source)

        def step_of_rows(state: TrainState, rows: Batch) -> tuple[TrainState, Metrics]:
            return one_step(state, {name: x[rows["index"]] for name, x in examples.items()})

        if count is None:
            return step_of_rows(state, rows)
        return many.take_steps(step_of_rows, state, rows, count)

    sweep = many.make_sweep_step(member, in_axes=(0, 0, 0, None, None, None))

    def step(
        states: TrainState, batch: Batch, *, settings: PyTree, **held: PyTree
    ) -> tuple[TrainState, Metrics]:
        return sweep(states, batch, settings, None, held["examples"], held["variables"])

    def steps(
        states: TrainState, batches: Batch, count: jax.Array, *, settings: PyTree, **held: PyTree
    ) -> tuple[TrainState, Metrics]:
        rows = {"index": np.swapaxes(batches["index"], 0, 1)}
        states, taken = sweep(states, rows, settings, count, held["examples"], held["variables"])
        return states, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), taken)

    return step if one_by_one else steps


def _made_alike(training: Training, seeds: Sequence[int]) -> TrainState:
    """Make the states that members of a program start from."""
    batch = {name: x[:2] for name, x in training.examples.items()}
    outputs = training.teacher.apply(training.teacher.variables, batch)
    keys = (jax.random.key(seed) for seed in seeds)
    made = [training.make_state(key, batch, outputs, training.start) for key in keys]
    states: TrainState = many.stack(made)
    return states
