"""What checkpoints cost the training that they are taken of.

    python -m benchmarks.checkpoints

A distillation in the shape of MNIST (784-1200-1200-10 into 784-800-800-10, batches of 128, Adam)
runs 100 steps with four checkpoints on the way and 100 without, in turn; the difference is the cost
of four. It is set against 500 steps, the least that `experiments.distill` leaves between two. The
same for checkpoints that the training waits for. On a CPU the thread that writes takes its time
from the step's own cores, so that processor time counts, which a busy machine changes less than the
clock; on an accelerator look at how long the training waits.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks.timing import command
from kdjax import checkpoint, loop, models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import TrainState

NUM_STEPS, NUM_SAVES, BETWEEN, REPEATS = 100, 4, 500, 5


def make_training() -> Callable[[checkpoint.Save | None], list[float]]:
    """Return what trains for `NUM_STEPS`, saving or not, and says how long each save took."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (128, 28, 28, 1), np.uint8),
        "label": rng.integers(0, 10, 128).astype(np.int32),
    }
    optimizer, objective = optax.adam(1e-3), combine({"kd": terms.kd()}, {"kd": 1.0})
    student, teacher_model = (models.mlp(10, widths=w) for w in ((800, 800), (1200, 1200)))
    teacher = teachers.frozen(teacher_model, teacher_model.init(jax.random.key(1), batch["image"]))
    outputs = teacher.apply(teacher.variables, batch)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)

    def train(save_fn: checkpoint.Save | None) -> list[float]:
        nonlocal state
        waits: list[float] = []

        def save(at: int, tree: TrainState) -> None:
            if save_fn is not None:
                began = time.perf_counter()
                save_fn(at, tree)
                waits.append(time.perf_counter() - began)

        end = int(state.step) + NUM_STEPS
        every, batches = NUM_STEPS // NUM_SAVES, itertools.repeat(batch)
        state = loop.fit(run, state, batches, num_steps=end, checkpoint_every=every, save_fn=save)
        jax.block_until_ready(state)
        return waits

    return train


def share(train: Callable[[checkpoint.Save | None], object], save_fn: checkpoint.Save) -> float:
    """Return the processor time of a checkpoint as a share of that of the steps between two."""

    def spent(save: checkpoint.Save | None) -> float:
        before = time.process_time()
        train(save)
        return time.process_time() - before

    pairs = [(spent(save_fn), spent(None)) for _ in range(REPEATS + 1)][1:]
    cost = statistics.median((a - b) / NUM_SAVES for a, b in pairs)
    return cost / (statistics.median(b for _, b in pairs) / NUM_STEPS * BETWEEN)


def main() -> None:
    """Print the shares, and how long the call that saves keeps the training waiting."""
    train = make_training()
    train(None)
    began = time.perf_counter()
    train(None)
    seconds = (time.perf_counter() - began) / NUM_STEPS
    with tempfile.TemporaryDirectory() as scratch:

        def now(step: int, tree: TrainState, *, score: float | None = None) -> None:
            checkpoint.save(Path(scratch, "now"), step, tree, score=score)

        with checkpoint.saving(f"{scratch}/soon") as soon:
            # The first of each run: later ones may wait for the one before.
            waited = statistics.median(train(soon)[0] for _ in range(3))
            beside = share(train, soon)
        between = share(train, now)
    good = "yes" if beside <= 0.02 else "no"
    print(f"step: {seconds * 1e3:.1f} ms; a checkpoint every {BETWEEN} steps")
    print(f"in a thread: {beside:.2%} of the steps' processor time (wanted <= 2 %: {good})")
    print(f"  the training waits {waited * 1e3:.1f} ms, {waited / seconds / BETWEEN:.2%} of them")
    print(f"waited for: {between:.2%}")


if __name__ == "__main__":
    command(main, __doc__)
