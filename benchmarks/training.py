"""The throughput of whole training against the compiled step alone.

    python -m benchmarks.training

The loop gathers batches of 128 in the shape of MNIST, feeds them, runs the step with its teacher
and reads the metrics; the step alone gets one batch that is on the device already.
"""

import itertools

import jax
import numpy as np
import optax

from benchmarks.timing import command, line, ratio
from kdjax import data, loop, models, sharding, step, teachers, terms
from kdjax.objective import combine

NUM_STEPS = 100


def main() -> None:
    """Print the ratio."""
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.integers(0, 256, (60_000, 28, 28, 1), np.uint8),
        "label": rng.integers(0, 10, 60_000).astype(np.int32),
    }
    mesh = sharding.make_mesh()
    batches = (
        sharding.shard_batch(b, mesh) for b in data.train_batches(examples, seed=0, batch_size=128)
    )
    batch, optimizer = next(batches), optax.adam(1e-3)
    student, teacher_model = (
        models.normalized(models.mlp(10, widths=widths), [0.13], [0.31])
        for widths in ((800, 800), (1200, 1200))
    )
    variables = teacher_model.init(jax.random.key(1), batch["image"])
    teacher = teachers.frozen(teacher_model, sharding.replicate(variables, mesh))
    objective = combine({"kd": terms.kd()}, {"kd": 1.0})
    outputs = teacher.apply(teacher.variables, batch)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)
    state = sharding.replicate(state, mesh)

    def step_only() -> None:
        nonlocal state
        for _ in range(NUM_STEPS):
            state, _ = run(state, batch)
        jax.block_until_ready(state)

    def whole() -> None:
        nonlocal state
        end = int(state.step) + NUM_STEPS
        state = loop.fit(run, state, itertools.islice(batches, NUM_STEPS), num_steps=end)
        jax.block_until_ready(state)

    result = ratio(step_only, whole, repeats=7)
    print(line(f"{NUM_STEPS} steps alone against whole training", result, 0.95, at_least=True))


if __name__ == "__main__":
    command(main, __doc__)
