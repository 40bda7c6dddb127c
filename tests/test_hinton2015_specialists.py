"""What the section on specialists is made of: a network in two halves, and counts by coverage."""

import jax
import numpy as np
import pytest

from experiments import networks
from experiments.hinton2015 import experts, halves, specialists, superclasses
from experiments.networks import Network, NetworkSpec
from kdjax.specialists import collapse

SPECS = [
    NetworkSpec("mlp", (12, 8), 6, (8, 8, 1), (0.3,), (0.2,)),
    NetworkSpec("resnet8", (), 6, (8, 8, 3), (0.5,) * 3, (0.2,) * 3),
    NetworkSpec("resnet14", (), 6, (8, 8, 3), (0.5,) * 3, (0.2,) * 3),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_halves_are_the_whole(spec):
    """Features of the first half, fed to the second, give the network's logits."""
    model = networks.build(spec)
    images = np.random.default_rng(0).integers(0, 256, (5, *spec.image_shape)).astype(np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    parts = halves.cut(Network(spec, model, variables))
    features, logits = halves.read(parts, images)
    whole = model.apply(*variables, images, train=False)[0].logits
    np.testing.assert_allclose(logits, whole, atol=1e-5)
    above = parts.above_fn(6).apply(*parts.above, features.astype(np.float32), train=False)[0]
    np.testing.assert_allclose(above.logits, whole, rtol=5e-3, atol=5e-3)

    classes = np.array([4, 1])
    start = halves.with_head(parts.above, classes, shift=2.0)
    first = parts.above_fn(3).apply(*start, features.astype(np.float32), train=False)[0].logits
    expected = np.asarray(collapse(whole, classes))
    np.testing.assert_allclose(first[:, :2], expected[:, :2], rtol=5e-3, atol=5e-3)
    assert np.all(first[:, 2] + 2 <= expected[:, 2] + 5e-3)
    assert np.all(first[:, 2] + 2 > expected[:, 2] - 3)


def test_counts_by_coverage():
    sets = np.array([[0, 1], [1, 2]])
    labels = np.array([0, 1, 1, 2, 3, 3])
    before = np.eye(4)[[0, 1, 0, 1, 3, 0]]
    after = np.eye(4)[[1, 1, 1, 2, 3, 3]]
    rows = specialists.coverage_rows(sets, labels, before, after)
    assert rows == [(0, 2, 1, 1, 0), (1, 2, 1, 1, 1), (2, 2, 1, 1, 0)]
    lines = specialists.coverage_table(rows).rows
    assert lines[1] == ("1", "2", "+0", "+0.0 %") and lines[2][3] == "+100.0 %"


def test_conditional_accuracy_allows_only_the_sets_classes():
    logits = np.array([[1.0, 2, 9, 0], [5, 1, 0, 0], [0, 3, 1, 9]])
    labels = np.array([1, 1, 2])
    # Set (0, 1): right, wrong. Set (1, 2): wrong, right, wrong.
    sets = np.array([[0, 1], [1, 2]])
    assert specialists.conditional_accuracy(logits, labels, sets) == 2 / 5


def test_superclasses():
    assert len(superclasses.OF) == 100 and len(superclasses.MEMBERS) == 20
    sets = [["bed", "couch", "wolf"], ["oak_tree", "palm_tree", "pine_tree"]]
    np.testing.assert_allclose(superclasses.pairs_shared(sets), (1 / 3 + 1) / 2)
    assert superclasses.most_frequent(sets[0]) == "household furniture (2)"


def test_batches_take_either_view_of_an_example():
    recipe = experts.Recipe(set_size=2, batch_size=8)
    labels = np.array([0, 1, 2, 2, 2, 0, 1, 2, 2])
    views = [np.arange(9.0), -np.arange(9.0)]
    batches = [experts._batch(recipe, views, labels, 5, at) for at in range(20)]
    seen = np.concatenate([batch["image"] for batch in batches])
    assert {-1.0, 1.0, -8.0, 8.0} <= set(seen.tolist())
    for batch in batches:
        np.testing.assert_array_equal(labels[np.abs(batch["image"]).astype(int)], batch["label"])
        assert np.all(batch["label"][:4] < 2) and np.all(batch["label"][4:] == 2)
    again = experts._batch(recipe, views, labels, 5, 3)
    np.testing.assert_array_equal(again["image"], batches[3]["image"])
