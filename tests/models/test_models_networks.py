"""The networks of the field's tables: sizes, structure, precision, BatchNorm over devices."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models import _vgg

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3))
CIFAR100 = {8: 83892, 14: 181108, 20: 278324, 32: 472756, 44: 667188, 56: 861620, 110: 1736564}


@pytest.fixture(scope="module")
def resnet8():
    model = models.resnet8(5, features=("stage_1", "stage_2/block_0", "stage_3", "pool"))
    return model, jax.jit(model.init)(KEY, IMAGES)


@pytest.mark.parametrize(("depth", "count"), CIFAR100.items())
def test_resnet_sizes_are_the_fields(depth, count):
    model = getattr(models, f"resnet{depth}")(100)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))
    assert models.num_params(shapes.params) == count
    assert isinstance(models.num_params(shapes.params), int)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11689512), ("resnet34", 21797672), ("resnet50", 25557032)]
)
def test_imagenet_sizes_and_shapes_are_the_fields(name, count):
    paths = ("stem", "stage_1", "stage_2/block_0", "stage_3", "stage_4", "pool")
    model = getattr(models, name)(1000, features=paths)
    images = jnp.zeros((2, 224, 224, 3))
    shapes = jax.eval_shape(model.init, KEY, images)
    assert models.num_params(shapes.params) == count
    outputs, _ = jax.eval_shape(lambda v: model.apply(*v, images, train=False), shapes)
    wider = 4 if name == "resnet50" else 1  # bottlenecks end wider
    assert {path: x.shape[1:] for path, x in outputs.features.items()} == {
        "stem": (112, 112, 64),
        "stage_1": (56, 56, 64 * wider),
        "stage_2/block_0": (28, 28, 128 * wider),
        "stage_3": (14, 14, 256 * wider),
        "stage_4": (7, 7, 512 * wider),
        "pool": (512 * wider,),
    }
    assert outputs.logits.shape == (2, 1000)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (models.imagenet_mobilenet_v2, 3_504_872),
        (models.imagenet_vgg11, 132_863_336),
        (models.imagenet_vgg16, 138_357_544),
        (functools.partial(models.imagenet_vgg19, batch_norm=True), 143_678_248),
    ],
)
def test_networks_of_torchvision_have_its_sizes(make, count):
    model = make(1000)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 224, 224, 3)))
    assert models.num_params(shapes.params) == count
    assert make(1000, features=model.paths.all).paths.spatial


def test_maps_of_any_size_are_averaged_as_torchvision_does():
    for size, side in ((14, 7), (7, 7), (1, 7), (9, 7)):
        x = np.random.default_rng(0).normal(size=(1, size, size, 2)).astype(np.float32)
        want = np.zeros((1, side, side, 2))
        for i, j in itertools.product(range(side), repeat=2):
            rows, columns = (slice(k * size // side, -(-(k + 1) * size // side)) for k in (i, j))
            want[:, i, j] = x[:, rows, columns].mean((1, 2))
        np.testing.assert_allclose(_vgg._averaged(jnp.asarray(x), side), want, atol=1e-6)


@pytest.mark.parametrize("sizes", [(), (2, 0, 2)])
def test_imagenet_resnet_needs_blocks(sizes):
    with pytest.raises(ValueError, match=r"imagenet_resnet: stage_sizes is \("):
        models.imagenet_resnet(10, stage_sizes=sizes)
    with pytest.raises(ValueError, match="imagenet_resnet: num_classes is 0"):
        models.resnet18(0)


def test_imagenet_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    images = jnp.zeros((2, 64, 64, 3))
    model = models.resnet18(5, dtype=jnp.bfloat16, features=("stage_4",))
    half = jax.eval_shape(model.init, KEY, images)
    chex.assert_trees_all_equal(half, jax.eval_shape(models.resnet18(5).init, KEY, images))
    outputs, state = jax.eval_shape(lambda v: model.apply(*v, images, train=True), half)
    assert outputs.features["stage_4"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("depth", [2, 9, 18, 52, 0, -4])
def test_resnet_depth_is_6n_plus_2(depth):
    with pytest.raises(ValueError, match=rf"resnet: depth is {depth}, expected 6n \+ 2"):
        models.resnet(depth, 10)


def test_resnet_shapes(resnet8):
    model, variables = resnet8
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    chex.assert_shape(outputs.logits, (8, 5))
    shapes = {name: x.shape[1:] for name, x in outputs.features.items()}
    assert shapes == {
        "stage_1": (8, 8, 16),
        "stage_2/block_0": (4, 4, 32),
        "stage_3": (2, 2, 64),
        "pool": (64,),
    }
    head = jax.tree.map(np.asarray, variables.params["head"])
    by_hand = np.asarray(outputs.features["stage_3"]).mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs.logits, by_hand, rtol=1e-4, atol=1e-5)
    assert all(jnp.all(x >= 0) for x in outputs.features.values())


@pytest.mark.parametrize("shape", [(2, 9, 5, 1), (1, 7, 7, 4)])
def test_resnet_takes_any_size_and_channels(shape):
    model = models.resnet8(3)
    outputs = jax.eval_shape(
        lambda x: model.apply(*model.init(KEY, x), x, train=True)[0], jnp.zeros(shape)
    )
    assert outputs.logits.shape == (shape[0], 3)


def test_resnet_initialisation_is_he_normal_by_fan_out(resnet8):
    params = resnet8[1].params
    kernel = params["stage_3"]["block_0"]["conv_2"]["kernel"]
    np.testing.assert_allclose(jnp.std(kernel), (2 / (9 * 64)) ** 0.5, rtol=0.02)
    kernel = params["stage_3"]["block_0"]["conv_1"]["kernel"]
    np.testing.assert_allclose(jnp.std(kernel), (2 / (9 * 64)) ** 0.5, rtol=0.02)


def test_batch_statistics_are_the_global_batchs(resnet8):
    model, variables = resnet8
    images = IMAGES * jnp.arange(1.0, 9.0).reshape(8, 1, 1, 1)
    train = jax.jit(lambda v, x: model.apply(*v, x, train=True))
    outputs, state = train(variables, images)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    whole = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
    got_outputs, got_state = train(whole, split)
    assert len(got_outputs.logits.sharding.device_set) == 8
    chex.assert_trees_all_close(
        jax.device_get((got_outputs, got_state)),
        jax.device_get((outputs, state)),
        rtol=1e-4,
        atol=1e-4,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(state, variables.state)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(resnet8):
    full, variables = resnet8
    model = models.resnet8(5, dtype=jnp.bfloat16, features=("stage_3",))
    half = jax.eval_shape(model.init, KEY, IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(half, variables)
    outputs, state = jax.jit(lambda v, x: model.apply(*v, x, train=True))(variables, IMAGES)
    assert outputs.features["stage_3"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    expected, expected_state = full.apply(*variables, IMAGES, train=True)
    chex.assert_trees_all_close(outputs.logits, expected.logits, atol=0.2)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)


def test_mlp_by_hand():
    model = models.mlp(4, widths=(6, 5), features=("hidden_0", "drop_1"))
    variables = model.init(KEY, IMAGES)
    outputs, state = model.apply(*variables, IMAGES, train=False)
    x = np.asarray(IMAGES).reshape(8, -1)
    layers = jax.tree.map(np.asarray, variables.params)
    first = x @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"]
    second = np.maximum(first, 0) @ layers["hidden_1"]["kernel"] + layers["hidden_1"]["bias"]
    logits = np.maximum(second, 0) @ layers["head"]["kernel"] + layers["head"]["bias"]
    np.testing.assert_allclose(outputs.features["hidden_0"], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        outputs.features["drop_1"], np.maximum(second, 0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    assert models.num_params(variables.params) == 192 * 6 + 6 + 6 * 5 + 5 + 5 * 4 + 4
    assert state == {}


def test_mlp_of_the_paper_and_a_linear_one():
    def count(widths):
        shapes = jax.eval_shape(
            models.mlp(10, widths=widths).init, KEY, jnp.zeros((1, 28, 28, 1), jnp.uint8)
        )
        return models.num_params(shapes.params)

    assert count((1200, 1200)) == 2395210
    assert count((800, 800)) == 1276810
    assert count(()) == 7850


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"input_dropout": 0.5}])
def test_mlp_dropout(rates):
    model = models.mlp(4, widths=(16,), **rates, features=("drop_inputs", "drop_0"))
    variables = model.init(KEY, IMAGES)
    plain = models.mlp(4, widths=(16,)).apply(*variables, IMAGES, train=False)[0].logits
    evaluated, _ = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_array_equal(evaluated.logits, plain)
    trained, _ = model.apply(*variables, IMAGES, train=True, key=KEY)
    assert jnp.any(trained.logits != plain)
    zeros = jnp.mean(trained.features["drop_inputs"] == 0)
    np.testing.assert_allclose(zeros, rates.get("input_dropout", 0.0), atol=0.05)


def test_bfloat16_mlp_keeps_parameters_and_logits_in_float32():
    model = models.mlp(4, widths=(6,), dtype=jnp.bfloat16, features=("hidden_0",))
    variables = model.init(KEY, IMAGES)
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    assert outputs.features["hidden_0"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0, "widths": (3,)}, "num_classes has 0"),
        ({"num_classes": 3, "widths": (3, 0)}, "widths has 0"),
        ({"num_classes": 3, "widths": (3,), "dropout": 1.0}, "dropout is 1.0"),
        ({"num_classes": 3, "widths": (3,), "input_dropout": -0.1}, "input_dropout is -0.1"),
    ],
)
def test_mlp_refuses_odd_settings(settings, message):
    with pytest.raises(ValueError, match=f"mlp: {message}"):
        models.mlp(**settings)


def test_resnet_refuses_no_classes():
    with pytest.raises(ValueError, match="resnet: num_classes is 0"):
        models.resnet20(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalized_takes_raw_images(dtype):
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    raw = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(dtype)
    seen = (raw.astype(np.float64) / 255 - mean) / std
    model = models.mlp(3, widths=(4,))
    wrapped = models.normalized(model, mean, std)
    variables = wrapped.init(KEY, raw)
    chex.assert_trees_all_equal(variables, model.init(KEY, jnp.asarray(seen, jnp.float32)))
    got, _ = wrapped.apply(*variables, raw, train=False)
    expected, _ = model.apply(*variables, jnp.asarray(seen, jnp.float32), train=False)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_normalized_refuses_odd_settings():
    model = models.mlp(3, widths=(4,))
    with pytest.raises(ValueError, match=r"mean has shape \(3,\) and std \(1,\)"):
        models.normalized(model, [0.5] * 3, [0.5])
    with pytest.raises(ValueError, match="expected std > 0"):
        models.normalized(model, [0.5], [0.0])
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4, 3\), expected 1 channels"):
        models.normalized(model, [0.5], [0.5]).init(KEY, jnp.zeros((2, 4, 4, 3)))
