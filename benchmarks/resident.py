"""Several steps a call on a set that the device holds, against single steps on batches fed to it.

    python -m benchmarks.resident
    python -m benchmarks.resident --networks digits mnist --repeats 15

Whole trainings by `loop.fit`, metrics read, on the student of the quickstart (64-32-10, batches of
64), that of the MNIST experiment (784-800-800-10, batches of 128) and a resnet8 (batches of 64),
all with stored logits. What is gained is the host's work for every step; a line says, too, how much
of the processors' time several steps a call take.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.timing import seconds
from kdjax import data, loop, many, models, sharding, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model

STEPS_PER_CALL = 50


class Case(NamedTuple):
    """A network, and how it is trained."""

    model: Model
    shape: tuple[int, ...]
    num_examples: int
    batch_size: int
    num_steps: int


CASES = {
    "digits": Case(models.mlp(10, widths=(32,)), (8, 8, 1), 1_400, 64, 400),
    "mnist": Case(models.mlp(10, widths=(800, 800)), (28, 28, 1), 60_000, 128, 50),
    "resnet8": Case(models.resnet8(10), (32, 32, 3), 10_000, 64, 5),
}


def examples_of(case: Case) -> Mapping[str, Any]:
    """Make random examples with a teacher's logits."""
    rng, count = np.random.default_rng(0), case.num_examples
    return {
        "image": rng.integers(0, 256, (count, *case.shape), np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
        "teacher_logits": rng.normal(size=(count, 10)).astype(np.float32),
    }


def trainings(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions that train on: by single steps, and by calls of several."""
    mesh, examples, size = sharding.make_mesh(), examples_of(case), case.batch_size
    mean = [0.5] * case.shape[-1]
    model, optimizer = models.normalized(case.model, mean, mean), optax.adam(1e-3)
    objective, teacher = combine({"kd": terms.kd()}, {"kd": 1.0}), teachers.stored()
    run = step.with_teacher(step.make_train_step(model, objective, optimizer), teacher)
    steps = many.several(many.with_examples(run, examples, mesh))
    made = data.train_batches(examples, seed=0, batch_size=size)
    fed = (sharding.shard_batch(batch, mesh) for batch in made)
    rows = data.train_rows(case.num_examples, seed=0, batch_size=size)
    first = next(fed)
    outputs = teacher.apply(teacher.variables, first)

    def training(train_step: Any, batches: Any, steps_per_call: int) -> Callable[[], None]:
        state = step.init_train_state(
            jax.random.key(0), model, objective, optimizer, first, outputs
        )
        state = sharding.replicate(state, mesh)

        def train() -> None:
            nonlocal state
            end = int(state.step) + case.num_steps
            part = itertools.islice(batches, case.num_steps)
            state = loop.fit(train_step, state, part, num_steps=end, steps_per_call=steps_per_call)
            jax.block_until_ready(state)

        return train

    return training(run, fed, 1), training(steps, rows, STEPS_PER_CALL)


def measured(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a call, and those of all processors."""
    before = time.process_time()
    return seconds(function), time.process_time() - before


def main() -> None:
    """Print a line per network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7, help="timings of each; default 7")
    flags = parser.parse_args()
    for name in flags.networks:
        single, several = trainings(CASES[name])
        single()
        several()
        pairs = [(measured(single), measured(several)) for _ in range(flags.repeats)]
        times = [statistics.median(x[0] for x in side) for side in zip(*pairs, strict=True)]
        one, calls = (t * 1e3 / CASES[name].num_steps for t in times)
        wall, work = (statistics.median(a[i] / b[i] for a, b in pairs) for i in range(2))
        print(
            f"{name}: {one:.2f} ms a step one by one, {calls:.2f} ms several a call, "
            f"{wall:.2f} times as fast, {1 / work:.2f} of the processors' time",
            flush=True,
        )


if __name__ == "__main__":
    main()
