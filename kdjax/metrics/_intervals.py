"""What chance alone makes of a measure: by simulation, and by drawing examples anew."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Difference(NamedTuple):
    """How much more the second of two has than the first, and an interval for it."""

    mean: float
    low: float
    high: float


def calibrated_gaps(
    confidence: ArrayLike, *, num_bins: int = 15, num_samples: int = 1000, seed: int = 0
) -> Floats:
    """Simulate what `calibration_of` would find if the confidences were right.

    Every example is right with the probability that the network states for it.

    Args:
        confidence: the largest probability of each example, [examples].
        num_bins: the number of bins that split (0, 1].
        num_samples: how often the labels are drawn.
        seed: of the draws.

    Returns:
        Totals of confidence - correctness, [num_samples, num_bins], float64.

    Example:
        >>> import numpy as np
        >>> from kdjax import metrics
        >>> gaps = metrics.calibrated_gaps(np.full(450, 0.8), num_samples=200)
        >>> gaps.shape, bool(abs(gaps.sum(1).mean()) < 3)
        ((200, 15), True)

    References:
        Bröcker, Smith, "Increasing the Reliability of Reliability Diagrams", Weather and
        Forecasting 22, 2007. Vaicenavicius et al., "Evaluating model calibration in
        classification", 2019, arXiv:1902.06977.
    """
    probs = np.sort(np.asarray(confidence, np.float32).ravel())
    rng, totals = np.random.default_rng(seed), np.zeros((num_samples, num_bins))
    bins = bins_of(probs, num_bins)
    filled = np.unique(bins, return_index=True, return_counts=True)
    for b, start, count in zip(*filled, strict=True):
        own = probs[start : start + count]
        for part in _parts(num_samples, count):
            hits = rng.random((part.stop - part.start, count), np.float32) < own[None]
            totals[part, b] = own.sum(dtype=np.float64) - hits.sum(1)
    return totals


def calibrated_range(
    confidence: ArrayLike,
    *,
    num_bins: int = 15,
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the calibration errors that a perfectly calibrated network shows, for most draws.

    The expected calibration error of finitely many examples is above 0 by chance, the more the
    fewer they are. One within this range cannot be told from that of a calibrated network.

    Args:
        confidence: the largest probability of each example, [examples].
        num_bins: the number of bins that split (0, 1], as for `calibration`.
        level: the share of draws between the two bounds.
        num_samples: how often the labels are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper bound; nan without examples.

    Example:
        >>> import numpy as np
        >>> from kdjax import metrics
        >>> low, high = metrics.calibrated_range(np.full(450, 0.8))
        >>> low < 0.01 < high < 0.05
        True

    References:
        As `calibrated_gaps`.
    """
    count = np.size(confidence)
    if not count:
        return float("nan"), float("nan")
    gaps = calibrated_gaps(confidence, num_bins=num_bins, num_samples=num_samples, seed=seed)
    low, high = np.quantile(np.abs(gaps).sum(1) / count, _tails(level))
    return float(low), float(high)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    level: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Return how much higher the mean of the second scores is, and what chance allows it to be.

    Examples and seeds are drawn anew, with replacement and independently of each other; what was
    measured on one example, or from one seed, stays together. Of one seed examples alone are drawn,
    and of a handful of seeds the interval is rather too narrow.

    Args:
        first: scores of networks, such as 1 where a network is right and 0 elsewhere,
            [seeds, examples].
        second: the same of other networks, on the same examples and paired by seed.
        level: the share of draws between the two bounds.
        num_samples: how often they are drawn.
        seed: of the draws.

    Returns:
        The mean difference and the bounds of its percentile interval.

    Raises:
        ValueError: if the two are not of one shape [seeds, examples].

    Example:
        >>> import numpy as np
        >>> from kdjax import metrics
        >>> scratch, distilled = np.zeros((2, 100)), np.ones((2, 100))
        >>> distilled[:, :50] = 0
        >>> metrics.paired_bootstrap(scratch, distilled).mean
        0.5

    References:
        Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    before, after = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            f"paired_bootstrap: second has shape {after.shape}, and first {before.shape}, "
            "expected one shape [seeds, examples]"
        )
    rng, gains = np.random.default_rng(seed), after - before
    num_seeds, count = gains.shape
    # Examples with the same gains are as one that is drawn more often: few kinds, few numbers.
    kinds, common = np.unique(gains, axis=1, return_counts=True)
    drawn = np.zeros(num_samples)
    for part in _parts(num_samples, len(common)):
        size = part.stop - part.start
        seeds: Any = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size)
        examples: Any = rng.multinomial(count, common / count, size)
        drawn[part] = np.einsum("bs,sk,bk->b", seeds, kinds, examples, optimize=True)
    low, high = np.quantile(drawn / gains.size, _tails(level))
    return Difference(float(gains.mean()), float(low), float(high))


def bins_of(confidence: ArrayLike, num_bins: int) -> NDArray[np.intp]:
    """Return the bins that confidences are in, as `calibration_of` has them."""
    found = np.ceil(np.asarray(confidence, np.float32) * num_bins).astype(np.intp) - 1
    return np.clip(found, 0, num_bins - 1)


def _parts(num_samples: int, size: int) -> Iterator[slice]:
    """Split draws so that a million numbers are held at a time, whatever one of them needs."""
    most = max(1, 10**6 // max(1, size))
    for start in range(0, num_samples, most):
        yield slice(start, min(start + most, num_samples))


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
