"""Both adapters, one suite: the same small network with dropout and BatchNorm in Linen and NNX."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_linen, from_nnx, num_params

BATCH, SIZE, WIDTH, CLASSES = 16, 6, 8, 5
NUM_PARAMS = 2 * (SIZE * WIDTH + WIDTH) - (SIZE - WIDTH) * WIDTH + 4 * WIDTH + (WIDTH + 1) * CLASSES


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(WIDTH, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        self.sow("intermediates", "debug", x)
        return nn.Dropout(0.5, deterministic=not train, name="drop")(nn.relu(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        for i in range(2):
            x = LinenBlock(name=f"block_{i}")(x, train)
        return nn.Dense(CLASSES, name="head")(x)


class NnxBlock(nnx.Module):
    def __init__(self, size, rngs):
        self.dense = nnx.Linear(size, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.dense(x))
        self.sow(nnx.Intermediate, "debug", x)
        return self.drop(nnx.relu(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.block_0 = NnxBlock(SIZE, rngs)
        self.block_1 = NnxBlock(WIDTH, rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block_1(self.block_0(x)))


@functools.cache
def linen(features=()):
    return from_linen(LinenNet(), features=features)


@functools.cache
def flax_nnx(features=()):
    return from_nnx(lambda rngs: NnxNet(rngs), features=features)


@pytest.fixture(params=[linen, flax_nnx], ids=["linen", "nnx"])
def adapter(request):
    return request.param


@functools.cache
def example():
    return 3 * jax.random.normal(jax.random.key(7), (BATCH, SIZE)) + 1


@functools.cache
def initial(adapter):
    return adapter().init(jax.random.key(0), example())


@pytest.fixture
def inputs():
    return example()


@pytest.fixture
def ready(adapter, inputs):
    return adapter(), initial(adapter), inputs


def equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), tree, other))


def test_shapes_and_what_params_hold(ready):
    model, variables, inputs = ready
    outputs, _ = model.apply(*variables, inputs, train=False)
    chex.assert_shape(outputs.logits, (BATCH, CLASSES))
    assert outputs.features == {}
    assert num_params(variables.params) == NUM_PARAMS
    assert num_params(variables.state) == 4 * WIDTH
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(variables))


def test_init_depends_on_the_key_alone(adapter, inputs):
    model, key = adapter(), jax.random.key(3)
    chex.assert_trees_all_equal(model.init(key, inputs), model.init(key, inputs))
    chex.assert_trees_all_equal(model.init(key, inputs), model.init(key, inputs + 1))
    assert not equal(model.init(key, inputs), model.init(jax.random.key(4), inputs))


def test_evaluation_is_deterministic_and_returns_the_state(ready):
    model, variables, inputs = ready
    first, state = model.apply(*variables, inputs, train=False)
    second, _ = model.apply(*variables, inputs, train=False, key=jax.random.key(1))
    assert state is variables.state
    chex.assert_trees_all_equal(first, second)


def test_training_changes_the_state_and_not_its_arguments(ready):
    model, variables, inputs = ready
    before = jax.tree.map(np.array, variables)
    _, state = model.apply(*variables, inputs, train=True, key=jax.random.key(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, variables.state)
    assert all(
        not np.array_equal(new, old)
        for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(before.state), strict=True)
    )
    chex.assert_trees_all_equal(jax.tree.map(np.array, variables), before)


def test_running_statistics_move_by_the_momentum(ready):
    model, variables, inputs = ready
    _, state = model.apply(*variables, inputs, train=True, key=jax.random.key(1))
    dense = variables.params["block_0"]["dense"]
    x = np.asarray(inputs) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    norm = state.get("batch_stats", state)["block_0"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_dropout_follows_the_key(ready):
    model, variables, inputs = ready

    def logits(seed):
        return model.apply(*variables, inputs, train=True, key=jax.random.key(seed))[0].logits

    assert equal(logits(1), logits(1))
    assert not equal(logits(1), logits(2))


def test_dropout_needs_a_key_in_training(ready):
    model, variables, inputs = ready
    with pytest.raises(ValueError, match=r"Net needs random numbers in training, but key is None"):
        model.apply(*variables, inputs, train=True)
    with pytest.raises(ValueError, match="key is None"):
        jax.jit(lambda v, x: model.apply(*v, x, train=True)[0].logits)(variables, inputs)


def test_dropout_zeroes_half_and_keeps_the_mean(adapter, inputs):
    model = adapter(("block_1/norm", "block_1/drop"))
    variables = initial(adapter)
    inputs = jnp.tile(inputs, (64, 1))
    features = model.apply(*variables, inputs, train=True, key=jax.random.key(5))[0].features
    before, after = nn.relu(features["block_1/norm"]), features["block_1/drop"]
    kept = after != 0
    np.testing.assert_allclose(jnp.sum(kept) / jnp.sum(before != 0), 0.5, atol=0.03)
    np.testing.assert_allclose(after, jnp.where(kept, 2 * before, 0), rtol=1e-6)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("separator", ["/", "."])
def test_features_by_path(adapter, inputs, train, separator):
    names = ("block_0", separator.join(("block_1", "norm")), "head")
    model, key = adapter(names), jax.random.key(1)
    variables = initial(adapter)
    outputs, state = model.apply(*variables, inputs, train=train, key=key)
    plain, plain_state = adapter().apply(*variables, inputs, train=train, key=key)
    assert tuple(outputs.features) == names
    chex.assert_shape([outputs.features[name] for name in names[:2]], (BATCH, WIDTH))
    chex.assert_trees_all_equal(outputs.features["head"], outputs.logits)
    chex.assert_trees_all_equal((outputs.logits, state), (plain.logits, plain_state))
    if not train:
        chex.assert_trees_all_equal(jnp.min(outputs.features["block_0"]), jnp.zeros(()))


def test_gradient_reaches_through_features(adapter, inputs):
    model = adapter(("block_0",))
    variables = initial(adapter)

    def loss(params):
        outputs, _ = model.apply(params, variables.state, inputs, train=True, key=jax.random.key(0))
        return jnp.sum(outputs.features["block_0"] ** 2)

    grads = jax.grad(loss)(variables.params)
    assert jnp.any(grads["block_0"]["dense"]["kernel"] != 0)
    assert not jnp.any(grads["block_1"]["dense"]["kernel"] != 0)


def test_an_unknown_path_lists_near_ones(adapter, inputs):
    with pytest.raises(ValueError, match=r"'block_0/nrm'.*near matches: block_0/norm"):
        adapter(("block_0/nrm",)).init(jax.random.key(0), inputs)
    with pytest.raises(
        ValueError, match=r"'zzz'.*there are: block_0, block_0/debug, block_0/dense"
    ):
        adapter(("zzz",)).init(jax.random.key(0), inputs)


@pytest.mark.parametrize("train", [False, True])
def test_jit_equals_eager_with_one_trace(ready, train):
    model, variables, inputs = ready
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, inputs, key):
        return model.apply(params, state, inputs, train=train, key=key)

    params, state = variables
    for seed in range(3):
        key = jax.random.key(seed)
        expected = model.apply(params, state, inputs, train=train, key=key)
        compiled = step(params, state, inputs, key)
        chex.assert_trees_all_close(compiled, expected, rtol=1e-5, atol=1e-5)
        state = compiled[1]


def test_training_in_a_scan_on_eight_devices_equals_one(adapter, inputs):
    model = adapter(("block_0",))
    params, state = initial(adapter)

    def loss(params, state, inputs, key):
        outputs, state = model.apply(params, state, inputs, train=True, key=key)
        return jnp.mean(outputs.logits**2) + jnp.mean(outputs.features["block_0"]), state

    def body(carry, key):
        grads, state = jax.grad(loss, has_aux=True)(*carry[:2], carry[2], key)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, carry[0], grads)
        return (params, state, carry[2]), None

    def train(params, state, inputs):
        keys = jax.random.split(jax.random.key(1), 3)
        return jax.lax.scan(body, (params, state, inputs), keys)[0][:2]

    expected = jax.jit(train)(params, state, inputs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.NamedSharding(mesh, jax.P())
    split = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    placed = jax.tree.map(lambda x: jax.device_put(jnp.array(x), whole), (params, state))
    got = jax.jit(train, donate_argnums=(0, 1))(*placed, split)
    assert all(x.is_deleted() for x in jax.tree.leaves(placed))
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(got))
    assert not equal(got[0], params)
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(expected), rtol=1e-4, atol=1e-5)


def test_no_tracer_leaks(adapter, inputs):
    with jax.checking_leaks():
        model = adapter.__wrapped__(("block_0",))
        variables = model.init(jax.random.key(0), inputs)
        step = jax.jit(lambda v, x, k: model.apply(*v, x, train=True, key=k))
        step(variables, inputs, jax.random.key(0))
    outputs, _ = model.apply(*variables, inputs, train=False)
    assert not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(outputs))


def test_old_style_keys_serve(ready, adapter, inputs):
    model, variables, _ = ready
    key = jax.random.key_data(jax.random.key(0))
    chex.assert_trees_all_equal(model.init(key, inputs), variables)
    old, _ = model.apply(*variables, inputs, train=True, key=key)
    new, _ = model.apply(*variables, inputs, train=True, key=jax.random.key(0))
    chex.assert_trees_all_equal(old, new)
