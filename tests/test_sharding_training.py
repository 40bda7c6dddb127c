"""The same training on every mesh: SGD ends in the same parameters, Adam sees the same losses."""

import functools
import operator
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import models, sharding, step, teachers, terms
from kdjax.losses import angle_relation_loss, distance_relation_loss
from kdjax.objective import combine

MESHES = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
CLASSES, BATCH, EXAMPLES, STEPS = 8, 16, 32, 3
SGD, ADAM = 0, 1

STUDENTS = {
    "mlp": lambda: models.mlp(CLASSES, widths=(32, 16), dropout=0.3, features=("drop_1",)),
    "resnet": lambda: models.resnet8(CLASSES, features=("pool",)),
    "transformer": lambda: models.vit(
        CLASSES, patch_size=4, width=16, depth=1, num_heads=8, dropout=0.1, features=("embedding",)
    ),
}
RULES = {
    "mlp": sharding.MLP_RULES,
    "resnet": sharding.RESNET_RULES,
    "transformer": sharding.TRANSFORMER_RULES,
}
EMBEDDINGS = {"mlp": "drop_1", "resnet": "pool", "transformer": "embedding"}


class Trained(NamedTuple):
    """What a training leaves, on the host: `first_grads` are those of its first step."""

    state: dict
    first_grads: dict
    losses: np.ndarray


@functools.cache
def student_of(network):
    return models.normalized(STUDENTS[network](), [0.5] * 3, [0.25] * 3)


def either(first, second):
    """Two optimizers in one program: the state's first entry, 0 or 1, says which one moves."""

    def init(params):
        return jnp.zeros((), jnp.int32), first.init(params), second.init(params)

    def update(grads, state, params):
        choice, *states = state
        pairs = [
            optimizer.update(grads, own, params)
            for optimizer, own in zip((first, second), states, strict=True)
        ]
        moved = jax.tree.map(lambda *x: jnp.where(choice == 0, *x), pairs[0][0], pairs[1][0])
        return moved, (choice, pairs[0][1], pairs[1][1])

    return optax.GradientTransformation(init, update)


OPTIMIZER = either(optax.sgd(0.02, momentum=0.9), optax.adam(1e-3))


@functools.cache
def batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 8, 8, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    chosen = [rng.permutation(EXAMPLES)[:BATCH].astype(np.int32) for _ in range(STEPS)]
    return [{"image": images[i], "label": labels[i], "index": i} for i in chosen]


@functools.cache
def objective_of(network):
    student, teacher = EMBEDDINGS[network], "hidden_0"
    return combine(
        {
            "kd": terms.kd(),
            "crd": terms.crd(student, teacher, num_examples=EXAMPLES, num_negatives=8, width=16),
            "distances": terms.of(distance_relation_loss, student=student, teacher=teacher),
            "angles": terms.of(angle_relation_loss, student=student, teacher=teacher),
        },
        {"kd": 1.0, "crd": 0.2, "distances": 1.0, "angles": 1.0},
    )


@functools.cache
def teacher_variables():
    return jax.jit(teacher_model().init)(jax.random.key(7), batches()[0]["image"])


@functools.cache
def teacher_model():
    model = models.mlp(CLASSES, widths=(64,), features=("hidden_0",))
    return models.normalized(model, [0.5] * 3, [0.25] * 3)


@functools.cache
def initial(network):
    """Return the state that all start from, on the host."""
    student, objective, batch = student_of(network), objective_of(network), batches()[0]

    @jax.jit
    def make(key, variables):
        outputs = teachers.frozen(teacher_model(), variables).apply(variables, batch)
        state = step.init_train_state(key, student, objective, OPTIMIZER, batch, outputs)
        return with_keys(state, jax.random.key_data)

    return jax.device_get(make(jax.random.key(0), teacher_variables()))


def with_keys(state, convert):
    crd = state.term_state["crd"]
    crd = {**crd, "key": convert(crd["key"])}
    return state.replace(key=convert(state.key), term_state={**state.term_state, "crd": crd})


@functools.cache
def setup_of(network, sizes):
    """Split all that divides on a mesh, the teacher over `data` as well."""
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    traced = []

    def layout(tree):
        traced.append(type(tree).__name__)
        return sharding.shardings(tree, mesh, RULES[network], min_size=1)

    axes = {"fsdp": ("data", "fsdp")}
    placed = sharding.place(teacher_variables(), mesh, sharding.MLP_RULES, axes=axes)
    train_step = step.make_train_step(
        student_of(network), objective_of(network), OPTIMIZER, layout_fn=layout
    )
    run = step.with_teacher(train_step, teachers.frozen(teacher_model(), placed))
    return mesh, layout, run, traced


@functools.cache
def train(network, sizes, choice):
    mesh, layout, run, traced = setup_of(network, sizes)
    state = with_keys(initial(network), jax.random.wrap_key_data)
    state = state.replace(opt_state=(np.int32(choice), *state.opt_state[1:]))
    lives = layout(state)
    state, losses = jax.device_put(state, lives), []
    for batch in batches():
        state, metrics = run(state, sharding.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
        if len(losses) == 1:
            traced.clear()
            first_grads = jax.tree.map(lambda m: np.asarray(m) / 0.1, state.opt_state[2][0].mu)
    assert jax.tree.map(lambda x: x.sharding, state) == lives
    assert not traced
    state = jax.device_get(with_keys(state, jax.random.key_data))
    kept = {name: getattr(state, name) for name in ("params", "model_state", "term_state")}
    return Trained(kept, first_grads, np.array(losses))


def assert_close(got, expected, *, rtol, atol):
    def compare(path, a, b):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, got, expected)


# Every mesh with one network, every network on the mesh of all axes.
PAIRS = [("transformer", (2, 2, 2))] + [
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in [
        *(("transformer", sizes) for sizes in MESHES if sizes != (2, 2, 2)),
        ("mlp", (2, 2, 2)), ("resnet", (2, 2, 2)),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("network", "sizes"), PAIRS)
def test_every_mesh_trains_like_one_device(network, sizes):
    got, expected = train(network, sizes, SGD), train(network, (1, 1, 1), SGD)
    assert_close(got.state, expected.state, rtol=1e-4, atol=1e-5)
    got, expected = train(network, sizes, ADAM), train(network, (1, 1, 1), ADAM)
    assert_close(got.first_grads, expected.first_grads, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.losses, expected.losses, rtol=1e-4)


@functools.cache
def decoder_training():
    """Return the parts of a step of a decoder that has all that it may, and where all start."""
    details = models.Details(bias=True, query_key_norm=True, embedding_width=8)
    student = models.transformer(
        32, width=16, depth=1, num_heads=4, num_key_heads=2, tied=False, details=details
    )
    rng = np.random.default_rng(0)
    tokens, logits = rng.integers(0, 32, (2, 8, 6)), rng.normal(size=(8, 6, 32))
    text = {"tokens": tokens[0], "document": np.sort(tokens[1] % 2, -1)}
    batch = {"text": text, "label": tokens[1], "teacher_logits": np.float32(logits)}
    parts = student, combine({"kd": terms.kd()}, {"kd": 1.0}), optax.sgd(0.3)

    @jax.jit
    def make(key):
        outputs = teachers.stored().apply((), batch)
        return step.init_train_state(key, *parts, batch, outputs, inputs_fn=itemgetter("text"))

    return parts, batch, jax.device_get(make(jax.random.key(0)).replace(key=()))


def decoder_trained(sizes):
    parts, batch, state = decoder_training()
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    layout = functools.partial(
        sharding.shardings, mesh=mesh, rules=sharding.TRANSFORMER_RULES, min_size=1
    )
    train_step = step.make_train_step(*parts, inputs_fn=itemgetter("text"), layout_fn=layout)
    run, losses = step.with_teacher(train_step, teachers.stored()), []
    state = state.replace(key=jax.random.key(1))
    state = jax.device_put(state, layout(state))
    for _ in range(2):
        state, metrics = run(state, sharding.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return jax.device_get(state.params), losses, state.params["student"]


def test_a_decoder_trains_like_one_device_on_a_mesh_of_all_axes():
    (got, losses, lives), (expected, alone, _) = map(decoder_trained, [(2, 2, 2), (1, 1, 1)])
    assert losses[1] < losses[0]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert_close(got, expected, rtol=1e-4, atol=1e-6)
    for path, split in (
        ("tokens/embedding", (("tensor", "fsdp"),)), ("head/kernel", (("tensor", "fsdp"),)),
        ("block_0/attention/key/kernel", ("fsdp", "tensor")),
        ("block_0/mlp/gate/kernel", ("fsdp", "tensor")), ("project_out/kernel", (None, "fsdp")),
    ):  # fmt: skip
        leaf = functools.reduce(operator.getitem, path.split("/"), lives)
        assert leaf.sharding.spec == jax.sharding.PartitionSpec(*split), path
