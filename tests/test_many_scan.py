"""Loops that are compiled as loops, and those that are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import many, models, step, terms
from kdjax.objective import combine


def counting(carry, x):
    return convolving(carry, x)[0], {"loss": (jnp.sum(x), 1)}


def convolving(carry, x):
    kernel = jnp.ones((3, 3, 1, 1))
    out = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return carry + jnp.sum(out), out


def multiplying(carry, x):
    return carry + jnp.sum(x), 2 * x


def ruled(function):
    """Give a function a gradient of its own."""
    with_rule = jax.custom_vjp(function)
    with_rule.defvjp(lambda *args: (function(*args), args), lambda args, _: args)
    return with_rule


def has_loop(function, *args):
    return "while" in jax.jit(function).lower(*args).compile().as_text()


def test_convolutions_are_found_in_programs_at_any_depth():
    args = jnp.zeros(()), jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    assert many.has_convolutions(jax.make_jaxpr(convolving)(*args))
    assert not many.has_convolutions(jax.make_jaxpr(multiplying)(*args))
    assert not many.has_convolutions(jax.make_jaxpr(lambda conv_general_dilated: 1.0)(*args[:1]))
    # The one of a network, inside of a function that is compiled on its own.
    network, images = models.resnet8(3), jnp.zeros((2, 8, 8, 3))
    variables = network.init(jax.random.key(0), images)
    apply = jax.jit(lambda v, x: network.apply(*v, x, train=False)[0].logits)
    assert many.has_convolutions(jax.make_jaxpr(apply)(variables, images))


@pytest.mark.parametrize(
    "around",
    [
        lambda f: lambda c, x: jax.lax.scan(f, c, x[None]),
        lambda f: lambda c, x: jax.lax.cond(c > 0, f, multiplying, c, x),
        lambda f: lambda c, x: jax.lax.while_loop(lambda s: s < 1, lambda s: s + f(s, x)[0], c),
        lambda f: jax.grad(lambda c, x: jax.checkpoint(f)(c, x)[0] ** 2),
        ruled,
    ],
    ids=["scan", "cond", "while", "checkpoint", "custom rule"],
)
def test_convolutions_are_found_inside_of_everything_that_holds_a_program(around):
    args = jnp.zeros(()), jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    assert many.has_convolutions(jax.make_jaxpr(around(convolving))(*args))
    assert not many.has_convolutions(jax.make_jaxpr(around(multiplying))(*args))


@pytest.mark.parametrize("body", [convolving, multiplying])
def test_a_scan_traces_its_body_once_and_elsewhere_is_a_loop_too(body, monkeypatch):
    traces = []

    def counted(carry, x):
        traces.append(1)
        return body(carry, x)

    xs = jnp.zeros((5, 1, 4, 4, 1))
    assert has_loop(lambda x: many.scan(counted, jnp.zeros(()), x), xs) == (body is multiplying)
    assert traces == [1]
    single = has_loop(lambda x: many.scan(body, jnp.zeros(()), x), xs[:1])
    assert single == (body is multiplying), "jax's own makes a loop of one turn"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert "scan" in str(jax.make_jaxpr(lambda x: many.scan(body, jnp.zeros(()), x))(xs))


@pytest.mark.parametrize("turns", [5, 1])
@pytest.mark.parametrize("body", [convolving, multiplying, counting])
def test_a_scan_is_jaxs(body, turns):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(turns, 1, 4, 4, 1)), jnp.float32)
    chex.assert_trees_all_close(
        many.scan(body, jnp.zeros(()), xs), jax.lax.scan(body, jnp.zeros(()), xs), rtol=1e-6
    )
    assert has_loop(lambda x: many.scan(body, jnp.zeros(()), x), xs) == (body is multiplying)


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
    together = many.make_sweep_step(run, in_axes=(0,), method="map")
    stacked = many.stack(states)
    assert "while" not in together.lower(stacked).compile().as_text()
    alone = many.stack([run(state)[0] for state in states])
    chex.assert_trees_all_close(together(stacked)[0].params, alone.params, rtol=1e-4, atol=1e-5)
