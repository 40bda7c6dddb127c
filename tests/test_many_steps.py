"""Several steps a call, on a set that the devices hold, are the steps taken one by one."""

import functools
import itertools
import re
import time
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import data, loop, many, sharding, step

SIZE, NUM_EXAMPLES, SEED = 16, 56, 3
EXAMPLES = toys.batch_of(NUM_EXAMPLES)
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SPLIT = {"data": 2, "fsdp": 2, "tensor": 2}


@functools.cache
def parts(mesh, skip_nonfinite=False):
    model, optimizer = toys.norm_model(), optax.sgd(0.1, momentum=0.9)
    objective, teacher = toys.kd_objective(), toys.teacher_for(EXAMPLES)
    teacher = teacher._replace(variables=sharding.replicate(teacher.variables, mesh))
    layout = functools.partial(sharding.shardings, mesh=mesh, rules=(), min_size=1)

    def make(key, batch, outputs):
        return step.init_train_state(key, model, objective, optimizer, batch, outputs)

    batch = sharding.shard_batch(toys.batch_of(SIZE), mesh)
    args = jax.random.key(0), batch, jax.jit(teacher.apply)(teacher.variables, batch)
    train_step = step.make_train_step(
        model, objective, optimizer, skip_nonfinite=skip_nonfinite, layout_fn=layout
    )
    return step.with_teacher(train_step, teacher), lambda: sharding.initialize(
        make, *args, layout_fn=layout
    )


def by_calls(mesh, most, *, state=None, end=20, examples=EXAMPLES, skip=False, **hooks):
    """Train to a step, `most` steps a call at most, on a set that is on the devices."""
    run, initial = parts(mesh, skip)
    state = initial() if state is None else state
    rows = data.train_rows(NUM_EXAMPLES, seed=SEED, batch_size=SIZE, start_step=int(state.step))
    steps = many.several(many.with_examples(run, examples, mesh))
    return loop.fit(steps, state, rows, num_steps=end, steps_per_call=most, **hooks)


def one_by_one(mesh, *, end=20, **hooks):
    """Train to a step on batches that the host feeds."""
    run, initial = parts(mesh)
    batches = data.train_batches(EXAMPLES, seed=SEED, batch_size=SIZE)
    placed = (sharding.shard_batch(batch, mesh) for batch in batches)
    return loop.fit(run, initial(), placed, num_steps=end, **hooks)


def arrays_of(state):
    return state.step, state.params, state.model_state, state.opt_state


def test_rows_on_the_devices_are_the_batches_of_the_host():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    seen = many.with_examples(lambda state, batch: (state, batch), EXAMPLES, mesh)
    # The third and the fourth batch begin in one epoch and end in another.
    rows = itertools.islice(data.train_rows(NUM_EXAMPLES, seed=1, batch_size=SIZE), 2, 5)
    for at, names in enumerate(rows, 2):
        _, batch = seen(jnp.zeros(()), names)
        expected = data.train_batch(EXAMPLES, at, seed=1, batch_size=SIZE, rows=np.arange(SIZE))
        assert batch.keys() == expected.keys()
        jax.tree.map(np.testing.assert_array_equal, dict(batch), expected)
        assert batch["image"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)


def test_what_is_beside_the_rows_comes_along_and_no_row_is_another():
    seen = many.with_examples(
        lambda state, batch: (state, batch),
        {"label": jnp.arange(4), "x": jnp.arange(4.0)},
        sharding.make_mesh(**ONE),
    )
    mask = jnp.array([True, False])
    _, batch = seen(jnp.zeros(()), {"index": jnp.array([3, 99]), "mask": mask})
    np.testing.assert_array_equal(batch["mask"], mask)
    np.testing.assert_array_equal(batch["x"], [3.0, 0.0])
    assert batch["label"][0] == 3 and batch["label"][1] < 0
    _, batch = seen(jnp.zeros(()), {"index": jnp.array([3, 99]), "mask": jnp.ones(2)})
    np.testing.assert_array_equal(batch["mask"], [1.0, 0.0])
    _, batch = seen(jnp.zeros(()), {"index": jnp.array([3, 99])})
    np.testing.assert_array_equal(batch["x"], [3.0, np.nan])
    whole = {"label": np.arange(3), "mask": np.array([[1, 0], [1, 1], [0, 1]], bool)}
    seen = many.with_examples(lambda state, batch: (state, batch), whole, sharding.make_mesh(**ONE))
    rows = {"index": jnp.array([0, -1, 7, 2]), "mask": jnp.array([True, True, True, False])}
    _, batch = seen(jnp.zeros(()), rows)
    np.testing.assert_array_equal(batch["mask"], [[1, 0], [0, 0], [0, 0], [0, 0]])
    assert batch["label"][0] == 0 and (batch["label"][1:3] < 0).all() and batch["label"][3] == 2


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_weights_of_rows_and_of_examples_are_multiplied(dtype):
    examples = {"label": np.arange(3), "mask": np.array([1, 0, 1], dtype)}
    mesh = sharding.make_mesh(**ONE)
    seen = many.with_examples(lambda state, batch: (state, batch), examples, mesh)
    index = jnp.array([0, 1, 2, 2])
    parts = jnp.array([[1, 0], [1, 1], [0, 1], [1, 1]])
    for own in (jnp.array([0.1, 0.2, 0.3, 0.0]), parts.astype(bool), 0.5 * parts):
        _, batch = seen(jnp.zeros(()), {"index": index, "mask": own})
        known = np.array([1, 0, 1, 1]).reshape(4, *[1] * (own.ndim - 1))
        np.testing.assert_array_equal(batch["mask"], known * own)


def test_a_row_that_does_not_count_leaves_every_weight_finite():
    model, objective, optimizer = toys.linear_model(), toys.kd_objective(), toys.SGD
    teacher, mesh = toys.teacher_for(EXAMPLES), sharding.make_mesh(**ONE)
    outputs = teacher.apply(teacher.variables, EXAMPLES)
    made = jax.random.key(0), model, objective, optimizer, EXAMPLES, outputs
    run = step.with_teacher(step.make_train_step(model, objective, optimizer), teacher)
    rows = {"index": jnp.array([5, 2, -1]), "mask": jnp.array([True, True, False])}
    few = {name: x[np.array([5, 2])] for name, x in EXAMPLES.items()}
    found, _ = many.with_examples(run, EXAMPLES, mesh)(step.init_train_state(*made), rows)
    expected, _ = run(step.init_train_state(*made), few)
    chex.assert_trees_all_close(found.params, expected.params, rtol=1e-5)


@pytest.mark.parametrize("count", [5, 7])
def test_no_batch_is_taken_twice(count):
    def run(state, batch):
        return state + batch["x"].sum(), {"loss": (state, jnp.array(1))}

    state, metrics = many.several(run)(jnp.array(0.0), {"x": jnp.ones((5, 4))}, count)
    assert state == 20
    np.testing.assert_array_equal(metrics["loss"][0], [0, 4, 8, 12, 16])


@pytest.mark.parametrize("sizes", [ONE, SPLIT], ids=["one device", "2x2x2"])
def test_several_steps_a_call_are_single_steps(sizes):
    mesh, logs = sharding.make_mesh(**sizes), ([], [])
    alone = one_by_one(mesh, log_every=6, log_fn=lambda *line: logs[0].append(line))
    calls = by_calls(mesh, 4, log_every=6, log_fn=lambda *line: logs[1].append(line))
    chex.assert_trees_all_close(arrays_of(calls), arrays_of(alone), rtol=1e-5, atol=1e-6)
    assert [at for at, _ in logs[1]] == [at for at, _ in logs[0]] == [6, 12, 18, 20]
    for (_, expected), (_, found) in zip(*logs, strict=True):
        chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_where_calls_end_changes_no_bit():
    mesh = sharding.make_mesh(**ONE)
    whole = by_calls(mesh, 8)
    saved = []
    apart = by_calls(mesh, 3, checkpoint_every=7, save_fn=lambda at, _: saved.append(at))
    resumed = by_calls(mesh, 8, state=by_calls(mesh, 8, end=5))
    assert saved == [7, 14, 20]
    for other in (apart, resumed):
        jax.tree.map(np.testing.assert_array_equal, arrays_of(other), arrays_of(whole))


def test_everything_due_comes_on_its_step():
    calls = {"log": [], "eval": [], "save": []}
    by_calls(
        sharding.make_mesh(**ONE),
        8,
        log_every=6,
        log_fn=lambda at, m: calls["log"].append((at, float(m["loss"][1]))),
        eval_every=5,
        eval_fn=lambda at, s: calls["eval"].append((at, int(s.step))),
        checkpoint_every=9,
        save_fn=lambda at, s: calls["save"].append((at, int(s.step))),
    )
    assert calls["log"] == [(6, 96.0), (12, 96.0), (18, 96.0), (20, 32.0)]
    assert calls["eval"] == [(5, 5), (10, 10), (15, 15), (20, 20)]
    assert calls["save"] == [(9, 9), (18, 18), (20, 20)]


def test_a_request_to_stop_is_heard_at_the_end_of_a_call():
    mesh, asked, saved = sharding.make_mesh(**ONE), itertools.count(), []
    with pytest.raises(loop.Stopped) as stopped:
        by_calls(
            mesh,
            4,
            save_fn=lambda at, s: saved.append((at, jax.tree.map(jnp.copy, s))),
            stop_fn=lambda: next(asked) == 3,
        )
    ((at, state),) = saved
    assert at == stopped.value.step == int(state.step) < 20
    gone_on = by_calls(mesh, 4, state=state)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(gone_on), arrays_of(by_calls(mesh, 4)))


def poisoned(at):
    """Return the examples with one that is not finite, which the batch of a step has first."""
    order = list(itertools.islice(data.train_rows(NUM_EXAMPLES, seed=SEED, batch_size=SIZE), at))
    before = set(np.concatenate([rows["index"] for rows in order[:-1]]))
    new = next(i for i in order[-1]["index"] if i not in before)
    image = EXAMPLES["image"].copy()
    image[new] = np.nan
    return {**EXAMPLES, "image": image}


def test_a_loss_that_is_not_finite_is_named_with_its_own_step():
    saved = []
    with pytest.raises(loop.NonFiniteLoss, match="nan at step 3; non-finite terms: hard, soft"):
        by_calls(
            sharding.make_mesh(**ONE),
            8,
            examples=poisoned(3),
            checkpoint_every=2,
            save_fn=lambda at, _: saved.append(at),
        )
    assert saved == [2]


def test_steps_that_are_not_finite_are_skipped_and_counted():
    mesh, examples, logged = sharding.make_mesh(**ONE), poisoned(3), []
    order = itertools.islice(data.train_rows(NUM_EXAMPLES, seed=SEED, batch_size=SIZE), 20)
    bad = sum(bool(np.isnan(examples["image"][rows["index"]]).any()) for rows in order)
    state = by_calls(
        mesh, 8, examples=examples, skip=True, log_fn=lambda at, m: logged.append((at, m))
    )
    assert bad > 1
    ((_, metrics),) = logged
    assert metrics["skipped"] == (bad, 20)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_no_device_sends_examples_and_the_state_is_donated():
    mesh = sharding.make_mesh(data=8)
    run, initial = parts(mesh)
    state = initial()
    steps = many.several(many.with_examples(run, EXAMPLES, mesh))
    batches = {"index": np.zeros((4, SIZE), np.int32)}
    text = steps.func.lower(*steps.args, state, batches, np.int32(4)).compile().as_text()
    assert "all-reduce" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    new, _ = steps(state, batches, np.int32(4))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    chex.assert_trees_all_equal_shapes_and_dtypes(new.params, initial().params)


def test_seeds_share_what_is_compiled():
    mesh = sharding.make_mesh(**ONE)
    by_calls(mesh, 4, end=2)
    before = many._several._cache_size()
    by_calls(mesh, 4, end=2)
    assert many._several._cache_size() == before


@pytest.mark.parametrize(("seconds", "longest"), [(0.0, 16), (0.1, 2), (0.3, 1)])
def test_a_call_takes_no_longer_than_a_quarter_of_a_second(seconds, longest):
    counts = []

    def steps(state, batches, count):
        assert batches["index"].shape == (16, 2)
        counts.append(int(count))
        time.sleep(seconds * count)
        return state, {"loss": (np.zeros(16), np.ones(16))}

    rows = data.train_rows(NUM_EXAMPLES, seed=0, batch_size=2)
    end = 60 if seconds == 0 else 8
    loop.fit(steps, SimpleNamespace(step=0), rows, num_steps=end, steps_per_call=16)
    assert counts[0] == 1
    assert max(counts) == longest
    assert sum(counts) == end


def test_processes_that_train_together_take_the_same_steps(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    counts = []

    def steps(state, batches, count):
        counts.append(int(count))
        time.sleep(0.05 * count)
        return state, {"loss": (np.zeros(8), np.ones(8))}

    rows = data.train_rows(NUM_EXAMPLES, seed=0, batch_size=2)
    loop.fit(steps, SimpleNamespace(step=0), rows, num_steps=20, steps_per_call=8, log_every=10)
    assert counts == [8, 2, 8, 2]


def test_what_fits():
    def mesh(*limits):
        stats = [limit and {"bytes_limit": limit} for limit in limits]
        devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
        return SimpleNamespace(local_devices=devices)

    arrays = {"a": np.zeros(150, np.uint8), "b": np.zeros(50, np.uint8)}
    assert many.has_room(arrays, mesh(1000, 2000))
    assert not many.has_room(arrays, mesh(2000, 999))
    huge = {"a": SimpleNamespace(nbytes=2**29)}
    assert many.has_room(huge, mesh(None, None))
    assert not many.has_room(huge, mesh(None, None, None))
