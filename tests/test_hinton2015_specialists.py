"""What the section on specialists is made of: their start, their batches, counts by coverage."""

import dataclasses

import jax
import numpy as np

from experiments.hinton2015 import experts, group, specialists, superclasses
from kdjax import models
from kdjax.models import NetworkSpec
from kdjax.specialists import collapse


def test_a_specialist_starts_as_its_generalist():
    spec = NetworkSpec("mlp", (12, 8), 6, (8, 8, 1), (0.3,), (0.2,))
    model, classes = models.build(spec), np.array([4, 1])
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    start = experts.start_of(variables, classes, shift=2.0)
    small = dataclasses.replace(spec, num_classes=3)
    panel = experts.Panel(small, classes[None], [start], [2.0])
    expected = np.asarray(collapse(group.predict(model, variables, images), classes))
    first = panel.answers(images)[0]
    np.testing.assert_allclose(first[:, :2], expected[:, :2], rtol=1e-5, atol=1e-5)
    # The mean of the others' logits plus the logarithm of their number is a lower bound.
    assert np.all(first[:, 2] <= expected[:, 2] + 1e-5)
    assert np.all(first[:, 2] > expected[:, 2] - 3)


def test_counts_by_coverage():
    sets = np.array([[0, 1], [1, 2]])
    labels = np.array([0, 1, 1, 2, 3, 3])
    before = np.eye(4)[[0, 1, 0, 1, 3, 0]]
    after = np.eye(4)[[1, 1, 1, 2, 3, 3]]
    one = specialists.Outcome(sets, before, after)
    rows = specialists.coverage_rows(labels, [one])
    assert rows == [(0, 2, 1, 1, 0), (1, 2, 1, 1, 1), (2, 2, 1, 1, 0)]
    lines = specialists.coverage_table(rows).rows
    assert lines[1] == ("1", "2", "+0", "+0.0 %") and lines[2][3] == "+100.0 %"
    swapped = one._replace(class_sets=np.array([[3, 0], [3, 1]]))
    rows = specialists.coverage_rows(labels, [one, swapped])
    assert [row.num_images for row in rows] == [3, 5, 4] and sum(row.gained for row in rows) == 6
    assert specialists.flips_note(labels, [one, one]).startswith(
        "Of 12 answers, all seeds together, 6 became right and 2 wrong"
    )


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


def test_half_of_a_batch_is_special():
    recipe = experts.Recipe(set_size=2, batch_size=8)
    labels, images = np.array([0, 1, 2, 2, 2, 0, 1, 2, 2]), np.arange(9)
    batches = [experts._batch(recipe, images, labels, 5, at) for at in range(20)]
    for batch in batches:
        np.testing.assert_array_equal(labels[batch["image"]], batch["label"])
        assert np.all(batch["label"][:4] < 2) and np.all(batch["label"][4:] == 2)
    again = experts._batch(recipe, images, labels, 5, 3)
    np.testing.assert_array_equal(again["image"], batches[3]["image"])
    assert {tuple(batch["image"]) for batch in batches} != {tuple(again["image"])}
