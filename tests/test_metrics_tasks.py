"""Measures of other tasks against scikit-learn, in parts and as a whole, under masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import toys

from kdjax import metrics
from kdjax.models import mlp
from kdjax.step import make_eval_step


def example(seed=0):
    rng = np.random.default_rng(seed)
    logits = (4 * rng.normal(size=(90, 3))).astype(np.float32)
    return (
        rng,
        logits,
        rng.random((90, 3)) < 1 / (1 + np.exp(-logits + 2 * rng.normal(size=(90, 3)))),
    )


def merged(measure, x, y, mask=None, **settings):
    """Measure three parts, in one compiled function each, and add them up."""
    mask = np.ones(len(x), bool) if mask is None else mask
    found, run = {}, jax.jit(lambda *a: {"it": measure(*a, **settings)})
    for part in (slice(0, 30), slice(30, 60), slice(60, 90)):
        found = metrics.merge(found, metrics.to_host(run(x[part], y[part], mask[part])))
    return metrics.value(found["it"])


def test_average_precision_is_that_of_the_whole():
    _, logits, true = example()
    expected = sklearn.metrics.average_precision_score(true, logits)
    for y in (true, true.astype(np.int32)):
        got = merged(metrics.mean_average_precision, logits, y)
        np.testing.assert_allclose(got, expected, rtol=1e-3)
    # Of scores that are far apart, ties too, it is exact.
    ranks = np.floor(logits)
    expected = sklearn.metrics.average_precision_score(true, ranks)
    np.testing.assert_allclose(
        merged(metrics.mean_average_precision, ranks, true), expected, rtol=1e-6
    )
    keep = np.arange(90) % 4 > 0
    spoiled = np.where(keep[:, None], ranks, np.nan)
    expected = sklearn.metrics.average_precision_score(true[keep], ranks[keep])
    np.testing.assert_allclose(
        merged(metrics.mean_average_precision, spoiled, true, keep), expected, rtol=1e-6
    )
    one = merged(metrics.mean_average_precision, ranks[:, :1], true[:, 0])
    np.testing.assert_allclose(
        one, sklearn.metrics.average_precision_score(true[:, 0], ranks[:, 0]), rtol=1e-6
    )


def test_labels_by_themselves_are_right_or_wrong():
    _, logits, true = example()
    right = (logits > 0) == true
    assert merged(metrics.binary_accuracy, logits, true) == pytest.approx(right.mean())
    y = np.where(np.arange(3) == 1, -1, true)
    got = merged(metrics.binary_accuracy, logits, y, ignore_label=-1)
    assert got == pytest.approx(right[:, [0, 2]].mean())
    assert np.isnan(merged(metrics.binary_accuracy, logits, y))
    assert np.isnan(merged(metrics.mean_average_precision, logits, y))


def test_regression_against_scikit_learn():
    rng, x, _ = example()
    y = (x + rng.normal(size=x.shape) + 1000).astype(np.float32)
    x = x + np.float32(1000)
    expected = sklearn.metrics.r2_score(y, x)
    np.testing.assert_allclose(merged(metrics.r_squared, x, y, center=1000.0), expected, rtol=1e-4)
    root = np.sqrt(np.mean((np.float64(x) - y) ** 2))
    np.testing.assert_allclose(merged(metrics.root_mean_squared_error, x, y), root, rtol=1e-4)
    keep = rng.random(90) < 0.5
    got = merged(metrics.r_squared, x[:, :1], y[:, 0], keep, center=1000.0)
    np.testing.assert_allclose(got, sklearn.metrics.r2_score(y[keep, 0], x[keep, 0]), rtol=1e-4)


def test_confusions_and_neighbors():
    rng, _, _ = example()
    logits, labels = rng.normal(size=(90, 2, 2, 4)), rng.integers(0, 3, (90, 2, 2))
    ignored = rng.random(labels.shape) < 0.2
    answers = logits.argmax(-1)
    expected = sklearn.metrics.jaccard_score(
        labels[~ignored], answers[~ignored], average="macro", labels=[0, 1, 2, 3]
    )
    y = np.where(ignored, 255, labels)
    got = merged(metrics.mean_iou, logits, y, ignore_label=255)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(merged(metrics.mean_iou, logits, y, ~ignored), expected, rtol=1e-6)
    assert np.isnan(merged(metrics.mean_iou, logits, y))

    scores, right = rng.normal(size=(90, 20)), rng.integers(0, 20, 90)
    expected = sklearn.metrics.top_k_accuracy_score(right, scores, k=5, labels=range(20))
    assert merged(metrics.recall_at_k, scores, right, k=5) == pytest.approx(expected)
    same = right[:, None] == np.arange(20)
    assert merged(metrics.recall_at_k, scores, same, k=5) == pytest.approx(expected)
    with pytest.raises(ValueError, match="recall_at_k: relevant is"):
        metrics.recall_at_k(scores, right[:3], np.ones(90, bool))


def test_labels_are_compared_in_a_type_that_holds_them():
    logits = 9 * np.eye(200)[[156, 3]]
    labels = np.array([156, 3], np.uint8)
    assert metrics.mean_iou(logits, labels, np.ones(2, bool), ignore_label=-100).count == 2
    signed = np.array([-1, 3], np.int8)
    with pytest.raises(ValueError, match="labels has -1"):
        metrics.mean_iou(logits, signed, np.ones(2, bool), ignore_label=255)


def test_candidates_that_are_left_out_are_never_found():
    one, k2 = np.ones(1, bool), functools.partial(metrics.recall_at_k, k=2)
    assert metrics.value(k2(np.array([[-np.inf, 1.0]]), np.array([0]), one)) == 0
    assert metrics.value(k2(np.array([[-np.inf, 1.0]]), np.array([1]), one)) == 1
    bytes_ = np.array([[0, 1, 2]], np.uint8)
    assert metrics.value(metrics.recall_at_k(bytes_, np.array([2]), one, k=1)) == 1
    with pytest.raises(ValueError, match="recall_at_k: labels has 7, expected 0 to 1"):
        k2(np.array([[0.0, 1.0]]), np.array([7]), one)
    traced = jax.jit(k2)(np.array([[0.0, 1.0]]), np.array([7]), one)
    assert np.isnan(metrics.value(traced))
    assert metrics.value(k2(np.array([[0.0, 1.0]] * 2), np.array([7, 0]), np.arange(2) > 0)) == 1


def test_evaluation_tells_kinds_of_labels_apart():
    batch = {**toys.batch_of(6), "mask": np.arange(6) < 4, "teacher_logits": np.ones((6, 5))}
    model = mlp(5, widths=(3,))
    variables = model.init(jax.random.key(0), batch["image"])
    true = np.arange(30).reshape(6, 5) % 2
    own = {"r2": metrics.of(metrics.r_squared)}
    kinds = {"classes": batch["label"], "labels": true, "numbers": np.full((6, 5), 2.5)}
    found = {
        kind: set(make_eval_step(model)(variables, {**batch, "label": jnp.asarray(label)}))
        for kind, label in kinds.items()
    }
    assert found == {
        "classes": {"accuracy", "nll", "ece", "agreement"},
        "labels": {"binary_accuracy", "mean_average_precision"},
        "numbers": {"mse"},
    }
    got = make_eval_step(model, metrics=own)(variables, {**batch, "label": kinds["numbers"]})
    assert set(got) == {"mse", "r2"}
    assert float(got["r2"].count) == 4
