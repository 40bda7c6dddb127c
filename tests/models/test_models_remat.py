"""Networks whose blocks are computed again for the gradient: the same numbers, less kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models

FEATURES = {
    "resnet": ("stage_1", "stage_2/block_0", "stage_2/block_0/sum", "pool"),
    "vit": ("block_0", "block_1/mlp", "embedding"),
}


def network(name, features=()):
    if name == "resnet":
        return models.resnet8(5, features=features)
    return models.vit(
        5, patch_size=4, width=16, depth=2, num_heads=2, dropout=0.3, features=features
    )


def images(size=4):
    return jnp.asarray(np.random.default_rng(0).normal(size=(size, 8, 8, 3)), jnp.float32)


def outputs_of(model, variables):
    """Return a gradient, and all that the network returned, in training."""

    @jax.jit
    def run(params, state):
        def loss(params):
            x, key = images(), jax.random.key(2)
            outputs, new_state = model.apply(params, state, x, train=True, key=key)
            total = sum(jnp.sum(jnp.square(f)) for f in outputs.features.values())
            return total + jnp.sum(jnp.square(outputs.logits)), (outputs, new_state)

        return jax.grad(loss, has_aux=True)(params)

    return run(*variables)


def kept(model, size=8):
    """Return the bytes that a forward pass keeps for the gradient, its parameters left out."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(size))

    def backward(params, state):
        def logits(params):
            key = jax.random.key(2)
            return model.apply(params, state, images(size), train=True, key=key)[0].logits

        return jax.vjp(logits, params)[1]

    def total(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return total(jax.eval_shape(backward, *shapes)) - total(shapes.params)


@pytest.mark.parametrize("name", FEATURES)
def test_gradient_state_logits_and_features_are_the_same(name):
    model = network(name, FEATURES[name])
    variables = jax.jit(model.init)(jax.random.key(0), images())
    plain = outputs_of(model, variables)
    again = outputs_of(models.rematerialized(model), variables)
    assert again[1][0].features.keys() == set(FEATURES[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)
    if variables.state:
        changed = jax.tree.map(lambda a, b: np.any(a != b), variables.state, again[1][1])
        assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("name", FEATURES)
def test_less_is_kept_for_the_gradient(name):
    assert kept(models.rematerialized(network(name))) < 0.5 * kept(network(name))


def test_patterns_choose_the_blocks():
    model = network("resnet")
    some = kept(models.rematerialized(model, blocks=("stage_1/block_*",)))
    assert kept(models.rematerialized(model)) < some < kept(model)


def test_a_block_may_be_told_to_train_by_position():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return Block(name="block_0")(jnp.mean(x, axis=(1, 2)), train)

    model = models.from_linen(Net(), features=("block_0",))
    variables = model.init(jax.random.key(0), images())
    plain, again = (outputs_of(m, variables) for m in (model, models.rematerialized(model)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)


def test_misuse_names_the_patterns():
    model = models.mlp(5, widths=(3,))
    variables = model.init(jax.random.key(0), images())
    lean = models.rematerialized(model)
    lean.apply(*variables, images(), train=False)
    with pytest.raises(ValueError, match=r"blocks is \('block_\*',\), but the network calls no"):
        lean.apply(*variables, images(), train=True)
    with pytest.raises(TypeError, match="blocks is the string 'block_0'"):
        models.rematerialized(model, blocks="block_0")
