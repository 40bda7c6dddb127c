"""Random numbers that must differ do: each pair of streams is drawn from keys of its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import linen as nn
from flax import nnx

from kdjax import data, models, online, step, teachers, terms
from kdjax.objective import combine
from kdjax.specialists import _clusters
from kdjax.types import Model, Outputs, Term, TermInputs, Variables


def bits(key):
    return jax.random.bits(key)


def assert_all_differ(draws):
    values = [np.asarray(draw).tobytes() for draw in draws]
    assert len({*values}) == len(values), values


def recording(log):
    """A student that notes the bits of the key that it is called with, and of its own start."""
    linear = toys.linear_model()

    def init(key, inputs):
        return Variables({**linear.init(key, inputs).params, "start": bits(key).astype(float)}, {})

    def apply(params, state, inputs, *, train, key=None):
        if train:
            jax.debug.callback(lambda x: log.append(int(x)), bits(key))
        return linear.apply(params, state, inputs, train=train)

    return Model(init, apply)


def noting(log):
    """A term that notes the bits of the key that it starts from."""

    def init(key, inputs):
        log.append(bits(key))
        return Variables({}, {})

    return Term(init, lambda params, state, x: (jnp.zeros(len(x.mask)), state))


def test_terms_start_from_keys_of_their_own():
    drawn, batch = [], toys.batch_of(4)
    objective = combine({n: noting(drawn) for n in "abc"}, dict.fromkeys("abc", 1))
    outputs = Outputs(jnp.zeros((4, 5)))
    objective.init(jax.random.key(0), TermInputs(batch, outputs, None, jnp.ones(4, bool)))
    assert_all_differ(drawn)


def test_student_terms_and_steps_start_from_keys_of_their_own():
    batch = toys.batch_of(4)

    def init(key, inputs):
        return Variables({"bits": bits(key)}, {})

    term = Term(init, lambda params, state, x: (jnp.zeros(len(x.mask)), state))
    objective = combine({"a": term}, {"a": 1.0})
    student = Model(init, lambda *args, **mode: (Outputs(jnp.zeros((4, 5))), {}))
    state = step.init_train_state(
        jax.random.key(0), student, objective, optax.identity(), batch, None
    )
    own = state.params["student"]["bits"], state.params["terms"]["a"]["bits"], bits(state.key)
    assert_all_differ([*own, bits(jax.random.key(0))])


@pytest.mark.parametrize("micro", [1, 2])
def test_views_dropout_and_micro_batches_of_every_step_draw_anew(micro):
    drawn, batch = [], toys.batch_of(4)
    student, optimizer = recording(drawn), optax.sgd(0.1)
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})

    def view_fn(key, batch):
        jax.debug.callback(lambda x: drawn.append(int(x)), bits(key))
        return batch

    start = jax.random.key(0), student, objective, optimizer, batch, None
    train_step = step.make_train_step(student, objective, optimizer, num_micro_batches=micro)
    run = step.with_teacher(train_step, teachers.absent(), view_fn=view_fn)
    for seed in (0, 1):
        state = step.init_train_state(jax.random.key(seed), *start[1:])
        for _ in range(2):
            state, _ = run(state, batch)
    jax.effects_barrier()
    # Of two seeds two steps each: the view, and the student once for each micro-batch.
    assert len(drawn) == 4 * (1 + micro)
    assert_all_differ(drawn)


def test_functions_of_a_view_draw_anew():
    drawn = []

    def noted(key, images):
        drawn.append(bits(key))
        return images

    data.augment(noted, noted, noted)(jax.random.key(0), {"image": jnp.zeros((2, 4, 4, 1))})
    assert_all_differ(drawn)


def test_peers_start_and_train_from_keys_of_their_own():
    drawn, batch = [], toys.batch_of(4)
    students = (recording(drawn), recording(drawn), recording(drawn))
    objectives = (combine({"hard": terms.cross_entropy()}, {"hard": 1.0}),) * 3
    parts = students, objectives, (optax.sgd(0.0),) * 3

    def view_fn(key, batch):
        jax.debug.callback(lambda x: drawn.append(int(x)), bits(key))
        return batch

    states = online.init_mutual_states(jax.random.key(0), *parts, batch)
    assert_all_differ([state.params["student"]["start"] for state in states])
    online.make_mutual_step(*parts, view_fn=view_fn)(states, batch)
    jax.effects_barrier()
    assert len(drawn) == 4
    assert_all_differ(drawn)


def test_peers_are_constant_to_one_another_whatever_their_losses_do():
    """Also where a loss lets a gradient through to its teacher, as a divergence does."""
    logits = [jnp.array([1.0, 2.0, 4.0]), jnp.array([3.0, 1.0, 0.0]), jnp.array([0.0, 2.0, 0.0])]
    for count in (2, 3):

        def taught(given, count=count):
            answers = [Outputs(x, {"f": x}) for x in given[:count]]
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(teachers.peers(answers)))

        assert not any(np.any(g) for g in jax.grad(taught)(logits))


def test_a_schedule_of_a_peer_sees_the_step():
    batch, students = toys.batch_of(4), (toys.linear_model(),) * 2
    objective = combine({"hard": terms.cross_entropy()}, {"hard": lambda n: jnp.float32(n)})
    parts = students, (objective,) * 2, (optax.sgd(0.0),) * 2
    states, run = (
        online.init_mutual_states(jax.random.key(0), *parts, batch),
        online.make_mutual_step(*parts),
    )
    for count in range(3):
        states, found = run(states, batch)
        for i in range(2):
            weighed, plain = (found[f"peer_{i}/{name}"][0] for name in ("loss", "loss/hard"))
            np.testing.assert_allclose(weighed, count * plain, rtol=1e-6)


def test_streams_of_a_network_draw_anew():
    """Linen's streams by name, NNX's each; two layers of one stream too."""
    drawn = []

    class Layered(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            if train and not self.is_initializing():
                drawn.extend(bits(self.make_rng(name)) for name in ("dropout", "noise", "dropout"))
            return nn.Dense(3)(x)

    class Live(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(2, 3, rngs=rngs)
            self.rngs = nnx.Rngs(dropout=0, noise=0)

        def __call__(self, x, train):
            if train:
                drawn.extend(bits(self.rngs[name]()) for name in ("dropout", "noise", "dropout"))
            return self.head(x)

    for model in (models.from_linen(Layered()), models.from_nnx(lambda rngs: Live(rngs))):
        x = jnp.ones((1, 2))
        variables = model.init(jax.random.key(0), x)
        for key in jax.random.split(jax.random.key(1)):
            drawn.clear()
            model.apply(*variables, x, train=True, key=key)
            assert_all_differ(drawn)


def test_every_centroid_is_drawn_anew(monkeypatch):
    drawn, categorical = [], jax.random.categorical

    def noted(key, logits):
        drawn.append(bits(key))
        return categorical(key, logits)

    monkeypatch.setattr(jax.random, "categorical", noted)
    with jax.disable_jit():
        _clusters._spread_out(jax.random.key(0), jnp.arange(8.0)[:, None], 4)
    assert len(drawn) == 3
    assert_all_differ(drawn)


def test_orders_of_examples_and_crops_are_drawn_anew():
    orders = [data.example_order(seed, epoch, 50) for seed in range(3) for epoch in range(3)]
    assert_all_differ(orders)
    pairs = itertools.combinations(orders, 2)
    assert max(np.mean(a == b) for a, b in pairs) < 0.3
