"""Training many students in one program against training them one by one.

    python -m benchmarks.sweep

Members are students of several widths, ten to a sweep, at ten temperatures; each takes fifty
steps on batches of its own in the shape of MNIST, the teacher's logits among them. One by one means
a call per member and step, as a training loop makes them.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import command, ratio
from kdjax import many, models, terms
from kdjax.objective import combine
from kdjax.step import init_train_state, make_train_step
from kdjax.types import Array, Batch, Metrics, Model, Outputs, TrainState

NUM_MEMBERS, NUM_STEPS, BATCH_SIZE = 10, 50, 128


def main() -> None:
    """Print members x examples per second of each way, and the ratios."""
    batches = jax.device_put(random_batches())
    temperatures = jnp.geomspace(1.0, 40.0, NUM_MEMBERS)
    for width in (30, 100, 300, 800):
        for method, one, together, quotient in compare(width, batches, temperatures):
            print(
                f"width {width}, {method}: one by one {one:,.0f} members x examples/s, "
                f"sweep {together:,.0f}, ratio {quotient:.2f}",
                flush=True,
            )


def compare(
    width: int, batches: Batch, temperatures: Array
) -> Iterator[tuple[str, float, float, float]]:
    """Time one width.

    Yields:
        The method of the sweep, members x examples a second one by one and in the sweep, and the
        median of the sweep's over the other's.
    """
    model, optimizer = models.mlp(10, widths=(width, width)), optax.adam(1e-3)

    def step(state: TrainState, batch: Batch, temperature: Array) -> tuple[TrainState, Metrics]:
        soft = terms.soft_targets(temperature=temperature)
        train_step = make_train_step(model, combine({"soft": soft}, {"soft": 1.0}), optimizer)
        return train_step(state, batch, Outputs(batch["teacher_logits"]))

    alone = jax.jit(step, donate_argnums=0)
    members, num_steps = batches["label"].shape[:2]
    states = [new_state(model, optimizer, batches, seed) for seed in range(members)]
    parts = [
        ([many.member(many.member(batches, i), k) for k in range(num_steps)], temperatures[i])
        for i in range(members)
    ]

    def one_by_one() -> None:
        for i, (own, temperature) in enumerate(parts):
            for batch in own:
                states[i], _ = alone(states[i], batch, temperature)
        jax.block_until_ready(states)

    work = batches["label"].size
    for method in ("map", "vmap"):
        sweep_step = many.make_sweep_step(
            many.scan_steps(step), in_axes=(0, 0, 0), method="map" if method == "map" else "vmap"
        )
        stacked = [many.stack(states)]

        def together(sweep_step: object = sweep_step, stacked: list[TrainState] = stacked) -> None:
            assert callable(sweep_step)
            stacked[0], _ = sweep_step(stacked[0], batches, temperatures)
            jax.block_until_ready(stacked)

        first, second, quotient = ratio(one_by_one, together, repeats=5)
        yield method, work / first, work / second, quotient


def new_state(
    model: Model, optimizer: optax.GradientTransformation, batches: Batch, seed: int
) -> TrainState:
    """Make a member's initial state."""
    objective = combine({"soft": terms.soft_targets()}, {"soft": 1.0})
    batch = {name: x[0, 0] for name, x in batches.items()}
    outputs = Outputs(batch["teacher_logits"])
    return init_train_state(jax.random.key(seed), model, objective, optimizer, batch, outputs)


def random_batches(
    shape: tuple[int, int, int] = (NUM_MEMBERS, NUM_STEPS, BATCH_SIZE),
) -> dict[str, np.ndarray]:
    """Draw [members, steps, batch, ...] images, labels and logits."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(*shape, 28, 28, 1)).astype(np.float32),
        "label": rng.integers(0, 10, shape).astype(np.int32),
        "teacher_logits": rng.normal(size=(*shape, 10)).astype(np.float32) * 5,
    }


if __name__ == "__main__":
    command(main, __doc__)
