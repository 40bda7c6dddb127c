"""Networks that are written otherwise: flags, shared modules, tuples, sown values."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_linen, from_nnx, num_params, variables_of
from kdjax.types import Variables

X = jnp.arange(12.0).reshape(4, 3)
KEY = jax.random.key(0)


def run(model, train=False, key=None, inputs=X):
    return model.apply(*model.init(KEY, inputs), inputs, train=train, key=key)


def flagged(flag):
    class Flagged(nn.Module):
        def __call__(self, x, on):
            return x + (1 if on else 0)

    namespace = {"Flagged": Flagged}
    exec(  # the flag's name is part of the signature
        f"class Net(Flagged):\n    def __call__(self, x, {flag}):\n"
        f"        return Flagged.__call__(self, x, {flag})\n",
        namespace,
    )
    return namespace["Net"]()


@pytest.mark.parametrize("flag", ["train", "training", "is_training"])
def test_flags_that_say_train(flag):
    np.testing.assert_array_equal(run(from_linen(flagged(flag)), train=True)[0].logits, X + 1)
    np.testing.assert_array_equal(run(from_linen(flagged(flag)), train=False)[0].logits, X)


@pytest.mark.parametrize("flag", ["deterministic", "use_running_average"])
def test_flags_that_say_evaluate(flag):
    np.testing.assert_array_equal(run(from_linen(flagged(flag)), train=True)[0].logits, X)
    np.testing.assert_array_equal(run(from_linen(flagged(flag)), train=False)[0].logits, X + 1)


def test_linen_module_without_a_flag():
    outputs, state = run(from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])), train=True)
    chex.assert_shape(outputs.logits, (4, 2))
    assert state == {}


def test_nnx_module_with_a_flag():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, train):
            return self.drop(x, deterministic=not train)

    model = from_nnx(lambda rngs: Net(rngs))
    np.testing.assert_array_equal(run(model)[0].logits, X)
    assert jnp.any(run(model, train=True, key=KEY)[0].logits != X)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(2, name="head")(x)
        return y, {"extra": x}


class NnxPair(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(x), {"extra": x}


PAIRS = [
    pytest.param(lambda **kw: from_linen(Pair(), **kw), id="linen"),
    pytest.param(lambda **kw: from_nnx(lambda rngs: NnxPair(rngs), **kw), id="nnx"),
]


@pytest.mark.parametrize("make", PAIRS)
def test_a_tuple_is_refused_and_call_fn_picks(make):
    with pytest.raises(TypeError, match=r"Pair returned a tuple.*call_fn"):
        make().init(KEY, X)
    model = make(call_fn=lambda module, inputs, train: module(inputs)[0] + train)
    variables = model.init(KEY, X)
    evaluated, _ = model.apply(*variables, X, train=False)
    trained, _ = model.apply(*variables, X, train=True)
    chex.assert_shape(evaluated.logits, (4, 2))
    np.testing.assert_allclose(trained.logits, evaluated.logits + 1, rtol=1e-6)


class Losses(nnx.Variable):
    """A type of the user's own."""


SUM = {"init_fn": lambda: 0.0, "reduce_fn": lambda old, new: old + new}


class Telling(nn.Module):
    """Sows values of its own and of a layer inside, and returns more than logits."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.MultiHeadDotProductAttention(1, name="attn")(x, sow_weights=True)
        for scale in (1.0, 2.0):
            self.sow("losses", "balance", scale * jnp.mean(x), **SUM)
        self.sow("intermediates", "hidden", hidden)
        return {"logits": nn.Dense(2)(hidden), "hidden_states": (x, hidden), "mask": None}


class NnxTelling(nnx.Module):
    def __init__(self, rngs):
        self.attn = nnx.MultiHeadAttention(1, 3, decode=False, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        hidden = self.attn(x, sow_weights=True)
        for scale in (1.0, 2.0):
            self.sow(Losses, "balance", scale * jnp.mean(x), **SUM)
        self.sow(nnx.Intermediate, "hidden", hidden)
        return {"logits": self.head(hidden), "hidden_states": (x, hidden), "mask": None}


TOLD = ("attn", "attn/attention_weights", "balance", "hidden", "hidden_states/1")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: from_linen(Telling(), **kw),
        lambda **kw: from_nnx(lambda rngs: NnxTelling(rngs), **kw),
    ],
    ids=["linen", "nnx"],
)
def test_sown_values_and_other_outputs_are_features_and_no_state(make, train):
    x = X.reshape(1, 4, 3)
    outputs, state = run(make(features=TOLD), train=train, key=KEY, inputs=x)
    chex.assert_shape(outputs.logits, (1, 4, 2))
    shapes = {name: value.shape for name, value in outputs.features.items()}
    assert shapes["attn/attention_weights"] == (1, 1, 4, 4)
    np.testing.assert_array_equal(outputs.features["balance"], 3 * jnp.mean(x))
    for name in ("hidden", "hidden_states/1"):
        np.testing.assert_array_equal(outputs.features[name], outputs.features["attn"])
    assert not jax.tree.leaves(state)
    plain, _ = run(make(), train=train, key=KEY, inputs=x)
    np.testing.assert_array_equal(plain.logits, outputs.logits)
    with pytest.raises(ValueError, match=r"'hiden'.*no value that it sows.*near matches: .*hidden"):
        make(features=("hiden",)).init(KEY, x)


class Act(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


class Shared(nn.Module):
    def setup(self):
        self.act, self.one, self.two = Act(), nn.Dense(3), nn.Dense(2)

    def __call__(self, x):
        return self.two(self.act(self.one(self.act(x - 5))))


class NnxAct(nnx.Module):
    def __call__(self, x):
        return nnx.relu(x)


class NnxShared(nnx.Module):
    def __init__(self, rngs):
        self.act = NnxAct()
        self.one, self.two = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.two(self.act(self.one(self.act(x - 5))))


SHARED = [
    pytest.param(lambda *names: from_linen(Shared(), features=names), id="linen"),
    pytest.param(lambda *names: from_nnx(lambda rngs: NnxShared(rngs), features=names), id="nnx"),
]


@pytest.mark.parametrize("make", SHARED)
def test_a_module_called_twice_needs_a_number(make):
    features = run(make("act:0", "one", "act:1"))[0].features
    np.testing.assert_array_equal(features["act:0"], jax.nn.relu(X - 5))
    np.testing.assert_array_equal(features["act:1"], jax.nn.relu(features["one"]))
    with pytest.raises(ValueError, match="'act' is called 2 times; choose one of 'act:0', 'act:1'"):
        run(make("act"))
    with pytest.raises(ValueError, match="'act:2', but the module is called 2 times"):
        run(make("act:2"))
    with pytest.raises(ValueError, match="'act:last', expected a call's number"):
        make("act:last")


@pytest.mark.parametrize("make", SHARED)
def test_features_must_be_a_sequence_of_paths(make):
    with pytest.raises(TypeError, match="features is the string 'act'"):
        from_linen(Shared(), features="act")
    with pytest.raises(TypeError, match="features is the string 'act'"):
        from_nnx(lambda rngs: NnxShared(rngs), features="act")


def test_a_feature_that_is_no_array_is_refused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Pair(name="pair")(x)[0]

    with pytest.raises(TypeError, match="'pair' returns a tuple"):
        run(from_linen(Net(), features=("pair",)))


def test_a_module_that_is_not_called_has_no_feature():
    class Idle(NnxShared):
        def __call__(self, x):
            return self.two(x)

    with pytest.raises(ValueError, match="'one' cannot be captured"):
        run(from_nnx(lambda rngs: Idle(rngs), features=("one",)))


def test_linen_features_in_a_rematerialised_module():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(nn.remat(Pair)(name="pair")(x)[0])

    outputs, _ = run(from_linen(Net(), features=("pair/head",)), train=True)
    chex.assert_shape(outputs.features["pair/head"], (4, 2))


def test_linen_sown_values_are_not_state():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(2)(x))
            self.sow("losses", "penalty", jnp.sum(x**2))
            self.sow("intermediates", "x", x)
            return x

    model = from_linen(Net(), features=("Dense_0",))
    variables = model.init(KEY, X)
    assert set(variables.state) == {"batch_stats"}
    _, state = model.apply(*variables, X, train=True)
    chex.assert_trees_all_equal_structs(state, variables.state)


def test_linen_state_written_in_evaluation_is_refused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls = self.variable("counts", "calls", lambda: jnp.zeros(()))
            if not self.is_initializing():
                calls.value = calls.value + 1
            return x

    model = from_linen(Net())
    variables = model.init(KEY, X)
    with pytest.raises(ValueError, match="evaluation of Net changes its state counts/calls"):
        model.apply(*variables, X, train=False)
    assert model.apply(*variables, X, train=True)[1]["counts"]["calls"] == 1


class Noise(nn.Module):
    streams: tuple[str, ...]

    def __call__(self, x):
        return jnp.stack([jax.random.normal(self.make_rng(name)) for name in self.streams])


def test_linen_streams_are_all_served_and_differ():
    logits = run(from_linen(Noise(("dropout", "noise", "dropout", "params"))), train=True, key=KEY)[
        0
    ].logits
    assert len(set(logits.tolist())) == 4
    by_hand = Noise(("dropout",)).apply({}, X, rngs={"dropout": KEY})
    np.testing.assert_array_equal(
        run(from_linen(Noise(("dropout",))), train=True, key=KEY)[0].logits, by_hand
    )


def test_linen_random_numbers_in_evaluation_are_refused():
    with pytest.raises(ValueError, match="Noise asks for random numbers in evaluation"):
        run(from_linen(Noise(("dropout",))), key=KEY)


class Base(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Derived(Base):
    pass


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Derived(rngs) for _ in range(11)])
        self.rngs = rngs
        self.table = nnx.data(jnp.ones(3))

    def __call__(self, x):
        for block in self.blocks:
            x = block(x) + self.table[None]
        return x


def test_nnx_lists_inherited_calls_and_plain_arrays():
    model = from_nnx(lambda rngs: NnxNet(rngs), features=("blocks/10", "blocks.9.linear"))
    calls = Base.__call__, Derived.__call__
    variables = model.init(KEY, X)
    outputs, _ = model.apply(*variables, X, train=False)
    np.testing.assert_allclose(outputs.logits, outputs.features["blocks/10"] + 1, rtol=1e-6)
    assert calls == (Base.__call__, Derived.__call__)
    assert set(variables.params["blocks"]) == {str(i) for i in range(11)}
    np.testing.assert_array_equal(variables.state["table"], jnp.ones(3))
    assert num_params(variables.state) == 3


def test_nnx_live_module_and_its_model_agree():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.block = Derived(rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.block(x)))

    live = Net(nnx.Rngs(3))
    live.train()
    live(X)
    live.eval()
    variables = variables_of(live)
    assert isinstance(variables, Variables)
    outputs, _ = from_nnx(lambda rngs: Net(rngs)).apply(*variables, X, train=False)
    np.testing.assert_allclose(outputs.logits, live(X), rtol=1e-6)
    assert num_params(variables.params) == 12 + 6
    assert num_params(variables.state) == 6


def test_nnx_dropout_layers_draw_their_own_numbers():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.one(x), self.two(x)])

    one, two = run(from_nnx(lambda rngs: Net(rngs)), train=True, key=KEY, inputs=jnp.ones(64))[
        0
    ].logits
    assert jnp.any(one != two)


def test_nnx_wants_a_function_that_makes_a_module():
    with pytest.raises(TypeError, match=r"make_module is a Derived.*variables_of"):
        from_nnx(Derived(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="make_module made no nnx"):
        from_nnx(lambda rngs: 3)


def test_nnx_random_numbers_in_evaluation_are_refused():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs

        def __call__(self, x):
            return x + self.rngs.noise.normal((1, 1))

    model = from_nnx(lambda rngs: Net(rngs))
    with pytest.raises(ValueError, match="Net needs random numbers in evaluation"):
        run(model)
