"""Where arrays live: rules on paths, annotations, sizes; made in place and placed."""

import dataclasses
import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import nnx
from jax.sharding import PartitionSpec as P

from kdjax import models, online, sharding, step, teachers, terms
from kdjax.objective import combine

MESH = sharding.make_mesh(data=2, fsdp=2, tensor=2)
KEY = jax.random.key(0)


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def specs(tree, rules=(), mesh=MESH, **settings):
    found = sharding.shardings(tree, mesh, rules, **settings)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


def spec(shape, *rules, mesh=MESH, **settings):
    return specs({"a": struct(*shape)}, rules, mesh, **settings)["a"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 128), P(None, "fsdp")),
        ((128, 64), P("fsdp")),
        ((64, 64), P("fsdp")),
        ((129, 64), P(None, "fsdp")),  # the largest does not divide
        ((3, 3, 32, 64), P(None, None, None, "fsdp")),
        ((33, 65), P()),
        ((16, 16), P()),  # tiny
        ((), P()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, expected):
    assert spec(shape) == expected


def test_tiny_is_what_the_caller_says():
    assert spec((16, 16), min_size=256) == P("fsdp")
    assert spec((16, 16), min_size=257) == P()


def test_keys_and_scalars_are_everywhere():
    tree = {"key": KEY, "keys": jax.random.split(KEY, 4096), "step": struct(dtype=jnp.int32)}
    everything = ((r".", P("fsdp")),)
    assert set(specs(tree).values()) == set(specs(tree, everything).values()) == {P()}


def test_the_first_rule_that_is_found_decides():
    rules = ((r"a$", P("tensor", "fsdp")), (r"", P("data")))
    assert spec((4, 4), *rules) == P("tensor", "fsdp")
    assert spec((4, 4), *rules[::-1]) == P("data")
    assert spec((4,), *rules) == P("data")  # an array of one axis is not what the first means


@pytest.mark.parametrize(
    ("shape", "rule", "expected"),
    [
        ((4, 3), P("fsdp", "tensor"), P("fsdp")),
        ((3, 4), P("fsdp", "tensor"), P(None, "tensor")),
        ((8,), P(("data", "fsdp", "tensor")), P(("data", "fsdp", "tensor"))),
        ((4,), P(("data", "fsdp", "tensor")), P(("data", "fsdp"))),
        ((2, 2), P("fsdp", ("fsdp", "tensor")), P("fsdp", "tensor")),  # each axis once
        ((4, 4), P("unknown", None), P()),
    ],
)
def test_no_axis_is_split_that_does_not_divide(shape, rule, expected):
    assert spec(shape, (r"a", rule)) == expected


def test_axes_of_one_device_are_not_named():
    mesh = sharding.make_mesh(data=8)
    assert spec((64, 64), (r"a", P("fsdp", "tensor")), mesh=mesh) == P()
    assert spec((64, 64), mesh=mesh) == P()


def test_names_may_mean_other_axes():
    assert spec((64, 64), axes={"fsdp": ("data", "fsdp")}) == P(("data", "fsdp"))
    rule = (r"a", P("rows", "columns"))
    assert spec((4, 4), rule, axes={"rows": "tensor", "columns": None}) == P("tensor")


def network_specs(model, rules, images=(1, 8, 8, 3), **settings):
    variables = jax.eval_shape(model.init, KEY, jnp.zeros(images))
    return specs(variables, rules, **settings)


def test_the_table_of_the_mlp():
    found = network_specs(models.mlp(8, widths=(16, 32)), sharding.MLP_RULES)
    assert found == {
        "params/hidden_0/kernel": P("fsdp", "tensor"),
        "params/hidden_0/bias": P("tensor"),
        "params/hidden_1/kernel": P("tensor", "fsdp"),
        "params/hidden_1/bias": P(),
        "params/head/kernel": P(("tensor", "fsdp")),
        "params/head/bias": P(),
    }


def test_the_table_of_the_resnet():
    found = network_specs(models.resnet8(8), sharding.RESNET_RULES)
    block = {k: v for k, v in found.items() if "/stage_2/" in k}
    assert block == {
        "params/stage_2/block_0/conv_1/kernel": P(None, None, "fsdp", "tensor"),
        "params/stage_2/block_0/conv_2/kernel": P(None, None, "tensor", "fsdp"),
        "params/stage_2/block_0/shortcut_conv/kernel": P(None, None, None, "fsdp"),
        **{
            f"{where}/stage_2/block_0/norm_1/{name}": P("tensor")
            for where, names in (("params", "scale bias"), ("state/batch_stats", "mean var"))
            for name in names.split()
        },
        **{
            f"{where}/stage_2/block_0/{norm}/{name}": P()
            for norm in ("norm_2", "shortcut_norm")
            for where, names in (("params", "scale bias"), ("state/batch_stats", "mean var"))
            for name in names.split()
        },
    }


def test_the_table_of_the_resnet_for_large_images():
    found = network_specs(models.resnet18(8), sharding.RESNET_RULES, images=(1, 64, 64, 3))
    kernels = {k: v for k, v in found.items() if k.endswith("kernel")}
    kinds = {path.split("/")[-2]: spec for path, spec in kernels.items()}
    assert kinds == {
        "stem": P(None, None, None, "fsdp"),
        "conv_1": P(None, None, "fsdp", "tensor"),
        "conv_2": P(None, None, "tensor", "fsdp"),
        "shortcut_conv": P(None, None, None, "fsdp"),
        "head": P(("tensor", "fsdp")),
    }
    assert len(kernels) == 1 + 2 * 8 + 3 + 1


def test_the_table_of_the_resnet_has_all_networks_of_convolutions():
    outputs = P(None, None, None, "fsdp")
    expected = {
        "stem": outputs,
        "shortcut_conv": outputs,
        "conv": outputs,
        "conv_3": outputs,
        "conv_1": P(None, None, "fsdp", "tensor"),
        "conv_2": P(None, None, "tensor", "fsdp"),
        "depthwise": P(None, None, None, "tensor"),
        "shortcut_depthwise": P(None, None, None, "tensor"),
        "head": P(("tensor", "fsdp")),
    }
    made = [
        models.wide_resnet(10, 8, widen_factor=1),
        models.bottleneck_resnet(8, stage_sizes=(1,)),
        models.vgg8(8),
        models.mobilenet_v2(8),
        models.shufflenet_v2(8),
    ]
    seen = set()
    for model in made:
        variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))
        found = specs(variables, sharding.RESNET_RULES)
        kernels = {path: spec for path, spec in found.items() if path.endswith("kernel")}
        for path, spec in kernels.items():
            assert spec == expected[path.split("/")[-2]], path
        seen |= {path.split("/")[-2] for path in kernels}
        inner = [path for path in found if "/norm_1/" in path or "/depthwise_norm/" in path]
        assert all(found[path] == P("tensor") for path in inner)
    assert seen == set(expected)


def test_the_table_of_the_transformer():
    model = models.vit(8, patch_size=4, width=16, depth=1, num_heads=2)
    found = network_specs(model, sharding.TRANSFORMER_RULES)
    kernels = {k.removeprefix("params/"): v for k, v in found.items() if k.endswith("kernel")}
    assert kernels == {
        **{f"block_0/attention/{n}/kernel": P("fsdp", "tensor") for n in ("query", "key", "value")},
        "block_0/attention/out/kernel": P("tensor", None, "fsdp"),
        "block_0/mlp/up/kernel": P("fsdp", "tensor"),
        "block_0/mlp/down/kernel": P("tensor", "fsdp"),
        "patches/kernel": P(None, None, None, "fsdp"),
        "head/kernel": P(("tensor", "fsdp")),
    }


def state_of(model, optimizer, image=(8, 8, 8, 3), term=None):
    batch = {
        "image": jnp.zeros(image),
        "label": jnp.zeros(8, jnp.int32),
        "index": jnp.arange(8, dtype=jnp.int32),
    }
    objective = combine({"term": term or terms.cross_entropy()}, {"term": 1.0})

    def make(key):
        variables = model.init(key, batch["image"])
        outputs, _ = model.apply(*variables, batch["image"], train=False)
        return step.init_train_state(key, model, objective, optimizer, batch, outputs)

    return make


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1), optax.adafactor(0.1)]
)
def test_moments_live_where_their_parameters_do(optimizer):
    state = jax.eval_shape(state_of(models.mlp(8, widths=(16, 256)), optimizer), KEY)
    found = specs(state, sharding.MLP_RULES)
    params = {k.removeprefix("params/"): v for k, v in found.items() if k.startswith("params/")}
    moments = {k: v for k, v in found.items() if k.startswith("opt_state/")}
    shapes = {
        jax.tree_util.keystr(k, simple=True, separator="/"): x.shape
        for k, x in jax.tree_util.tree_leaves_with_path(state)
    }
    seen = 0
    for path, layout in moments.items():
        for name, expected in params.items():
            if path.endswith(name) and shapes[path] == shapes["params/" + name]:
                assert layout == expected, path
                seen += expected != P()
    assert seen >= 3  # of every moment the kernels


def test_banks_of_terms_are_split_by_size():
    model = models.mlp(8, widths=(16,), features=("drop_0",))
    crd = terms.crd("drop_0", "drop_0", num_examples=64, num_negatives=4, width=16)
    found = specs(jax.eval_shape(state_of(model, optax.sgd(0.1), term=crd), KEY))
    banks = {k: v for k, v in found.items() if "/banks/" in k}
    assert set(banks.values()) == {P("fsdp")} and len(banks) == 2


class Annotated(nn.Module):
    box: object

    @nn.compact
    def __call__(self, x, train):
        x = jnp.reshape(x, (x.shape[0], -1))
        init = nn.initializers.lecun_normal()
        x = nn.relu(nn.Dense(16, kernel_init=self.box(init, ("embed", "mlp")), name="up")(x))
        return nn.Dense(toys.NUM_CLASSES, name="head")(x)


class AnnotatedNnx(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.up = nnx.Linear(4, 16, kernel_init=init, rngs=rngs)
        self.head = nnx.Linear(16, toys.NUM_CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.up(x)))


ANNOTATED = {
    "partitioning": lambda: models.from_linen(Annotated(nn.with_partitioning)),
    "logical": lambda: models.from_linen(Annotated(nn.with_logical_partitioning)),
    "nnx": lambda: models.from_nnx(lambda rngs: AnnotatedNnx(rngs)),
}


@pytest.fixture(params=ANNOTATED)
def annotated(request):
    return ANNOTATED[request.param]()


def test_annotations_are_honoured_in_parameters_and_moments(annotated):
    make = state_of(annotated, optax.adam(0.1), image=(8, 4))
    found = specs(jax.eval_shape(make, KEY))
    for prefix in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        assert found[f"{prefix}/student/up/kernel/value"] == P("fsdp", "tensor")
        assert found[f"{prefix}/student/up/bias"] == P()
    by_rule = specs(jax.eval_shape(make, KEY), ((r"up/kernel$", P(None, "data")),))
    assert by_rule["params/student/up/kernel/value"] == P(None, "data")
    other = specs(jax.eval_shape(make, KEY), axes={"embed": "data"})
    assert other["params/student/up/kernel/value"] == P("data")


def test_an_annotations_own_meaning_comes_first():
    box = functools.partial(nn.with_logical_partitioning, rules=(("mlp", "data"),))
    variables = jax.eval_shape(models.from_linen(Annotated(box)).init, KEY, jnp.zeros((8, 4)))
    assert specs(variables)["params/up/kernel/value"] == P("fsdp", "data")
    variables = jax.eval_shape(ANNOTATED["logical"]().init, KEY, jnp.zeros((8, 4)))
    with nn.logical_axis_rules((("mlp", "data"), ("mlp", "fsdp"), ("embed", None))):
        assert specs(variables)["params/up/kernel/value"] == P(None, "data")


def test_an_annotated_network_trains_where_it_lives(annotated):
    batch = toys.batch_of(8)
    layout = functools.partial(sharding.shardings, mesh=MESH)
    objective, optimizer = combine({"hard": terms.cross_entropy()}, {"hard": 1.0}), optax.adam(0.1)

    def make(key):
        return step.init_train_state(key, annotated, objective, optimizer, batch, None)

    state = sharding.initialize(make, KEY, layout_fn=layout)
    before = jax.tree.map(lambda x: x.sharding, state)
    kernel = np.asarray(jax.tree.leaves(state.params["student"]["up"]["kernel"])[0])
    train_step = step.make_train_step(annotated, objective, optimizer, layout_fn=layout)
    state, _ = train_step(state, sharding.shard_batch(batch, MESH), None)
    assert jax.tree.map(lambda x: x.sharding, state) == before
    moved = state.params["student"]["up"]["kernel"].value
    assert moved.sharding.spec == P("fsdp", "tensor")
    assert np.all(np.asarray(moved) != kernel)


def test_what_a_step_makes_anew_is_kept_where_it_lives():
    def start(params):
        return jnp.zeros((64, 64))

    def update(grads, state, params):
        return jax.tree.map(lambda g: -0.1 * g, grads), jnp.ones((64, 64))

    optimizer = optax.GradientTransformation(start, update)
    batch, model = toys.batch_of(8), toys.linear_model()
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    layout = functools.partial(sharding.shardings, mesh=MESH)
    state = sharding.initialize(
        lambda key: step.init_train_state(key, model, objective, optimizer, batch, None),
        KEY,
        layout_fn=layout,
    )
    train_step = step.make_train_step(model, objective, optimizer, layout_fn=layout)
    state, _ = train_step(state, sharding.shard_batch(batch, MESH), None)
    assert state.opt_state.sharding.spec == P("fsdp")


def test_made_in_place_is_what_is_made_elsewhere():
    make = state_of(models.resnet8(8), optax.adam(1e-3))
    layout = functools.partial(sharding.shardings, mesh=MESH, rules=sharding.RESNET_RULES)
    state = sharding.initialize(make, KEY, layout_fn=layout)
    jax.tree.map(np.testing.assert_array_equal, *map(bits, (state, make(KEY))))
    expected = layout(state)
    assert jax.tree.map(lambda x: x.sharding, state) == expected
    like = sharding.abstract(make, KEY, layout_fn=layout)
    assert jax.tree.map(lambda x: x.sharding, like) == expected
    kernel = state.params["student"]["stage_3"]["block_0"]["conv_2"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(3, 3, 32, 32)}


def bits(state):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def test_an_average_of_the_student_lives_where_the_student_does():
    batch, model, optimizer = (
        toys.batch_of(16),
        models.mlp(toys.NUM_CLASSES, widths=(16,)),
        optax.sgd(0.1),
    )
    objective, teacher = toys.kd_objective(), teachers.ema(model, decay=0.9)
    ends = []
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = sharding.make_mesh(**sizes)
        layout = functools.partial(sharding.shardings, mesh=mesh, rules=sharding.MLP_RULES)

        def make(key):
            return online.init_online_state(key, model, objective, optimizer, batch, teacher)

        state = sharding.initialize(make, KEY, layout_fn=layout)
        train_step = step.make_train_step(model, objective, optimizer, layout_fn=layout)
        run = online.with_online_teacher(train_step, teacher, layout_fn=layout)
        for _ in range(2):
            state, _ = run(state, sharding.shard_batch(batch, mesh))
        kernel = state.teacher_state.params["hidden_0"]["kernel"]
        assert kernel.sharding == layout(state).params["student"]["hidden_0"]["kernel"]
        ends.append(jax.device_get(state.teacher_state))
    assert kernel.sharding.spec == P("fsdp", "tensor")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


def test_the_code_in_the_docs_runs():
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    block = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    namespace = {}
    exec(compile(block, "scaling.md", "exec"), namespace)
    assert np.isfinite(namespace["metrics"]["loss"][0])
    assert namespace["variables"].params["hidden_0"]["kernel"].sharding.spec == P("data")


def test_a_teacher_is_placed_over_axes_that_split_the_batch_and_in_its_own_precision():
    mesh, images = sharding.make_mesh(data=8), jnp.ones((8, 8, 8, 3))
    model = models.mlp(16, widths=(64,))
    variables = jax.jit(model.init)(KEY, images)
    axes = {"fsdp": ("data", "fsdp")}
    placed = sharding.place(variables, mesh, sharding.MLP_RULES, axes=axes, dtype=jnp.bfloat16)
    kernel = placed.params["hidden_0"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == P("data")
    assert {s.data.shape for s in kernel.addressable_shards} == {(24, 64)}
    teacher = teachers.frozen(models.mlp(16, widths=(64,), dtype=jnp.bfloat16), placed)
    student, objective, optimizer = models.mlp(16, widths=(8,)), toys.kd_objective(), optax.sgd(0.1)
    layout = functools.partial(sharding.shardings, mesh=mesh, rules=sharding.MLP_RULES)
    batch = sharding.shard_batch({"image": images, "label": np.arange(8, dtype=np.int32)}, mesh)
    outputs = jax.jit(teacher.apply)(placed, batch)

    def make(key):
        return step.init_train_state(key, student, objective, optimizer, batch, outputs)

    state = sharding.initialize(make, KEY, layout_fn=layout)
    run = step.with_teacher(
        step.make_train_step(student, objective, optimizer, layout_fn=layout), teacher
    )
    state, metrics = run(state, batch)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
    assert np.isfinite(metrics["loss"][0])
    assert run.keywords["teacher_variables"].params["hidden_0"]["kernel"].sharding.spec == P("data")
