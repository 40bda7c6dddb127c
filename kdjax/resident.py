"""Sets that live on the devices, and many steps in one call: for networks whose steps are short."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial

from kdjax import sharding
from kdjax.types import Array, Batch, Metrics, PyTree, TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Steps = Callable[[TrainState, PyTree, Any], tuple[TrainState, Metrics]]

# The rest is for what training needs.
_SHARE_OF_MEMORY = 0.2
_BYTES_WHERE_UNKNOWN = 2**30


def with_examples(step: Step, examples: Mapping[str, Any], mesh: Mesh) -> Step:
    """Let a step take its batches from a set that lives on every device of a mesh.

    The host names the rows of a batch, and every device gathers its own.

    Args:
        step: `(state, batch) -> (state, metrics)`, as `kdjax.step.with_teacher` makes it.
        examples: arrays [examples, ...] by name; they are put on the devices here, once.
        mesh: where; see `fits`.

    Returns:
        `step(state, {"index": [batch]}) -> (state, metrics)`: the batch is what
        `kdjax.data.train_batch` makes of the same rows.
    """
    held = sharding.replicate(dict(examples), mesh)
    return Partial(_gathering(mesh), _as_tree(step), held)


def several(step: Step) -> Steps:
    """Take several steps in one call, one after the other, as one compiled loop.

    It is compiled once for any number of steps, so that where a call ends changes no bit of the
    state.

    Args:
        step: `(state, batch) -> (state, metrics)`. Arrays that it carries as those of
            `kdjax.step.with_teacher` and `with_examples` do are passed on as arguments.

    Returns:
        `steps(state, batches, count) -> (state, metrics)`, jitted, the state's buffers donated:
        arrays of `batches` are [most, ...], of which the first `count` are used. The metrics have
        a leading axis [most], zero behind the steps that were taken. `kdjax.loop.fit` calls it
        with `steps_per_call=most`.
    """
    return Partial(_several, _as_tree(step))


def fits(arrays: Mapping[str, Any], mesh: Mesh) -> bool:
    """Whether every device of a mesh can hold arrays beside a training.

    Args:
        arrays: NumPy arrays by name.
        mesh: the devices.

    Returns:
        Whether the arrays take a fifth of a device's memory at most; of devices that do not say
        what they have, as CPUs, whether the copies of all together take a gibibyte at most.
    """
    size = sum(array.nbytes for array in arrays.values())
    devices = mesh.local_devices
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [_SHARE_OF_MEMORY * limit for limit in limits if limit]
    return size <= min(known, default=_BYTES_WHERE_UNKNOWN / len(devices))


@functools.partial(jax.jit, donate_argnums=1)
def _several(
    step: Step, state: TrainState, batches: PyTree, count: Array
) -> tuple[TrainState, Metrics]:
    def at(index: Any) -> PyTree:
        return jax.tree.map(lambda x: x[index], batches)

    def body(index: Array, carry: Any) -> Any:
        state, taken = carry
        state, metrics = step(state, at(index))
        return state, jax.tree.map(lambda all_, x: all_.at[index].set(x), taken, metrics)

    most = len(jax.tree.leaves(batches)[0])
    _, metrics = jax.eval_shape(step, state, at(0))
    taken = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), metrics)
    return jax.lax.fori_loop(0, count, body, (state, taken))


@functools.cache
def _gathering(mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make the function that gathers; one for a mesh, so that what is compiled is found again."""
    split = sharding.batch_sharding(mesh)

    @functools.partial(jax.jit, donate_argnums=2)
    def step_of_rows(
        step: Step, examples: Batch, state: TrainState, rows: Batch
    ) -> tuple[TrainState, Metrics]:
        index = rows["index"]
        batch = {name: x.at[index].get(mode="promise_in_bounds") for name, x in examples.items()}
        return step(state, jax.lax.with_sharding_constraint({**batch, "index": index}, split))

    return step_of_rows


def _as_tree(step: Step) -> Step:
    """Make a function an argument of a compiled one, with the arrays that it carries."""
    return step if isinstance(step, Partial) else Partial(step)
