"""A sweep is its members' trainings, one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import batch_of, linear_model, norm_model, teacher_for

from kdjax import many, terms
from kdjax.objective import combine
from kdjax.step import init_train_state, make_train_step

TEMPERATURES = jnp.array([1.0, 4.0, 20.0])


def parts(model):
    """A member's step at a temperature, its initial states and the batches of three steps."""
    # Not Adam: it blows up the rounding of gradients that are zero (a bias before BatchNorm).
    optimizer, batches = optax.sgd(0.1, momentum=0.9), [batch_of(8, seed) for seed in range(3)]
    teacher = teacher_for(batches[0])

    def step(state, batch, temperature):
        soft = terms.soft_targets(temperature=temperature)
        objective = combine({"soft": soft}, {"soft": 1.0})
        outputs = teacher.apply(teacher.variables, batch)
        return make_train_step(model, objective, optimizer)(state, batch, outputs)

    objective = combine({"soft": terms.soft_targets()}, {"soft": 1.0})
    outputs = teacher.apply(teacher.variables, batches[0])
    states = [
        init_train_state(jax.random.key(seed), model, objective, optimizer, batches[0], outputs)
        for seed in range(3)
    ]
    return step, states, batches


@pytest.mark.parametrize("method", ["map", "vmap"])
@pytest.mark.parametrize("make_model", [linear_model, norm_model])
def test_sweep_is_training_one_by_one(make_model, method):
    step, states, batches = parts(make_model())
    alone = []
    for state, temperature in zip(jax.tree.map(jnp.copy, states), TEMPERATURES, strict=True):
        for batch in batches:
            state, metrics = jax.jit(step)(state, batch, temperature)
        alone.append((state, metrics))
    together = many.stack(states)
    sweep_step = many.make_sweep_step(step, in_axes=(0, None, 0), method=method)
    for batch in batches:
        together, metrics = sweep_step(together, batch, TEMPERATURES)
    for i, (state, its_metrics) in enumerate(alone):
        its = many.member(together, i)
        chex.assert_trees_all_close(its.params, state.params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(its.model_state, state.model_state, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(its.step, state.step)
        chex.assert_trees_all_close(many.member(metrics, i), its_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["map", "vmap"])
def test_steps_and_batches_of_their_own(method):
    """Members with batches of their own, several steps a call, end where single calls end."""
    step, states, batches = parts(linear_model())
    orders = np.array([[0, 1, 2], [2, 1, 0], [1, 1, 1]])
    images = np.stack([b["image"] for b in batches])[orders]
    labels = np.stack([b["label"] for b in batches])[orders]
    alone, totals = [], []
    for i, state in enumerate(jax.tree.map(jnp.copy, states)):
        total = 0.0
        for k in orders[i]:
            state, metrics = jax.jit(step)(state, batches[k], TEMPERATURES[i])
            total += metrics["loss"][0]
        alone.append(state)
        totals.append(total)
    sweep_step = many.make_sweep_step(many.scan_steps(step), in_axes=(0, 0, 0), method=method)
    together, metrics = sweep_step(
        many.stack(states), {"image": images, "label": labels}, TEMPERATURES
    )
    chex.assert_trees_all_close(together.params, many.stack(alone).params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"][0], totals, rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss"][1], [24, 24, 24])


def test_states_are_donated_and_the_default_runs():
    step, states, batches = parts(linear_model())
    stacked = many.stack(states)
    new, _ = many.make_sweep_step(step, in_axes=(0, None, 0))(stacked, batches[0], TEMPERATURES)
    assert all(x.is_deleted() for x in jax.tree.leaves(stacked.params))
    np.testing.assert_array_equal(new.step, [1, 1, 1])


def test_misuse():
    with pytest.raises(ValueError, match="stack: members is empty"):
        many.stack([])
    both = many.stack([{"w": jnp.zeros(1)}, {"w": jnp.ones(1)}])
    assert many.member(both, -1)["w"] == 1
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"there is no member {index} of 2"):
            many.member(both, index)
    for index in (jnp.array([1, 0]), slice(0, 2), np.array([True, True])):
        assert many.member(both, index)["w"].shape == (2, 1)
    assert many.member({}, 0) == {}
    with pytest.raises(ValueError, match="in_axes must be"):
        many.make_sweep_step(lambda s: s, in_axes=(None,))
    with pytest.raises(ValueError, match="method must be 'map' or 'vmap', got 'pmap'"):
        many.make_sweep_step(lambda s: s, in_axes=(0,), method="pmap")


def test_members_in_turn_stay_in_their_places():
    """The states are in memory once: a loop that returned them anew would hold them twice."""

    def step(state, batch):
        return state - 0.1 * batch * jnp.tanh(state), {"loss": (state.sum(), jnp.array(1))}

    states = jnp.ones((8, 10_000))
    sweep_step = many.make_sweep_step(step, in_axes=(0, None), method="map")
    used = sweep_step.lower(states, jnp.array(2.0)).compile().memory_analysis()
    assert used.alias_size_in_bytes >= states.nbytes
    assert used.temp_size_in_bytes < states.nbytes / 2


@pytest.mark.parametrize("method", ["map", "vmap"])
@pytest.mark.parametrize("members", [1, 2])
def test_settings_are_as_many_as_members(method, members):
    def step(state, rate):
        return state - rate, {"loss": (state.sum(), jnp.array(1))}

    sweep_step = many.make_sweep_step(step, in_axes=(0, 0), method=method)
    with pytest.raises(ValueError, match="3"):
        sweep_step(jnp.ones((members, 2)), jnp.arange(3.0))


def test_members_in_turn_are_not_cast():
    def widen(state):
        return state.astype(jnp.float32), {"loss": (state.sum(), jnp.array(1))}

    sweep_step = many.make_sweep_step(widen, in_axes=(0,), method="map")
    with pytest.raises(TypeError, match="same dtypes, got bfloat16, float32"):
        sweep_step(jnp.ones((3, 2), jnp.bfloat16))


def test_members_in_turn_keep_their_shapes():
    def grow(state):
        return {"w": jnp.append(state["w"], 1.0)}, {"loss": (state["w"].sum(), jnp.array(1))}

    sweep_step = many.make_sweep_step(grow, in_axes=(0,), method="map")
    with pytest.raises(TypeError, match=r"state\['w'\] has shape \(3,\) .* expected \(2,\)"):
        sweep_step({"w": jnp.ones((4, 2))})
