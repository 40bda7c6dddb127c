"""What the section on specialists is made of: their start, their batches, counts by coverage."""

import dataclasses

import jax
import numpy as np

from experiments.hinton2015 import networks, panel, specialists, superclasses
from experiments.hinton2015.study import PanelRecipe
from kdjax import models
from kdjax.models import NetworkSpec
from kdjax.runs.experiment import open_run
from kdjax.specialists import collapse


def test_a_specialist_starts_as_its_generalist(tmp_path):
    spec = NetworkSpec("mlp", (12, 8), 6, (8, 8, 1), (0.3,), (0.2,))
    model, classes = models.build(spec), np.array([4, 1])
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    start = panel.start_of(variables, classes, shift=2.0)
    small = dataclasses.replace(spec, num_classes=3)
    run = open_run(tmp_path, lambda: False)
    trained = panel.Panel(small, classes[None], [start], [2.0])
    expected = np.asarray(collapse(networks.predict(run, model, variables, images), classes))
    first = trained.answers(run, images)[0]
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
    recipe = PanelRecipe(set_size=2, batch_size=8)
    labels = np.array([0, 1, 2, 2, 2, 0, 1, 2, 2])

    def indices(start, count):
        rows = panel.rows(recipe, labels, 5, start)
        return [next(rows)["index"] for _ in range(count)]

    batches = indices(0, 20)
    for index in batches:
        assert np.all(labels[index[:4]] < 2) and np.all(labels[index[4:]] == 2)
    again = indices(3, 1)[0]
    np.testing.assert_array_equal(again, batches[3])
    assert {tuple(index) for index in batches} != {tuple(again)}
