"""Networks by name: built, saved, read back."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from kdjax import checkpoint, models
from kdjax.models import NetworkSpec
from kdjax.types import Variables

SPEC = NetworkSpec("mlp", (6,), 5, (4, 4, 1), (0.5,), (0.25,), dropout=0.1)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)


def answer(network):
    return network.model.apply(*network.variables, IMAGES, train=False)[0].logits


def test_a_saved_network_comes_back(tmp_path):
    model = models.build(SPEC)
    network = models.Network(SPEC, model, model.init(jax.random.key(0), IMAGES))
    models.save_network(tmp_path / "student", SPEC, network.variables)
    back = models.load_network(str(tmp_path / "student"))
    assert back.spec == SPEC
    assert back.model.paths == model.paths
    chex.assert_trees_all_equal(back.variables, network.variables)
    np.testing.assert_array_equal(answer(back), answer(network))


def test_folders_of_earlier_versions_are_read(tmp_path):
    """Their records lack the fields that came later, and hold lists for tuples."""
    model = models.build(dataclasses.replace(SPEC, dropout=0.0))
    variables = model.init(jax.random.key(0), IMAGES)
    fields = ("name", "widths", "num_classes", "image_shape", "mean", "std")
    record = json.loads(json.dumps({name: getattr(SPEC, name) for name in fields}))
    checkpoint.save_variables(tmp_path, variables, record)
    network = models.load_network(tmp_path)
    assert network.spec == dataclasses.replace(SPEC, dropout=0.0)
    np.testing.assert_array_equal(
        answer(network), model.apply(*variables, IMAGES, train=False)[0].logits
    )


def test_folders_of_other_things_are_refused(tmp_path):
    checkpoint.save_variables(tmp_path / "a", Variables({}, {}), {"seconds": 3.0})
    with pytest.raises(ValueError, match="holds no network of a work directory"):
        models.load_network(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        models.load_network(tmp_path / "b")


def test_unknown_names_are_explained():
    with pytest.raises(
        ValueError, match="build: there is no network 'lenet', only mlp, convnet, resnet8"
    ):
        models.build(dataclasses.replace(SPEC, name="lenet"))


def test_the_names_of_networks_are_public_functions():
    from kdjax.models import _build

    for name, make_fn in _build.NETWORKS.items():
        assert getattr(models, name) is make_fn


NAMED = dataclasses.replace(SPEC, label_names=("ant", "bee", "cat", "dog", "emu"))


def test_a_network_is_called_with_one_image_or_many_and_says_classes(tmp_path):
    model = models.build(NAMED)
    models.save_network(tmp_path, NAMED, model.init(jax.random.key(0), IMAGES))
    network = models.load_network(tmp_path)
    logits = answer(network)
    np.testing.assert_allclose(network(IMAGES), logits, rtol=1e-5)
    np.testing.assert_allclose(network(IMAGES[1]), logits[1], rtol=1e-5)
    np.testing.assert_allclose(network(IMAGES[None, :2]), logits[None, :2], rtol=1e-5)
    np.testing.assert_allclose(network(IMAGES.astype(np.float32)), logits, rtol=1e-5)
    assert network.classes[int(network(IMAGES[1]).argmax())] in NAMED.label_names
    assert network._replace(spec=SPEC).classes == ("0", "1", "2", "3", "4")
    with pytest.raises(ValueError, match=r"images have shape \(3, 8, 8, 1\), expected \(4, 4, 1\)"):
        network(np.zeros((3, 8, 8, 1), np.uint8))


NOT_RAW = {
    "scaled": (IMAGES / 255).astype(np.float32),
    "normalized": ((IMAGES / 255 - 0.5) / 0.25).astype(np.float32),
    "sixteen bits": IMAGES.astype(np.uint16) * 200,
    "booleans": IMAGES > 100,
}


@pytest.mark.parametrize("images", NOT_RAW.values(), ids=NOT_RAW)
def test_images_that_are_not_raw_are_refused(images):
    model = models.build(NAMED)
    network = models.Network(NAMED, model, model.init(jax.random.key(0), IMAGES))
    for call in (network, lambda x: model.apply(*network.variables, x, train=False)):
        with pytest.raises(ValueError, match=r"images have .*, expected raw ones of 0 to 255"):
            call(images)
