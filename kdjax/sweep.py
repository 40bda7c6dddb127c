"""Many trainings in one compiled program: one step over stacked states, settings and batches."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kdjax import scans
from kdjax.types import Metrics, PyTree, TrainState

Method = Literal["map", "vmap"]


def stack(members: Sequence[PyTree]) -> PyTree:
    """Put trees of one structure on top of each other.

    Args:
        members: trees of arrays, for example the initial states of several seeds.

    Returns:
        One tree whose arrays have a leading axis, [members, ...].

    Raises:
        ValueError: if there is none, or if their structures or shapes differ.
    """
    if not members:
        raise ValueError("stack: members is empty, expected at least one")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def member(stacked: PyTree, index: int) -> PyTree:
    """Take one training out of a stack: the inverse of `stack`."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def make_sweep_step(
    step: Callable[..., tuple[TrainState, Metrics]],
    *,
    in_axes: Sequence[int | None],
    method: Method | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compile a step that trains all members of a sweep, each as if it were alone.

    The member's step is ordinary code: it may build its objective from a traced setting, such as a
    temperature, and call `kdjax.step.make_train_step` on it.

        def step(state, batch, temperature, teacher_outputs):
            soft = terms.soft_targets(temperature=temperature)
            objective = combine({"soft": soft}, {"soft": 1.0})
            return make_train_step(student, objective, optimizer)(state, batch, teacher_outputs)

        sweep_step = make_sweep_step(step, in_axes=(0, None, 0, None))
        states, metrics = sweep_step(states, batch, jnp.array([1.0, 4.0, 20.0]), outputs)

    Args:
        step: `(state, *rest) -> (state, metrics)` for one member.
        in_axes: for every argument 0 if its arrays have a leading axis [members, ...], None if all
            members share it, as for `jax.vmap`; the state's is 0.
        method: `vmap` computes all members at once, which fills an accelerator; `map` computes them
            in turn, which is faster on CPUs (`python -m benchmarks.sweep`). By default what is
            faster on the backend. The results agree within rounding.

    Returns:
        The same function over stacks, jitted; the buffers of the states are donated. Metrics have a
        leading axis [members].

    Raises:
        ValueError: if `in_axes` does not begin with 0 or the method has another name.
    """
    if not in_axes or in_axes[0] != 0 or any(axis not in (0, None) for axis in in_axes):
        raise ValueError(f"make_sweep_step: in_axes must be (0, ...) of 0 and None, got {in_axes}")
    chosen = method or ("map" if jax.default_backend() == "cpu" else "vmap")
    if chosen not in ("map", "vmap"):
        raise ValueError(f"make_sweep_step: method must be 'map' or 'vmap', got {method!r}")
    if chosen == "vmap":
        return jax.jit(jax.vmap(step, in_axes=tuple(in_axes)), donate_argnums=0)

    def mapped(*args: Any) -> tuple[TrainState, Metrics]:
        def one(own: Sequence[Any]) -> tuple[TrainState, Metrics]:
            rest = iter(own)
            full = [
                next(rest) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True)
            ]
            return step(*full)

        own = [a for a, axis in zip(args, in_axes, strict=True) if axis == 0]
        return scans.scan(lambda _, member: (None, one(member)), None, own)[1]

    return jax.jit(mapped, donate_argnums=0)


def scan_steps(
    step: Callable[..., tuple[TrainState, Metrics]],
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Take several steps in one call: fewer calls, and under `map` fewer copies of the states.

    Not for convolutions on CPUs, see `kdjax.scans.loops_well`.

    Args:
        step: `(state, batch, *rest) -> (state, metrics)`.

    Returns:
        `(state, batches, *rest) -> (state, metrics)`: arrays of `batches` are [steps, batch, ...],
        metrics are summed over the steps as totals and counts are.
    """

    def steps(state: TrainState, batches: PyTree, *rest: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda s, b: step(s, b, *rest), state, batches)
        return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    return steps
