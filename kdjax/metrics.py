"""Measures as `(total, count)`, which merge exactly over batches, devices and hosts.

Totals are sums over the examples that count. A mask of numbers in place of booleans weighs them:
the total is sum(weight * value), the count sum(weight), and what weighs nothing adds nothing.
`calibration` keeps one total per bin, because the calibration error of a whole is not the mean of
the errors of its parts.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, Metrics

__all__ = [
    "accuracy", "agreement", "are_probabilities", "calibration", "counted", "known", "masked_sum",
    "mean_of", "merge", "nll", "squared_error", "to_host", "value", "weights_of",
]  # fmt: skip


def known(x: Any) -> np.ndarray | None:
    """Return an array's values where this process has them: None for one that is traced."""
    hidden = isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True)
    return None if hidden else np.asarray(x)


def are_probabilities(values: np.ndarray) -> bool:
    """Return whether all rows are distributions: nonnegative, and 1 in sum within rounding."""
    wide = values.astype(np.float32)
    return bool(np.all(wide >= 0) and np.allclose(wide.sum(-1), 1, atol=1e-2))


def weights_of(mask: Array) -> Array:
    """Return a mask as what values are weighed by: booleans as they are, numbers as weights.

    Args:
        mask: [batch...], booleans, or weights of any type of numbers.

    Returns:
        Booleans, or float32 (or wider) weights; a traced weight that is none is nan, so that no
        mean looks right.

    Raises:
        ValueError: if a weight is negative or not finite, where its value is known.
    """
    values, mask = known(mask), jnp.asarray(mask)
    if mask.dtype == bool:
        return mask
    if values is not None:
        wrong = ~((values >= 0) & np.isfinite(values))
        if wrong.any():
            raise ValueError(
                f"mask: a weight is {values[wrong][0]}, expected booleans, or finite weights of 0 "
                "and more"
            )
    weights = mask.astype(jnp.promote_types(mask.dtype, jnp.float32))
    return jnp.where((weights >= 0) & jnp.isfinite(weights), weights, jnp.nan)


def counted(mask: Array) -> Array:
    """Return which examples count: the mask itself, or where a weight is more than 0."""
    return mask if mask.dtype == bool else mask > 0


def mean_of(total: Array, count: Array) -> Array:
    """Divide a total by its count; the mean of nothing is 0."""
    return total / jnp.where(count == 0, 1, count)


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the values of the examples that count.

    Args:
        values: one value per example, [batch...] or with further axes behind, any float type.
        mask: [batch...], true where an example counts, or its weight, see `weights_of`; it spans
            the leading axes of `values`.

    Returns:
        The total, a float32 (or wider) scalar, and how many values went into it, or the sum of
        their weights. A value that weighs nothing may be nan.

    Raises:
        ValueError: if `mask` does not span leading axes of `values`.
    """
    if values.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"masked_sum: mask has shape {mask.shape}, expected leading axes of {values.shape}"
        )
    weighed, weights = _weighed(values, mask)
    total = jnp.sum(weighed, dtype=jnp.promote_types(values.dtype, jnp.float32))
    return total, jnp.sum(weights, dtype=jnp.float32)


def accuracy(logits: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
    """Count the examples whose most likely class is the label.

    Args:
        logits: [batch..., num_classes].
        labels: integer classes [batch...], or class probabilities [batch..., num_classes].
        mask: [batch...], true where an example counts.

    Returns:
        The number of hits and the number of examples.
    """
    truth = labels if labels.ndim < logits.ndim else jnp.argmax(labels, axis=-1)
    return masked_sum((jnp.argmax(logits, axis=-1) == truth).astype(jnp.float32), mask)


def agreement(student_logits: Array, teacher_logits: Array, mask: Array) -> tuple[Array, Array]:
    """Count the examples on which two networks name the same class.

    Args:
        student_logits: [batch..., num_classes].
        teacher_logits: [batch..., num_classes].
        mask: [batch...], true where an example counts.

    Returns:
        The number of agreements and the number of examples.
    """
    return accuracy(student_logits, jnp.argmax(teacher_logits, axis=-1), mask)


def nll(logits: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the negative log-likelihood of the labels, in nats.

    Args:
        logits: [batch..., num_classes].
        labels: integer classes [batch...].
        mask: [batch...], true where an example counts.

    Returns:
        The total in nats and the number of examples.
    """
    log_probs = jax.nn.log_softmax(_widen(logits), axis=-1)
    if labels.ndim == logits.ndim:
        return masked_sum(-jnp.sum(jnp.where(labels > 0, labels * log_probs, 0), axis=-1), mask)
    picked = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    return masked_sum(-picked, mask)


def squared_error(outputs: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the squared error of real-valued targets, the mean over those of an example.

    Args:
        outputs: [batch..., values].
        targets: the same shape, or [batch...] for a single value.
        mask: [batch...], true where an example counts.

    Returns:
        The total and the number of examples.

    Raises:
        ValueError: if the targets have another shape.
    """
    single = outputs.shape[-1] == 1 and targets.shape == outputs.shape[:-1]
    targets = targets[..., None] if single else targets
    if targets.shape != outputs.shape:
        raise ValueError(
            f"squared_error: targets have shape {targets.shape}, expected {outputs.shape}"
        )
    errors = _widen(outputs) - _widen(targets)
    return masked_sum(jnp.mean(jnp.square(errors), axis=-1), mask)


def calibration(
    logits: Array, labels: Array, mask: Array, *, num_bins: int = 15
) -> tuple[Array, Array]:
    """Sum confidence minus correctness within equal-width bins of confidence.

    The expected calibration error, sum over bins of |total| / count, is what `value` makes of it.

    Args:
        logits: [batch..., num_classes].
        labels: integer classes [batch...].
        mask: true where an example counts; it spans leading axes of the labels.
        num_bins: the number of bins that split (0, 1].

    Returns:
        Totals of confidence - correctness, [num_bins], and the number of examples.

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
        arXiv:1706.04599.
    """
    probs = jax.nn.softmax(_widen(logits), axis=-1)
    confidence = jnp.max(probs, axis=-1)
    labels = labels if labels.ndim < logits.ndim else jnp.argmax(labels, axis=-1)
    correct = jnp.argmax(logits, axis=-1) == labels
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    gaps, weights = _weighed(confidence - correct, mask)
    totals = jnp.zeros(num_bins, gaps.dtype).at[bins.ravel()].add(gaps.ravel())
    return totals, jnp.sum(weights, dtype=jnp.float32)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add up two sets of metrics, in float64 on the host when they are NumPy arrays.

    Args:
        first: `{name: (total, count)}`.
        second: `{name: (total, count)}`; a name that only one of them has is kept as it is.

    Returns:
        The metrics of both parts together.
    """
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        merged[name] = (first[name][0] + second[name][0], first[name][1] + second[name][1])
    return merged


def to_host(metrics: Metrics) -> dict[str, Any]:
    """Fetch metrics as float64 NumPy arrays, so that sums over many steps stay exact."""
    fetched = jax.device_get(metrics)
    exact: dict[str, Any] = jax.tree.map(lambda x: np.asarray(x, np.float64), fetched)
    return exact


def value(metric: tuple[Any, Any]) -> float:
    """Turn a total and a count into a number.

    Args:
        metric: `(total, count)`; totals with a bin axis are summed in absolute value.

    Returns:
        total / count, or sum |total| / count over bins; nan when nothing was counted.
    """
    total, count = (np.asarray(part, np.float64) for part in metric)
    if not count:
        return float("nan")
    return float((np.abs(total).sum() if total.ndim else total) / count)


def _widen(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _weighed(values: Array, mask: Array) -> tuple[Array, Array]:
    """Return values times their weights, and the weights, both in the shape of the values."""
    weights = weights_of(mask)
    weights = jnp.reshape(weights, weights.shape + (1,) * (values.ndim - weights.ndim))
    weights = jnp.broadcast_to(weights, values.shape)
    # Selected before it is multiplied: 0 * nan is nan.
    selected = jnp.where(counted(weights), values, 0)
    if weights.dtype != bool:
        selected = _widen(selected) * weights.astype(_widen(selected).dtype)
    return selected, weights
