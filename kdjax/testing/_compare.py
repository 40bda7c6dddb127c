"""Comparisons that say what was compared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_close(got: Any, want: Any, rtol: float, words: str) -> None:
    """Compare trees of numbers, tolerant of rounding relative to the largest number of a leaf.

    Raises:
        AssertionError: starting with `words`.
    """
    for x, y in zip(numbers(got), numbers(want), strict=True):
        size = np.max(np.abs(y[np.isfinite(y)]), initial=0.0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=0.1 * rtol * size, err_msg=words)


def assert_zero(tree: Any, words: str, atol: float = 0.0) -> None:
    """Raise an AssertionError unless all numbers are zero, within `atol`."""
    for x in numbers(tree):
        largest = np.max(np.abs(x), initial=0.0)
        assert largest <= atol, f"{words}: expected 0, the largest is {largest:.3g}"


def assert_finite(tree: Any, words: str) -> None:
    """Raise an AssertionError at a nan or an infinity."""
    for x in numbers(tree):
        bad = x[~np.isfinite(x)]
        assert not bad.size, f"{words}: {bad.size} of {x.size} are {bad.flat[0]}"


def assert_not_nan(tree: Any, words: str) -> None:
    """Raise an AssertionError at a nan."""
    for x in numbers(tree):
        bad = int(np.isnan(x).sum())
        assert not bad, f"{words}: {bad} of {x.size} are nan"


def numbers(tree: Any) -> list[np.ndarray]:
    """Return the leaves in float64, PRNG keys as their words."""
    return [np.asarray(_plain(x), np.float64) for x in jax.tree.leaves(tree)]


def _plain(x: Any) -> Any:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x
