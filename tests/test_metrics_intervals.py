"""What chance makes of measures, held against closed forms and slow simulations."""

import numpy as np
import pytest

from kdjax import metrics


def test_a_calibrated_network_shows_an_error_above_zero():
    rng = np.random.default_rng(0)
    confidence = 1 - 0.9 * rng.beta(0.6, 3.0, 450)
    low, high = metrics.calibrated_range(confidence)
    assert low == pytest.approx(0.021, abs=0.003) and high == pytest.approx(0.058, abs=0.004)
    # The same from whole draws, with the library's own measure once.
    bins, found = np.ceil(confidence * 15).astype(int) - 1, []
    for _ in range(500):
        correct = rng.random(450) < confidence
        found.append(np.abs(np.bincount(bins, confidence - correct)).sum() / 450)
    own = metrics.calibration_of(confidence, correct, np.ones(450, bool))
    assert found[-1] == pytest.approx(metrics.value(own), rel=1e-4)
    assert np.mean((low <= np.array(found)) & (np.array(found) <= high)) == pytest.approx(
        0.95, abs=0.03
    )


def test_gaps_have_the_deviation_of_a_binomial():
    gaps = metrics.calibrated_gaps(np.repeat([0.3, 0.9], 2000), num_samples=500)
    assert gaps.shape == (500, 15) and np.flatnonzero(gaps.any(0)).tolist() == [4, 13]
    np.testing.assert_allclose(gaps.mean(0)[[4, 13]], 0, atol=3)
    np.testing.assert_allclose(
        gaps.std(0)[[4, 13]], np.sqrt(2000 * np.array([0.3 * 0.7, 0.9 * 0.1])), rtol=0.15
    )
    assert np.isnan(metrics.calibrated_range([])).all()
    assert metrics.calibrated_range(np.full(9, 0.8)) == metrics.calibrated_range(np.full(9, 0.8))


def test_one_seed_has_the_interval_of_a_mean_of_pairs():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 1, 2000)) < [[[0.8]], [[0.9]]]
    mean, low, high = metrics.paired_bootstrap(first, second)
    gains = second.astype(float) - first
    half = 1.96 * gains.std() / np.sqrt(2000)
    assert mean == pytest.approx(gains.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=half / 10)


def test_seeds_and_examples_both_vary():
    rng = np.random.default_rng(2)
    of_seeds, of_examples = rng.normal(0.5, 0.3, 8), rng.normal(0, 1, 200)
    first = np.broadcast_to(rng.normal(size=(1, 200)), (8, 200))
    mean, low, high = metrics.paired_bootstrap(
        first, first + of_seeds[:, None] + of_examples[None], num_samples=4000
    )
    assert mean == pytest.approx(of_seeds.mean() + of_examples.mean())
    half = 1.96 * np.sqrt(of_seeds.var() / 8 + of_examples.var() / 200)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    # Equal networks differ by nothing, however often they are drawn.
    assert metrics.paired_bootstrap(first, first) == (0, 0, 0)


def test_bootstrap_refuses_what_is_no_pair():
    with pytest.raises(ValueError, match=r"second has shape \(2, 4\), and first \(2, 5\)"):
        metrics.paired_bootstrap(np.zeros((2, 5)), np.zeros((2, 4)))
