"""Measures against NumPy, and that parts merge to the whole."""

import itertools

import jax
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
    measure = jax.jit(metrics.calibration, static_argnames="num_bins")
    metric = measure(logits, labels, np.ones(200, bool), num_bins=num_bins)
    np.testing.assert_allclose(
        metrics.value(metric), ece_in_numpy(logits, labels, num_bins), rtol=1e-4
    )


def test_nll_and_accuracy_against_numpy():
    logits, labels = example()
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    mask = np.ones(200, bool)
    nll, hits = (jax.jit(of)(logits, labels, mask) for of in (metrics.nll, metrics.accuracy))
    np.testing.assert_allclose(
        metrics.value(nll), -log_probs[np.arange(200), labels].mean(), rtol=1e-5
    )
    assert metrics.value(hits) == (logits.argmax(1) == labels).mean()


def test_parts_merge_to_the_whole_calibration_included():
    logits, labels = example()

    @jax.jit
    def measured(x, y):
        mask = jnp.ones(len(y), bool)
        return {"ece": metrics.calibration(x, y, mask), "nll": metrics.nll(x, y, mask)}

    def measure(part):
        return metrics.to_host(measured(logits[part], labels[part]))

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
    measure = jax.jit(metrics.calibration)
    expected = measure(logits[flat], labels[flat], np.ones(flat.sum()) > 0)
    got = measure(logits.reshape(20, 10, -1), labels.reshape(20, 10), rows)
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


def test_gaps_of_opposite_signs_do_not_cancel():
    """Half of the examples are sure and wrong, half are unsure and right: both are badly said."""
    logits = jnp.log(jnp.array([[0.99, 0.01], [0.51, 0.49]]))
    measure = jax.jit(metrics.calibration, static_argnames="num_bins")
    gaps = measure(logits, jnp.array([1, 0]), jnp.ones(2, bool), num_bins=10)
    np.testing.assert_allclose(metrics.value(gaps), (0.99 + 0.49) / 2, rtol=1e-5)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    logits = jnp.array([[0.0, 0.0], [0.0, 0.0], [20.0, -20.0]])
    measure = jax.jit(metrics.calibration, static_argnames="num_bins")
    totals, _ = measure(logits, jnp.array([1, 1, 1]), jnp.ones(3, bool), num_bins=2)
    np.testing.assert_allclose(totals, [1, 1], atol=1e-6)


ALL = {"accuracy": metrics.accuracy, "nll": metrics.nll, "calibration": metrics.calibration}


@pytest.mark.parametrize("name", ALL)
def test_labels_of_eight_bits(name):
    logits, mask = 3 * np.random.default_rng(0).normal(size=(4, 300)), jnp.ones(4, bool)
    labels = np.array([0, 44, 200, 255])
    got, want = (
        jax.jit(ALL[name])(np.float32(logits), labels.astype(d), mask) for d in ("uint8", "int32")
    )
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("name", ALL)
def test_a_label_that_is_no_class_is_named_or_nan_and_may_be_masked(name):
    measure, logits = ALL[name], jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    labels, mask = jnp.array([255, 1]), jnp.array([False, True])
    words = f"{name}: labels has 255, expected 0 to 2 for 3 classes; a mask"
    with pytest.raises(ValueError, match=words):
        measure(logits, labels, jnp.ones(2, bool))
    assert np.isnan(np.sum(jax.jit(measure)(logits, labels, jnp.ones(2, bool))[0]))
    # Labels that are known, which are looked at.
    alone = jax.jit(lambda x: measure(x, labels[1:], mask[1:])[0])(logits[1:])
    for other in (labels, jnp.array([-1, 1], jnp.int8)):
        found = jax.jit(lambda x, y=other: measure(x, y, mask)[0])(logits)
        np.testing.assert_allclose(found, alone)


@pytest.mark.parametrize("name", ALL)
def test_labels_may_be_probabilities_and_real_numbers_are_refused(name):
    logits, mask = jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.ones(2, bool)
    hard = jax.jit(ALL[name])(logits, jnp.array([0, 1]), mask)
    soft = jax.jit(lambda x: ALL[name](x, jnp.eye(2), mask))(logits)
    np.testing.assert_allclose(soft[0], hard[0], rtol=1e-6)
    for labels in (jnp.ones(2), jnp.ones((2, 2)), jnp.array([[0.0, 1.0], [-1.0, 2.0]])):
        with pytest.raises(ValueError, match=f"{name}: labels has "):
            ALL[name](logits, labels, mask)
    with pytest.raises(ValueError, match=rf"{name}: logits has shape \(2, 1\), one class"):
        ALL[name](logits[:, :1], jnp.array([0, 1]), mask)


def test_likelihood_of_probabilities_against_numpy():
    logits, probs = np.array([[2.0, 1.0, 0.0]]), np.array([[0.7, 0.3, 0.0]])
    log_probs = logits - np.log(np.exp(logits).sum())
    measure, mask = jax.jit(metrics.nll), jnp.ones(1) > 0
    got = measure(jnp.array([[2.0, 1.0, -jnp.inf]]), jnp.array([[1.0, 0, 0]]), mask)
    np.testing.assert_allclose(got[0], np.log1p(np.exp(-1)), rtol=1e-6)
    got = measure(jnp.array(logits), jnp.array(probs), mask)
    np.testing.assert_allclose(got[0], -np.sum(probs * log_probs), rtol=1e-6)
