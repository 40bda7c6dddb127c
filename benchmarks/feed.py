"""How fast examples are fed, and whether a step ever waits for them.

    python -m benchmarks.feed
    python -m benchmarks.feed --workers 16 --batch-size 256 --image-size 224 --steps 100

Made-up photographs in ImageNet's format are read, decoded, cropped at random and put on the device:
alone, beside a step of a resnet18, and beside a device that is simulated by waiting for a little
longer than a batch takes to be fed. On a machine whose processors do both, feed and step share
them, and only the third line says whether the feed keeps out of the way.
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import photographs
from benchmarks.timing import seconds
from kdjax import data, models, sharding, step, teachers, terms
from kdjax.objective import combine

StepFn = Callable[[Any], Any]


def parsed() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name, default in (("workers", 0), ("batch-size", 16), ("image-size", 32), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser.parse_args()


def batches_of(arrays: Any, mesh: Any, flags: argparse.Namespace) -> Iterator[Any]:
    """Feed batches without end, as `experiments.distill` does."""
    made = data.train_batches(arrays, seed=0, batch_size=flags.batch_size, workers=flags.workers)
    return data.prefetch(made, functools.partial(sharding.shard_batch, mesh=mesh))


def time_of(batches: Iterator[Any], run_fn: StepFn, num_steps: int) -> float:
    """Return the seconds a batch takes, after the first two, which start and compile."""
    for batch in itertools.islice(batches, 2):
        jax.block_until_ready(run_fn(batch))

    def run() -> None:
        result = None
        for batch in itertools.islice(batches, num_steps):
            result = run_fn(batch)
        jax.block_until_ready(result)

    return seconds(run) / num_steps


def real_step(batch: Any) -> StepFn:
    """Return a function that trains a resnet18 by a step, and answers with its metrics."""
    mean, half = np.full(3, 0.5), jax.default_backend() != "cpu"
    dtype = jnp.bfloat16 if half else None
    model = models.normalized(models.resnet18(photographs.NUM_CLASSES, dtype=dtype), mean, mean)
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    optimizer, absent = optax.sgd(0.1, momentum=0.9), teachers.absent()
    train_step = step.make_train_step(model, objective, optimizer)
    run = step.with_teacher(train_step, absent)
    outputs = absent.apply(absent.variables, batch)
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)

    def take(batch: Any) -> Any:
        nonlocal state
        state, metrics = run(state, batch)
        return metrics

    return take


class Rates(NamedTuple):
    """What was fed, and the seconds that a batch takes: to be fed, trained on, and both at once."""

    name: str
    fed: float
    alone: float
    together: float

    @property
    def ratio(self) -> float:
        """How much longer both take than the slower of the two."""
        return self.together / max(self.fed, self.alone)


def measured(flags: argparse.Namespace) -> Iterator[Rates]:
    """Time the feed beside a resnet18, and beside a device that is simulated by waiting."""
    mesh = sharding.make_mesh()
    with tempfile.TemporaryDirectory() as root:
        photographs.prepare(Path(root), 128)
        dataset = data.load(
            "photographs", data_dir=root, image_size=flags.image_size, streaming=True
        )
        cropped = dataset.train.image.cropped(data.random_crop)
        feed = functools.partial(
            batches_of, dataset.train._replace(image=cropped)._asdict(), mesh, flags
        )
        measure = functools.partial(time_of, num_steps=flags.steps)
        fed = measure(feed(), lambda batch: batch)
        first = next(feed())
        take = real_step(first)
        alone = measure(itertools.repeat(first), take)
        yield Rates("resnet18", fed, alone, measure(feed(), take))
        pause = 1.25 * fed
        waiting = measure(feed(), lambda batch: time.sleep(pause))
        yield Rates("a device apart (simulated)", fed, pause, waiting)


def main() -> None:
    """Print the lines."""
    flags = parsed()
    for rates in measured(flags):
        fed, alone, together = (f"{flags.batch_size / value:.0f}" for value in rates[1:])
        print(
            f"{rates.name}: {fed} examples/s fed, {alone} trained on, {together} together; "
            f"together / the slower: {rates.ratio:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
