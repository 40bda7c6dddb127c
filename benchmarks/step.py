"""The compiled step against a minimal hand-written one with the textbook loss.

    python -m benchmarks.step

Both do the same work on the networks of the MNIST experiment: a frozen 784-1200-1200-10 teacher, a
784-800-800-10 student, Adam, batches of 128.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import command, line, ratio
from kdjax import models, step, teachers, terms
from kdjax.objective import combine

BATCH_SIZE, STEPS, TEMPERATURE, SOFT_WEIGHT = 128, 20, 4.0, 0.9


def make_batch() -> dict[str, jax.Array]:
    """Return random images and labels in the shape of MNIST."""
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(BATCH_SIZE, 28, 28, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, BATCH_SIZE), jnp.int32),
    }


def library_step(optimizer: Any, batch: Any) -> Any:
    """Return a function that takes STEPS steps with the library."""
    student, teacher_model = models.mlp(10, widths=(800, 800)), models.mlp(10, widths=(1200, 1200))
    teacher = teachers.frozen(teacher_model, teacher_model.init(jax.random.key(1), batch["image"]))
    objective = combine(
        {"soft": terms.soft_targets(temperature=TEMPERATURE), "hard": terms.cross_entropy()},
        {"soft": SOFT_WEIGHT, "hard": 1 - SOFT_WEIGHT},
    )
    outputs = teacher.apply(teacher.variables, batch)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = run(state, batch)
        jax.block_until_ready(state)

    return steps


def textbook_step(optimizer: Any, batch: Any) -> Any:
    """Return a function that takes STEPS steps as one would write them by hand."""
    widths = {"student": (784, 800, 800, 10), "teacher": (784, 1200, 1200, 10)}
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def init(sizes: tuple[int, ...]) -> Any:
        return [
            (jax.random.normal(next(keys), (m, n)) / m**0.5, jnp.zeros(n))
            for m, n in itertools.pairwise(sizes)
        ]

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    def loss_fn(params: Any, teacher: Any, batch: Any) -> jax.Array:
        x = batch["image"].reshape(BATCH_SIZE, -1)
        z, v = logits(params, x), logits(teacher, x)
        p, log_q = jax.nn.softmax(v / TEMPERATURE), jax.nn.log_softmax(z / TEMPERATURE)
        kl = jnp.sum(p * (jax.nn.log_softmax(v / TEMPERATURE) - log_q), -1)
        hard = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"])
        return jnp.mean(SOFT_WEIGHT * TEMPERATURE**2 * kl + (1 - SOFT_WEIGHT) * hard)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params: Any, opt_state: Any, teacher: Any, batch: Any) -> Any:
        updates, opt_state = optimizer.update(
            jax.grad(loss_fn)(params, teacher, batch), opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state

    params, teacher = init(widths["student"]), init(widths["teacher"])
    carry = (params, optimizer.init(params))

    def steps() -> None:
        nonlocal carry
        for _ in range(STEPS):
            carry = run(*carry, teacher, batch)
        jax.block_until_ready(carry)

    return steps


def main() -> None:
    """Print the ratio."""
    batch, optimizer = make_batch(), optax.adam(1e-3)
    result = ratio(library_step(optimizer, batch), textbook_step(optimizer, batch))
    print(line(f"{STEPS} steps, library against textbook", result, 1.05))


if __name__ == "__main__":
    command(main, __doc__)
