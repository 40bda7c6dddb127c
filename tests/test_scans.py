"""Loops that are compiled as loops, and those that are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import models, scans, step, sweep, terms
from kdjax.objective import combine


def convolving(carry, x):
    kernel = jnp.ones((3, 3, 1, 1))
    out = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return carry + jnp.sum(out), out


def multiplying(carry, x):
    return carry + jnp.sum(x), 2 * x


def has_loop(function, *args):
    return "while" in jax.jit(function).lower(*args).compile().as_text()


def test_convolutions_on_cpus_are_better_off_outside_of_loops():
    args = jnp.zeros(()), jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    assert not scans.loops_well(convolving, *args)
    assert scans.loops_well(convolving, *args, platform="tpu")
    assert scans.loops_well(multiplying, *args)
    # The one of a network, inside of a function that is compiled on its own.
    network, images = models.resnet8(3), jnp.zeros((2, 8, 8, 3))
    variables = network.init(jax.random.key(0), images)
    assert not scans.loops_well(jax.jit(lambda v, x: network.apply(*v, x, train=False)[0].logits),
                                variables, images)  # fmt: skip


@pytest.mark.parametrize("body", [convolving, multiplying])
def test_a_scan_is_jaxs(body):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 4, 4, 1)), jnp.float32)
    chex.assert_trees_all_close(
        scans.scan(body, jnp.zeros(()), xs), jax.lax.scan(body, jnp.zeros(()), xs), rtol=1e-6
    )
    assert has_loop(lambda x: scans.scan(body, jnp.zeros(()), x), xs) == (body is multiplying)


def test_gradients_of_convolutions_accumulate_and_members_train_without_a_loop():
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    rng, optimizer = np.random.default_rng(0), optax.sgd(0.1)
    batch = {
        "image": rng.normal(size=(8, 8, 8, 3)).astype(np.float32),
        "label": rng.integers(0, toys.NUM_CLASSES, 8).astype(np.int32),
    }
    model = models.resnet8(toys.NUM_CLASSES)

    def run(state, num_micro_batches=1):
        fn = step.make_train_step(model, objective, optimizer, num_micro_batches=num_micro_batches)
        return fn(state, batch, None)

    states = [
        step.init_train_state(jax.random.key(seed), model, objective, optimizer, batch, None)
        for seed in range(2)
    ]
    with pytest.warns(UserWarning, match="BatchNorm"):
        assert not has_loop(lambda state: run(state, 2), states[0])
    together = sweep.make_sweep_step(run, in_axes=(0,), method="map")
    stacked = sweep.stack(states)
    assert "while" not in together.lower(stacked).compile().as_text()
    alone = sweep.stack([run(state)[0] for state in states])
    chex.assert_trees_all_close(together(stacked)[0].params, alone.params, rtol=1e-4, atol=1e-5)
