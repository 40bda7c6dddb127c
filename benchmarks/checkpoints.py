"""What checkpoints cost the training that they are taken of.

    python -m benchmarks.checkpoints

A distillation in the shape of MNIST (784-1200-1200-10 into 784-800-800-10, batches of 128, Adam) is
timed over 500 steps, the distance between checkpoints of `experiments.distill`, with one checkpoint
on the way and without. The same for a checkpoint that the training waits for. On a CPU the writing
thread takes its time from the step's own cores; on an accelerator only the copy on the device is
left.
"""

import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks.timing import line, ratio
from kdjax import checkpoint, loop, models, step, teachers, terms
from kdjax.objective import combine

NUM_STEPS = 500


def main() -> None:
    """Print the ratios, and how long the call that saves keeps the training waiting."""
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
    waits = []

    def train(save_fn: checkpoint.Save | None) -> None:
        nonlocal state
        start = int(state.step)

        def save(at: int, tree: object) -> None:
            # One in the middle; the end of a training waits for its last in any case.
            if save_fn is not None and at != start + NUM_STEPS:
                began = time.perf_counter()
                save_fn(at, tree)
                waits.append(time.perf_counter() - began)

        state = loop.fit(
            run,
            state,
            itertools.repeat(batch),
            num_steps=start + NUM_STEPS,
            checkpoint_every=NUM_STEPS // 2,
            save_fn=save,
        )
        jax.block_until_ready(state)

    with tempfile.TemporaryDirectory() as scratch, checkpoint.saving(f"{scratch}/soon") as soon:

        def now(at: int, tree: object, *, score: float | None = None) -> None:
            checkpoint.save(Path(scratch, "now"), at, tree, score=score)

        beside = ratio(lambda: train(soon), lambda: train(None), repeats=5)
        waited = sorted(waits)[len(waits) // 2]
        between = ratio(lambda: train(now), lambda: train(None), repeats=5)
    size = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state))) / 1e6
    print(line(f"{NUM_STEPS} steps with a checkpoint of {size:.0f} MB", beside, 1.02))
    print(f"  the call returns after {waited * 1e3:.1f} ms, {waited / beside[1]:.2%} of the steps")
    print(line("the same, waiting for the checkpoint", between, 1.02))


if __name__ == "__main__":
    main()
