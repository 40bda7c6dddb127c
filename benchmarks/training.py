"""The throughput of whole training against the compiled step alone.

    python -m benchmarks.training

The loop gathers batches of 128 in the shape of MNIST, hands them to the step with its teacher and
reads the metrics; the step alone gets one batch that is on the device already. The second line is
the loop as `experiments.distill` runs it: on a set that the device holds, several steps a call.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.timing import command, line, ratio
from kdjax import data, loop, many, models, sharding, step, teachers, terms
from kdjax.objective import combine

NUM_STEPS, NUM_EXAMPLES, BATCH_SIZE = 100, 60_000, 128


def step_and_state(batch: Any) -> tuple[Any, Any]:
    """Make a step of MNIST's networks, and the state that it starts from."""
    student, teacher_model = (
        models.normalized(models.mlp(10, widths=widths), [0.13], [0.31])
        for widths in ((800, 800), (1200, 1200))
    )
    teacher = teachers.frozen(teacher_model, teacher_model.init(jax.random.key(1), batch["image"]))
    objective, optimizer = combine({"kd": terms.kd()}, {"kd": 1.0}), optax.adam(1e-3)
    outputs = teacher.apply(teacher.variables, batch)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    key = jax.random.key(0)
    return run, step.init_train_state(key, student, objective, optimizer, batch, outputs)


def step_only(run: Any, state: Any, batch: Any, num_steps: int) -> Callable[[], None]:
    """Return a function that takes steps on one batch."""
    batch = jax.device_put(batch)

    def train() -> None:
        nonlocal state
        for _ in range(num_steps):
            state, _ = run(state, batch)
        jax.block_until_ready(state)

    return train


def whole(
    run: Any, state: Any, batches: Iterator[Any], num_steps: int, steps_per_call: int
) -> Callable[[], None]:
    """Return a function that trains by the loop, on batches of its own."""

    def train() -> None:
        nonlocal state
        end = int(state.step) + num_steps
        part = itertools.islice(batches, num_steps)
        state = loop.fit(run, state, part, num_steps=end, steps_per_call=steps_per_call)
        jax.block_until_ready(state)

    return train


def measured(num_steps: int = NUM_STEPS) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Time both forms of the loop against the step alone; see `benchmarks.timing.ratio`."""
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.integers(0, 256, (NUM_EXAMPLES, 28, 28, 1), np.uint8),
        "label": rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32),
    }
    batches = data.train_batches(examples, seed=0, batch_size=BATCH_SIZE)
    run, state = step_and_state(next(batches))
    held = many.several(many.with_examples(run, examples, sharding.make_mesh()))
    rows = data.train_rows(NUM_EXAMPLES, seed=0, batch_size=BATCH_SIZE)
    trainings = {
        "one by one": whole(run, jax.tree.map(jax.numpy.copy, state), batches, num_steps, 1),
        "up to 50 a call": whole(held, jax.tree.map(jax.numpy.copy, state), rows, num_steps, 50),
    }
    alone = step_only(run, state, next(batches), num_steps)
    for name, train in trainings.items():
        yield name, ratio(alone, train, repeats=9)


def main() -> None:
    """Print the ratios."""
    for name, result in measured():
        name = f"{NUM_STEPS} steps alone against whole training, {name}"
        print(line(name, result, 0.97, at_least=True), flush=True)


if __name__ == "__main__":
    command(main, __doc__)
