"""Measures against NumPy, and that parts merge to the whole."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import metrics


def example(size=200, num_classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(size, num_classes))).astype(np.float32)
    return logits, rng.integers(0, num_classes, size).astype(np.int32)


def ece_in_numpy(logits, labels, num_bins):
    probs = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
    probs /= probs.sum(1, keepdims=True)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    edges, total = np.linspace(0, 1, num_bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_is_the_binned_gap(num_bins):
    logits, labels = example()
    metric = metrics.calibration(
        jnp.asarray(logits), jnp.asarray(labels), jnp.ones(200, bool), num_bins=num_bins
    )
    np.testing.assert_allclose(
        metrics.value(metric), ece_in_numpy(logits, labels, num_bins), rtol=1e-4
    )


def test_nll_and_accuracy_against_numpy():
    logits, labels = example()
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    mask = jnp.ones(200, bool)
    nll = metrics.nll(jnp.asarray(logits), jnp.asarray(labels), mask)
    hits = metrics.accuracy(jnp.asarray(logits), jnp.asarray(labels), mask)
    np.testing.assert_allclose(
        metrics.value(nll), -log_probs[np.arange(200), labels].mean(), rtol=1e-5
    )
    assert metrics.value(hits) == (logits.argmax(1) == labels).mean()


def test_parts_merge_to_the_whole_calibration_included():
    logits, labels = example()

    def measure(part):
        x, y = jnp.asarray(logits[part]), jnp.asarray(labels[part])
        mask = jnp.ones(len(y), bool)
        return metrics.to_host(
            {"ece": metrics.calibration(x, y, mask), "nll": metrics.nll(x, y, mask)}
        )

    whole, merged = measure(slice(None)), {}
    for part in (slice(0, 7), slice(7, 90), slice(90, 200)):
        merged = metrics.merge(merged, measure(part))
    for name in whole:
        np.testing.assert_allclose(
            metrics.value(merged[name]), metrics.value(whole[name]), rtol=1e-5
        )


def test_calibration_of_tokens_is_that_of_a_flat_batch():
    logits, labels = example()
    rows = np.arange(20) % 3 > 0
    flat = np.repeat(rows, 10)
    expected = metrics.calibration(
        jnp.asarray(logits[flat]), labels[flat], jnp.ones(flat.sum()) > 0
    )
    got = metrics.calibration(
        jnp.asarray(logits).reshape(20, 10, -1), labels.reshape(20, 10), jnp.asarray(rows)
    )
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    assert got[1] == expected[1] == flat.sum()


def test_masked_sum_spans_leading_axes_and_ignores_nan_outside():
    values = jnp.array([[1.0, 2.0], [jnp.nan, 4.0], [5.0, 6.0]])
    total, count = metrics.masked_sum(values, jnp.array([True, False, True]))
    assert (float(total), float(count)) == (14.0, 4.0)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\)"):
        metrics.masked_sum(values, jnp.ones(2, bool))


def test_probability_labels_count_by_their_most_likely_class():
    logits = jnp.array([[2.0, 1.0], [0.0, 3.0]])
    probs = jnp.array([[0.9, 0.1], [0.6, 0.4]])
    assert metrics.value(metrics.accuracy(logits, probs, jnp.ones(2, bool))) == 0.5


def test_nothing_counted_is_nan():
    assert np.isnan(metrics.value((0.0, 0.0)))
