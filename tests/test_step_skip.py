"""Steps whose loss or gradient is not finite: left out whole, and counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import loop, metrics, objective, online, step, teachers, terms
from kdjax.types import Term, Variables

# With the usual eps, Adam makes whole steps of a gradient that is nothing but rounding, as that of
# the bias before BatchNorm is.
OPTIMIZER = optax.adam(optax.linear_schedule(0.1, 0.01, 20), eps=1e-3)


def counted_term():
    """A term with a parameter and a state, so that both are seen to stay."""

    def init(key, x):
        return Variables({"scale": jnp.ones(())}, {"calls": jnp.zeros(())})

    def apply(params, state, x):
        values = params["scale"] * jnp.sum(x.student.logits**2, axis=-1)
        return values, {"calls": state["calls"] + 1}

    return Term(init, apply)


@functools.cache
def counting():
    parts = {"soft": terms.soft_targets(temperature=3.0), "counted": counted_term()}
    return objective.combine(parts, {"soft": 1.0, "counted": 0.1})


def make_run(batch, *, num_micro_batches=1, skip=True):
    parts, teacher = (toys.norm_model(), counting(), OPTIMIZER), toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), *parts, batch, outputs)
    run = toys.taught(*parts, num_micro_batches=num_micro_batches, skip_nonfinite=skip)
    return run, state


def poisoned(batch, value=np.nan):
    image = batch["image"].copy()
    image[3, 1] = value
    return {**batch, "image": image}


def arrays(state):
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return jax.tree.map(np.array, plain)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_skipped_step_leaves_everything_but_its_number(value):
    batch = toys.batch_of(8)
    run, state = make_run(batch)
    state, _ = run(state, batch)
    before = arrays(state)
    state, measured = run(state, poisoned(batch, value))
    after = arrays(state)
    assert int(after.step) == int(before.step) + 1 == 2
    jax.tree.map(np.testing.assert_array_equal, after, dataclasses.replace(before, step=after.step))
    assert [float(x) for x in measured["skipped"]] == [1, 1]
    assert all(float(count) == 0 for name, (_, count) in measured.items() if name != "skipped")
    assert all(np.isfinite(np.asarray(total)).all() for total, _ in measured.values())


def test_steps_that_are_finite_are_those_without_skipping():
    batch = toys.batch_of(8)
    states = []
    for skip in (True, False):
        run, state = make_run(batch, skip=skip)
        for seed in range(3):
            state, measured = run(state, toys.batch_of(8, seed))
        assert ("skipped" in measured) == skip
        states.append(arrays(state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)


def test_a_gradient_that_is_not_finite_under_a_finite_loss():
    def spiky(x):
        # sqrt has the value 0 and no finite slope where the logits' squares are 0.
        return jnp.sqrt(jnp.sum(0 * x.student.logits, axis=-1) + x.batch["offset"])

    batch = toys.batch_of(8)
    batch["offset"] = np.ones(8, np.float32)
    model = toys.linear_model()
    combined = objective.combine({"spiky": terms.stateless(spiky)}, {"spiky": 1.0})
    state = step.init_train_state(jax.random.key(0), model, combined, OPTIMIZER, batch, None)
    run = step.make_train_step(model, combined, OPTIMIZER, skip_nonfinite=True)
    state, measured = run(state, batch, None)
    assert float(measured["skipped"][0]) == 0
    before = arrays(state)
    state, measured = run(state, {**batch, "offset": np.zeros(8, np.float32)}, None)
    assert float(measured["skipped"][0]) == 1
    jax.tree.map(np.testing.assert_array_equal, arrays(state).params, before.params)


@pytest.mark.filterwarnings("ignore:micro-batches")
def test_one_bad_micro_batch_skips_the_step():
    batch = toys.batch_of(8)
    run, state = make_run(batch, num_micro_batches=4)
    before = arrays(state)
    state, measured = run(state, poisoned(batch))
    assert float(measured["skipped"][0]) == 1
    jax.tree.map(np.testing.assert_array_equal, arrays(state).params, before.params)


def test_the_loop_goes_on_and_counts_what_was_skipped():
    run, state = make_run(toys.batch_of(8))
    made = (toys.batch_of(8, i) for i in range(100))
    made = (poisoned(b) if i in (2, 5) else b for i, b in enumerate(made))
    logged = {}
    state = loop.fit(
        run, state, made, num_steps=8, log_every=4, log_fn=lambda at, m: logged.update({at: m})
    )
    assert int(state.step) == 8
    assert [float(logged[at]["skipped"][0]) for at in (4, 8)] == [1, 1]
    assert metrics.value(logged[4]["skipped"]) == 0.25
    assert float(logged[4]["loss"][1]) == 24
    assert np.isfinite(metrics.value(logged[8]["loss"]))


def test_a_mean_teacher_does_not_move_in_a_skipped_step():
    batch = toys.batch_of(8)
    model = toys.linear_model()
    teacher = teachers.ema(model, decay=0.5)
    combined = toys.kd_objective()
    state = online.init_online_state(jax.random.key(0), model, combined, OPTIMIZER, batch, teacher)
    train_step = step.make_train_step(model, combined, OPTIMIZER, skip_nonfinite=True)
    run = online.with_online_teacher(train_step, teacher)
    state, _ = run(state, batch)
    before = arrays(state)
    state, measured = run(state, poisoned(batch))
    assert float(measured["skipped"][0]) == 1
    after = arrays(state)
    jax.tree.map(np.testing.assert_array_equal, after.teacher_state, before.teacher_state)
    state, _ = run(state, batch)
    moved = jax.tree.leaves(arrays(state).teacher_state)
    still = jax.tree.leaves(before.teacher_state)
    assert any((a != b).any() for a, b in zip(moved, still, strict=True))
