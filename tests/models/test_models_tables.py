"""The networks of the CIFAR-100 tables: each against NumPy, by way of a PyTorch checkpoint."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_networks

from kdjax import models
from kdjax.models import from_pytorch

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
CLASSES = 100
SIZES = {
    "resnet8x4": 1233540,
    "resnet32x4": 7433860,
    "cifar_resnet50": 23705252,
    "wrn_16_1": 180916,
    "wrn_16_2": 703284,
    "wrn_40_1": 569780,
    "wrn_40_2": 2255156,
    "vgg8": 3965028,
    "vgg13": 9462180,
    "mobilenet_v2": 812836,
    "shufflenet_v1": 949258,
    "shufflenet_v2": 1355528,
}
REFERENCES = {
    "resnet8x4": (torch_networks.residual, {"widths": (32, 64, 128, 256), "num_blocks": 1}),
    "wrn_16_2": (torch_networks.wide, {"num_blocks": 2, "factor": 2}),
    "vgg8": (torch_networks.vgg, {"num_convs": 1}),
    "mobilenet_v2": (torch_networks.mobile, {}),
    "shufflenet_v1": (torch_networks.shuffle_v1, {}),
    "shufflenet_v2": (torch_networks.shuffle_v2, {}),
}
DEEP = {
    "resnet32x4": (torch_networks.residual, {"widths": (32, 64, 128, 256), "num_blocks": 5}),
    "cifar_resnet50": (torch_networks.bottlenecks, {"sizes": (3, 4, 6, 3)}),
    "wrn_16_1": (torch_networks.wide, {"num_blocks": 2, "factor": 1}),
    "wrn_40_1": (torch_networks.wide, {"num_blocks": 6, "factor": 1}),
    "wrn_40_2": (torch_networks.wide, {"num_blocks": 6, "factor": 2}),
    "vgg13": (torch_networks.vgg, {"num_convs": 2}),
}


@functools.cache
def reference(name):
    fn, settings = (REFERENCES | DEEP)[name]
    layers = torch_networks.Layers()
    images = np.moveaxis(IMAGES, -1, 1).astype(np.float64)
    return layers, *fn(layers, images, CLASSES, **settings)


@functools.cache
def network(name):
    paths = getattr(models, name)(CLASSES).paths
    model = getattr(models, name)(CLASSES, features=paths.all)
    return model, jax.eval_shape(model.init, KEY, IMAGES)


def close(got, expected):
    got = np.asarray(got)
    got = np.moveaxis(got, -1, 1) if got.ndim == 4 else got
    assert got.shape == expected.shape
    return np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def deep(names):
    """Mark those that take long to compile."""
    return [pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", [*REFERENCES, *deep(DEEP)])
def test_network_equals_a_numpy_reference_of_pytorchs(name):
    layers, logits, stages, bare = reference(name)
    model, like = network(name)
    variables = from_pytorch(layers.arrays, like)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, like)
    outputs, _ = jax.jit(lambda v, x: model.apply(*v, x, train=False))(variables, IMAGES)
    assert close(outputs.logits, logits)
    maps, found = model.paths, outputs.features
    assert len(maps.stages) == len(stages)
    assert all(close(found[path], x) for path, x in zip(maps.stages, stages, strict=True))
    assert all(close(found[path], x) for path, x in zip(maps.preactivations, bare, strict=True))
    np.testing.assert_allclose(
        found["pool"], found[maps.last_map].mean((1, 2)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", [*REFERENCES, *deep(DEEP)])
def test_network_has_the_size_that_is_known_of_it(name):
    count = models.num_params(network(name)[1].params)
    assert count == reference(name)[0].count() == SIZES[name]


@pytest.mark.parametrize("name", REFERENCES)
def test_norms_are_those_before_the_bare_maps(name):
    model, variables = network(name)
    params, maps = variables.params, model.paths
    assert len(maps.norms) in (0, len(maps.preactivations))
    for path in maps.norms:
        assert set(functools.reduce(dict.__getitem__, path.split("/"), params)) == {"scale", "bias"}


def test_bottlenecks_equal_a_numpy_reference_of_pytorchs():
    layers = torch_networks.Layers()
    images = np.moveaxis(IMAGES, -1, 1).astype(np.float64)
    logits, stages, _ = torch_networks.bottlenecks(layers, images, 5, sizes=(1, 2))
    model = models.bottleneck_resnet(5, stage_sizes=(1, 2), features=("stage_2", "stage_1"))
    like = jax.eval_shape(model.init, KEY, IMAGES)
    assert models.num_params(like.params) == layers.count()
    variables = from_pytorch(layers.arrays, like)
    outputs, _ = jax.jit(lambda v, x: model.apply(*v, x, train=False))(variables, IMAGES)
    assert close(outputs.logits, logits)
    assert all(close(outputs.features[f"stage_{i}"], x) for i, x in enumerate(stages, start=1))


def test_size_of_wide_networks_by_the_paper():
    def size(depth, k):
        """Count by the paper's table 1, with what this literature leaves out of it: the norms."""
        blocks, total, before = (depth - 4) // 6, 9 * 3 * 16, 16
        for width in (16 * k, 32 * k, 64 * k):
            for _ in range(blocks):
                total += 9 * before * width + 9 * width**2 + 2 * before + 2 * width
                total += before * width if before != width else 0
                before = width
        return total + 2 * before + 100 * before + 100

    for depth, k in ((16, 1), (16, 2), (40, 1), (40, 2)):
        assert size(depth, k) == SIZES[f"wrn_{depth}_{k}"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet8x4", (32, 16, 8)),
        ("wrn_16_2", (32, 16, 8)),
        ("vgg8", (16, 8, 4, 4)),
        ("mobilenet_v2", (16, 8, 4, 2)),
        ("shufflenet_v1", (16, 8, 4)),
    ],
)
def test_maps_of_cifar_images(name, sizes):
    model, variables = network(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    outputs, state = jax.eval_shape(lambda v, x: model.apply(*v, x, train=True), variables, images)
    found = [outputs.features[path].shape for path in model.paths.stages]
    assert [shape[1] for shape in found] == [shape[2] for shape in found] == list(sizes)
    assert outputs.logits.shape == (2, CLASSES)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, variables.state)


def test_vgg_pools_once_more_where_images_are_large():
    model, variables = network("vgg8")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    outputs, _ = jax.eval_shape(lambda v, x: model.apply(*v, x, train=False), variables, images)
    assert [outputs.features[f"stage_{i}"].shape[1] for i in (1, 2, 3, 4)] == [32, 16, 8, 4]


def test_training_takes_the_statistics_of_the_batch_and_moves_them():
    model = models.wide_resnet(10, 5, widen_factor=1)
    images = IMAGES[:, :8, :8] + 1
    variables = jax.jit(model.init)(KEY, images)
    apply = jax.jit(model.apply, static_argnames="train")
    evaluated, same = apply(*variables, images, train=False)
    trained, moved = apply(*variables, images, train=True)
    chex.assert_trees_all_equal(same, variables.state)
    assert not np.allclose(evaluated.logits, trained.logits, atol=1e-2)
    before, after = (x["batch_stats"]["final"]["norm"]["mean"] for x in (same, moved))
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("name", ["vgg8", "shufflenet_v2"])
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
    _, full = network(name)
    model = getattr(models, name)(CLASSES, dtype=jnp.bfloat16, features=("stage_3",))
    outputs, state = jax.eval_shape(lambda v: model.apply(*v, IMAGES, train=True), full)
    assert outputs.features["stage_3"].dtype == jnp.bfloat16
    assert outputs.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.wide_resnet(12, 5, widen_factor=1), r"depth is 12, expected 6n \+ 4"),
        (lambda: models.wide_resnet(16, 5, widen_factor=0), "widen_factor is 0"),
        (lambda: models.vgg(5, stage_sizes=(1, 1, 1, 1)), r"vgg: stage_sizes is \(1, 1, 1, 1\)"),
        (lambda: models.bottleneck_resnet(5, stage_sizes=()), r"stage_sizes is \(\)"),
        (lambda: models.mobilenet_v2(5, width_multiplier=0.01), "width_multiplier is 0.01"),
        (lambda: models.resnet(8, 5, widths=(16, 16, 32)), r"widths is \(16, 16, 32\)"),
        *(
            (functools.partial(getattr(models, name), 0), "num_classes is 0")
            for name in ("wrn_16_1", "vgg8", "cifar_resnet50", "mobilenet_v2", "shufflenet_v1")
        ),
        (functools.partial(models.shufflenet_v2, -1), "num_classes is -1"),
    ],
)
def test_odd_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checkpoint_of_another_network_is_refused():
    layers = reference("wrn_16_2")[0]
    with pytest.raises(ValueError, match=r"block0\.0\.weight .* is missing"):
        from_pytorch(layers.arrays, network("vgg8")[1])
