"""Many steps, or many trainings, in one compiled program.

Three programs, from one ordinary step `(state, batch) -> (state, metrics)`:

- `make_sweep_step` trains many members at once, over states that `stack` has put together and
  `member` takes apart; `scan_steps` and `take_steps` let each call of it take several steps;
- `with_examples` and `several` take many steps of one training, on a set that the devices hold
  (`has_room` says whether they can): `kdjax.loop.fit` calls them with its `steps_per_call`;
- `scan` is `jax.lax.scan` for what both repeat, without a loop where XLA's loops are slow
  (`has_convolutions`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxpr_as_fun
from jax.extend.core.primitives import conv_general_dilated_p
from jax.sharding import Mesh
from jax.tree_util import Partial

from kdjax import sharding
from kdjax.losses._inputs import in_wide, within
from kdjax.metrics import known, spread
from kdjax.types import Array, Batch, Metrics, PyTree, TrainState

__all__ = [
    "has_convolutions", "has_room", "make_sweep_step", "member", "scan", "scan_steps", "several",
    "stack", "take_steps", "with_examples",
]  # fmt: skip

Method = Literal["map", "vmap"]
AnyStep = Callable[..., tuple[TrainState, Metrics]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Steps = Callable[[TrainState, PyTree, Any], tuple[TrainState, Metrics]]

# Most of a device's memory is left to the training itself.
_SHARE_OF_MEMORY = 0.2
_BYTES_WHERE_UNKNOWN = 2**30
carrying: Callable[..., Step] = Partial
_constrained: Callable[[Batch, Any], Batch] = jax.lax.with_sharding_constraint


def stack(members: Sequence[PyTree]) -> PyTree:
    """Stack trees of one structure on top of each other.

    Args:
        members: trees of arrays, for example the initial states of several seeds.

    Returns:
        One tree whose arrays have a leading axis, [members, ...].

    Raises:
        ValueError: if there is none, or if their structures or shapes differ.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> many.stack([{"w": jnp.zeros(3)}, {"w": jnp.ones(3)}])["w"].shape
        (2, 3)
    """
    if not members:
        raise ValueError("stack: members is empty, expected at least one")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def member(stacked: PyTree, index: int | Array) -> PyTree:
    """Return one training of a stack: the inverse of `stack`.

    Raises:
        IndexError: if there is no such member, and the index is not traced.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> stacked = many.stack([{"w": jnp.zeros(3)}, {"w": jnp.ones(3)}])
        >>> print(many.member(stacked, 1)["w"])
        [1. 1. 1.]
    """
    leaves, at = jax.tree.leaves(stacked), None if isinstance(index, slice) else known(index)
    if leaves and at is not None and at.ndim == 0 and not -len(leaves[0]) <= at < len(leaves[0]):
        raise IndexError(f"member: there is no member {at} of {len(leaves[0])}")
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def make_sweep_step(
    step: AnyStep, *, in_axes: Sequence[int | None], method: Method | None = None
) -> AnyStep:
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
        step: `(state, *rest) -> (state, metrics)` for one member; the new state has the shapes and
            types of the old one.
        in_axes: for every argument 0 if its arrays have a leading axis [members, ...], None if all
            members share it, as for `jax.vmap`; the state's is 0.
        method: `vmap` computes all members at once, which fills an accelerator; `map` computes them
            in turn, which is faster on CPUs (`python -m benchmarks.sweep`). By default what is
            faster on the backend. The results agree within rounding.

    Returns:
        The same function over stacks, jitted; the buffers of the states are donated. Metrics have a
        leading axis [members].

    Raises:
        ValueError: if `in_axes` does not begin with 0 or the method has another name; when called,
            if arguments are of other numbers of members.
        TypeError: when called, if members in turn return states of other shapes or types.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> def step(state, x, rate):
        ...     return state - rate * x, {"loss": (state * x, jnp.array(1))}
        ...
        >>> sweep = many.make_sweep_step(step, in_axes=(0, None, 0))
        >>> states, metrics = sweep(jnp.zeros(3), jnp.array(2.0), jnp.array([0.0, 1.0, 2.0]))
        >>> print(states)
        [ 0. -2. -4.]
    """
    if not in_axes or in_axes[0] != 0 or not {0, None}.issuperset(in_axes):
        raise ValueError(f"make_sweep_step: in_axes must be (0, ...) of 0 and None, got {in_axes}")
    chosen = method or ("map" if jax.default_backend() == "cpu" else "vmap")
    if chosen not in ("map", "vmap"):
        raise ValueError(f"make_sweep_step: method must be 'map' or 'vmap', got {method!r}")
    axes = tuple(in_axes)
    mapped = jax.vmap(step, in_axes=axes) if chosen == "vmap" else _in_turn(step, axes)
    return jax.jit(mapped, donate_argnums=0)


def scan_steps(step: AnyStep) -> AnyStep:
    """Make one call of several steps: fewer calls, and under `map` fewer copies of the states.

    It is always a loop: on CPUs not for steps with convolutions, see `has_convolutions`.

    Args:
        step: `(state, batch, *rest) -> (state, metrics)`.

    Returns:
        `(state, batches, *rest) -> (state, metrics)`: arrays of `batches` are [steps, batch, ...],
        metrics are summed over the steps as totals and counts are.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> def step(state, batch):  # `kdjax.step` makes one in real life
        ...     return state + batch["x"].sum(), {"loss": (state, jnp.array(1))}
        ...
        >>> state, metrics = many.scan_steps(step)(jnp.array(0.0), {"x": jnp.ones((5, 4))})
        >>> print(state, metrics["loss"][0])
        20.0 40.0
    """

    def steps(state: TrainState, batches: PyTree, *rest: Any) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda s, b: step(s, b, *rest), state, batches)
        return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    return steps


def with_examples(step: Step, examples: Mapping[str, Any], mesh: Mesh) -> Step:
    """Make a step that takes its batches from a set that lives on every device of a mesh.

    The host names the rows of a batch, and every device gathers its own.

    Args:
        step: `(state, batch) -> (state, metrics)`, as `kdjax.step.with_teacher` makes it.
        examples: arrays [examples, ...] by name; they are put on the devices here, once.
        mesh: the devices; see `has_room`.

    Returns:
        `step(state, {"index": [batch]}) -> (state, metrics)`: the batch is what
        `kdjax.data.train_batch` makes of the same rows, and what else there is beside `index`, such
        as a mask. What an index of no example gives does not count in a mask, and is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import many, sharding
        >>> def step(state, batch):  # `kdjax.step` makes one in real life
        ...     return state + batch["x"].sum(), {"loss": (state, jnp.array(1))}
        ...
        >>> held = many.with_examples(step, {"x": jnp.arange(4.0)}, sharding.make_mesh())
        >>> state, metrics = held(jnp.array(0.0), {"index": jnp.arange(8) % 4})
        >>> print(state)
        12.0
    """
    held = sharding.replicate(dict(examples), mesh)
    return carrying(_gathering(mesh), _as_tree(step), held)


def several(step: Step) -> Steps:
    """Compile several steps, one after the other, as one loop.

    It is compiled once for any number of steps, so that where a call ends changes no bit of the
    state.

    Args:
        step: `(state, batch) -> (state, metrics)`. Arrays that it carries as those of
            `kdjax.step.with_teacher` and `with_examples` do are passed on as arguments.

    Returns:
        `steps(state, batches, count) -> (state, metrics)`, jitted, the state's buffers donated:
        arrays of `batches` are [most, ...], of which the first `count` are used, at most all. The
        metrics have a leading axis [most], zero behind the steps that were taken. `kdjax.loop.fit`
        calls it with `steps_per_call=most`.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> def step(state, batch):  # `kdjax.step` makes one in real life
        ...     return state + batch["x"].sum(), {"loss": (state, jnp.array(1))}
        ...
        >>> state, metrics = many.several(step)(jnp.array(0.0), {"x": jnp.ones((5, 4))}, 2)
        >>> print(state, metrics["loss"][0])
        8.0 [0. 4. 0. 0. 0.]
    """
    make_steps: Callable[..., Steps] = Partial
    return make_steps(_several, _as_tree(step))


def has_room(arrays: Mapping[str, Any], mesh: Mesh) -> bool:
    """Return whether every device of a mesh can hold arrays beside a training.

    Args:
        arrays: NumPy arrays by name.
        mesh: the devices.

    Returns:
        Whether the arrays take a fifth of a device's memory at most; of devices that do not say
        what they have, as CPUs, whether the copies of all together take a gibibyte at most.

    Example:
        >>> import numpy as np
        >>> from kdjax import many, sharding
        >>> many.has_room({"image": np.zeros((10, 8, 8, 1))}, sharding.make_mesh())
        True
    """
    size = sum(int(array.nbytes) for array in arrays.values())
    devices = mesh.local_devices
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [_SHARE_OF_MEMORY * limit for limit in limits if limit]
    return size <= min(known, default=_BYTES_WHERE_UNKNOWN / len(devices))


def scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], init: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
    """Do what `jax.lax.scan` does, without a loop where loops are slow: see `has_convolutions`.

    There the turns are compiled one after the other: the time to compile grows with their number,
    and XLA does not use the memory of one turn again for the next.

    Args:
        body: `(carry, x) -> (carry, y)`; it is traced once.
        init: the first carry.
        xs: arrays [turns, ...].

    Returns:
        The last carry, and the ys, [turns, ...].

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> total, _ = many.scan(
        ...     lambda carry, x: (carry + x, None), jnp.array(0.0), jnp.arange(4.0)
        ... )
        >>> print(total)
        6.0
    """
    turns = jax.tree.leaves(xs)[0].shape[0]
    first = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), xs)
    program, results = jax.make_jaxpr(body, return_shape=True)(init, first)
    run, structure = jaxpr_as_fun(program), jax.tree.structure(results)

    def traced(carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        carry, y = jax.tree.unflatten(structure, run(*jax.tree.leaves((carry, x))))
        return carry, y

    slow = jax.default_backend() == "cpu" and has_convolutions(program)
    if slow and turns == 1:
        # lax.scan makes a loop of a single turn.
        carry, y = traced(init, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], y)
    turned: tuple[PyTree, PyTree] = jax.lax.scan(traced, init, xs, unroll=turns if slow else 1)
    return turned


def has_convolutions(program: Any) -> bool:
    """Return whether a traced program convolves, and so is slow in a compiled loop on CPUs.

    XLA for CPUs brings convolutions into the form of its fast kernels outside of loops alone
    (https://github.com/jax-ml/jax/issues/12868); the gradient of their weights takes some thirty
    times as long inside of one.

    Args:
        program: such as `jax.make_jaxpr(step)(state, batch)`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import many
        >>> many.has_convolutions(jax.make_jaxpr(jnp.sin)(1.0))
        False
    """
    jaxpr: Jaxpr = getattr(program, "jaxpr", program)
    return any(
        equation.primitive is conv_general_dilated_p
        or any(map(has_convolutions, _programs_in(equation.params)))
        for equation in jaxpr.eqns
    )


def _programs_in(params: Mapping[str, Any]) -> list[Any]:
    """Return the programs that an equation runs, as a loop its body or a branch its cases."""
    leaves = jax.tree.leaves(dict(params))
    return [x for x in leaves if isinstance(getattr(x, "jaxpr", x), Jaxpr)]


def _in_turn(step: AnyStep, axes: tuple[int | None, ...]) -> AnyStep:
    """Compute the members one after the other, each in its place of the stack.

    The stack is carried: states that a loop returns anew would be a second stack in memory.
    """

    def mapped(states: TrainState, *args: Any) -> tuple[TrainState, Metrics]:
        def one(states: TrainState, own: tuple[Array, list[Any]]) -> tuple[TrainState, Metrics]:
            index, rest = own[0], iter(own[1])
            pairs = zip(args, axes[1:], strict=True)
            each = (next(rest) if axis == 0 else arg for arg, axis in pairs)
            old = member(states, index)
            state, metrics = step(old, *each)
            _check_shapes(old, state)
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
            return jax.tree.map(put, states, state), metrics

        own = [arg for arg, axis in zip(args, axes[1:], strict=True) if axis == 0]
        members = jnp.arange(len(jax.tree.leaves(states)[0]))
        for size in {len(x) for x in jax.tree.leaves(own)} - {len(members)}:
            raise ValueError(
                f"make_sweep_step: an argument has {size} members, expected {len(members)} like "
                "the states"
            )
        trained: tuple[TrainState, Metrics] = scan(one, states, (members, own))
        return trained

    return mapped


def _check_shapes(old: TrainState, new: TrainState) -> None:
    pairs = zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=False)
    for (path, before), after in pairs:
        if before.shape != jnp.shape(after):
            raise TypeError(
                f"make_sweep_step: state{jax.tree_util.keystr(path)} has shape "
                f"{jnp.shape(after)} after a step, expected {before.shape} as before it"
            )


def take_steps(
    step: Step, state: TrainState, batches: PyTree, count: Array
) -> tuple[TrainState, Metrics]:
    """Take several steps, one after the other, inside a program: what `several` compiles.

    Args:
        step: `(state, batch) -> (state, metrics)`.
        state: where to start.
        batches: arrays [most, ...], of which the first `count` are used.
        count: how many steps, at most all of these.

    Returns:
        The last state, and the metrics with a leading axis [most], zero behind the steps that were
        taken.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from kdjax import many, models, step, teachers, terms
        >>> from kdjax.objective import combine
        >>> from kdjax.types import Outputs
        >>> batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
        >>> student, optimizer = models.mlp(10, widths=(8,)), optax.sgd(0.1)
        >>> objective = combine({"kd": terms.kd()}, {"kd": 1.0})
        >>> batch["teacher_logits"] = 9 * jnp.eye(10)[:4]
        >>> teacher = Outputs(batch["teacher_logits"])
        >>> parts = {"student": student, "objective": objective, "optimizer": optimizer}
        >>> make = functools.partial(step.init_train_state, **parts, teacher_outputs=teacher)
        >>> state = jax.eval_shape(make, jax.random.key(0), batch=batch)
        >>> train_step = step.make_train_step(**parts)
        >>> train_step = step.with_teacher(train_step, teachers.stored())
        >>> batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
        >>> take = functools.partial(many.take_steps, train_step)
        >>> state, metrics = jax.eval_shape(take, state, batches, jnp.array(2))
        >>> metrics["loss"][0].shape
        (2,)
    """

    def at(index: Array | int) -> PyTree:
        return jax.tree.map(lambda x: x[index], batches)

    def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = step(carry[0], at(index))
        return state, jax.tree.map(lambda all_, x: all_.at[index].set(x), carry[1], metrics)

    most = len(jax.tree.leaves(batches)[0])
    _, metrics = jax.eval_shape(step, state, at(0))
    none: Metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), metrics)
    # Behind the last batch there is none: it would be taken again.
    state, metrics = jax.lax.fori_loop(0, jnp.minimum(count, most), body, (state, none))
    return state, metrics


_several = jax.jit(take_steps, donate_argnums=1)


def _gathered(examples: Batch, rows: Batch) -> Batch:
    """Return the examples of some rows, with what is beside their index."""
    index, is_masked = in_wide(jnp.asarray(rows["index"])), "mask" in examples or "mask" in rows

    def of(name: str) -> Array:
        # What does not count in a mask is finite: its gradient is 0 times what it is.
        fill = 0 if is_masked and name != "label" else None
        place = examples[name].at[index]
        found: Array = place.get(mode="fill", fill_value=fill, wrap_negative_indices=False)
        return found

    batch = {name: of(name) for name in examples}
    if "mask" in rows:
        is_example = within(index, len(next(iter(examples.values()))))
        own = batch.get("mask", is_example)
        rows = {**rows, "mask": _both(own, jnp.asarray(rows["mask"]))}
    return {**batch, **rows}


def _both(one: Array, other: Array) -> Array:
    """Return the product of two masks or weights, of examples or of what is in them."""
    of_parts, whole = sorted((one, other), key=lambda x: -x.ndim)
    whole = spread(whole, of_parts.shape)
    if of_parts.dtype == whole.dtype == bool:
        return of_parts & whole
    return of_parts.astype(jnp.float32) * whole.astype(jnp.float32)


@functools.cache
def _gathering(mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make the function that gathers; one for a mesh, so that what is compiled is found again."""
    split = sharding.batch_sharding(mesh)

    @functools.partial(jax.jit, donate_argnums=2)
    def step_of_rows(
        step: Step, examples: Batch, state: TrainState, rows: Batch
    ) -> tuple[TrainState, Metrics]:
        return step(state, _constrained(_gathered(examples, rows), split))

    return step_of_rows


def _as_tree(step: Step) -> Step:
    """Make a function an argument of a compiled one, with the arrays that it carries."""
    return step if isinstance(step, Partial) else carrying(step)
