"""Where networks have their features: the paths that each states of itself, captured and kept."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax import models
from kdjax.types import FeaturePaths

CLASSES = 5


def spec_of(name, size=32, **others):
    widths = (2, 3, 4, 5) if name == "convnet" else ()
    others = {"widths": widths, "patch_size": 4 if name.startswith("vit") else 0} | others
    return models.NetworkSpec(
        name=name,
        num_classes=CLASSES,
        image_shape=(size, size, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        **others,
    )


def answers_of(model, size=32):
    """Return a network's parameters and what it says, as shapes."""

    def both(images):
        variables = model.init(jax.random.key(0), images)
        return variables.params, model.apply(*variables, images, train=False)[0]

    return jax.eval_shape(both, jax.ShapeDtypeStruct((2, size, size, 3), np.uint8))


def maps(stages, preactivations, norms, last_map):
    return FeaturePaths(stages, preactivations, "pool", "head", True, last_map, norms)


def each(*blocks):
    return lambda inner: tuple(f"stage_{i}/block_{n}/{inner}" for i, n in enumerate(blocks, 1))


THREE, FOUR = (tuple(f"stage_{i}" for i in range(1, n + 1)) for n in (3, 4))
PRE = ("stage_2/block_0/norm_0", "stage_3/block_0/norm_0", "final/norm")
PATHS = {
    "resnet20": maps(THREE, each(2, 2, 2)("sum"), each(2, 2, 2)("norm_2"), "stage_3"),
    "resnet8x4": maps(THREE, each(0, 0, 0)("sum"), each(0, 0, 0)("norm_2"), "stage_3"),
    "cifar_resnet50": maps(FOUR, each(2, 3, 5, 2)("sum"), each(2, 3, 5, 2)("norm_3"), "stage_4"),
    "resnet34": maps(FOUR, each(2, 3, 5, 2)("sum"), each(2, 3, 5, 2)("norm_2"), "stage_4"),
    "wrn_16_2": maps(THREE, PRE, PRE, "final"),
    "wrn_40_1": maps(THREE, PRE, PRE, "final"),
    "vgg8": maps(FOUR, each(0, 0, 0, 0)("norm"), each(0, 0, 0, 0)("norm"), "stage_4"),
    "convnet": maps(FOUR, each(0, 0, 0, 0)("norm"), each(0, 0, 0, 0)("norm"), "stage_4"),
    "vgg13": maps(FOUR, each(1, 1, 1, 1)("norm"), each(1, 1, 1, 1)("norm"), "stage_4"),
    "mobilenet_v2": maps(FOUR, FOUR, each(2, 2, 6, 3)("norm_2"), "final"),
    "shufflenet_v1": maps(THREE, each(3, 7, 3)("sum"), each(3, 7, 3)("norm_2"), "stage_3"),
    "shufflenet_v2": maps(THREE, each(3, 7, 3)("join"), (), "final"),
    "vit_mu": FeaturePaths(("block_0",), ("block_0/mlp/up",), "embedding", "head"),
    "vit_ti": FeaturePaths(
        tuple(f"block_{i}" for i in (2, 5, 8, 11)),
        tuple(f"block_{i}/mlp/up" for i in (2, 5, 8, 11)),
        "embedding",
        "head",
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_network_states_its_paths(name):
    assert models.build(spec_of(name)).paths == PATHS[name]


def test_a_perceptron_states_its_hidden_layers():
    paths = models.mlp(CLASSES, widths=(8, 9)).paths
    hidden = ("drop_0", "drop_1"), ("hidden_0", "hidden_1")
    assert paths == FeaturePaths(*hidden, embedding="drop_1", head="head")
    assert models.mlp(CLASSES, widths=()).paths == FeaturePaths(head="head")


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg8", "convnet", "wrn_16_1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"],
)
def test_all_that_a_network_states_is_there(name):
    paths = PATHS.get(name) or models.build(spec_of(name)).paths
    params, outputs = answers_of(models.build(spec_of(name), features=paths.all))
    assert set(outputs.features) == {*paths.all, "class_maps"}
    assert outputs.features[paths.embedding].ndim == 2
    assert outputs.features["class_maps"].shape[-1] == CLASSES
    assert params[paths.head]["kernel"].shape[-1] == CLASSES
    assert outputs.features[paths.last_map].shape[-1] == params[paths.head]["kernel"].shape[0]


def test_a_convnet_halves_its_maps_and_has_the_channels_that_are_asked_for():
    params, outputs = answers_of(models.build(spec_of("convnet"), features=FOUR), 28)
    maps = [(2, 14, 14, 2), (2, 7, 7, 3), (2, 4, 4, 4), (2, 2, 2, 5)]
    assert [outputs.features[stage].shape for stage in FOUR] == maps
    kernels = sum(9 * a * b for a, b in ((3, 2), (2, 3), (3, 4), (4, 5)))
    assert models.num_params(params) == kernels + 3 * (2 + 3 + 4 + 5) + 5 * CLASSES + CLASSES
    for widths in ((), (4, 0)):
        with pytest.raises(ValueError, match="convnet: widths is"):
            models.convnet(CLASSES, widths=widths)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("vit_mu", ("block_0",)), ("vit_s", ("block_2", "block_5", "block_8", "block_11"))],
)
def test_four_blocks_of_a_transformer_stand_for_stages(name, stages):
    paths = models.build(spec_of(name, 8)).paths
    assert (paths.stages, paths.spatial) == (stages, False)
    _, outputs = answers_of(models.build(spec_of(name, 8), features=paths.all), 8)
    assert set(outputs.features) == set(paths.all)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet20", (2, 2, 2)), ("resnet18", (1,) * 4), ("resnet34", (2, 3, 5, 2))]
)
def test_a_stage_ends_with_its_last_block(name, last):
    paths = models.build(spec_of(name)).paths
    assert paths.preactivations == each(*last)("sum")
    model = models.build(spec_of(name, reused_width=6), features=paths.all)
    assert set(paths.all) <= set(answers_of(model)[1].features)


def test_wrappers_keep_the_paths():
    model = models.resnet8(CLASSES)
    mapped = models.with_class_maps(models.resnet8(CLASSES, features=("stage_3",)))
    for wrapped in (models.normalized(model, [0.5], [0.5]), models.rematerialized(model), mapped):
        assert wrapped.paths == model.paths != FeaturePaths()


def test_a_student_under_its_teachers_classifier_has_none_of_its_own():
    params, _ = answers_of(models.build(spec_of("resnet8", reused_width=6)))
    own, reusing = (models.build(spec_of("resnet8", reused_width=w)).paths for w in (0, 6))
    assert reusing.head == "" and "head" not in params
    assert (reusing.stages, reusing.embedding) == (own.stages, own.embedding)
    for path in reusing.norms:
        norm = params
        for name in path.split("/"):
            norm = norm[name]
        assert set(norm) == {"scale", "bias"}


def linear(rngs):
    return nnx.Linear(3, CLASSES, rngs=rngs)


def test_a_network_of_the_users_own_states_what_it_likes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
            x = models.Pool(name="last")(x)
            return nn.Dense(CLASSES, name="classifier")(x)

    paths = FeaturePaths(("conv",), embedding="last", head="classifier", last_map="conv")
    model = models.from_linen(Net(), features=("conv",), paths=paths)
    assert model.paths == paths
    assert models.from_linen(Net()).paths == FeaturePaths()
    assert models.from_nnx(linear, paths=paths).paths == paths
    assert models.from_nnx(linear).paths == FeaturePaths()
    _, outputs = answers_of(models.normalized(models.with_class_maps(model), [0.5] * 3, [0.5] * 3))
    assert outputs.features["class_maps"].shape == (2, 32, 32, CLASSES)
