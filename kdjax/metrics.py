"""Measures as `(total, count)`, which merge exactly over batches, devices and hosts.

Totals are sums over the examples that count. `calibration` keeps one total per bin, because the
calibration error of a whole is not the mean of the errors of its parts.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, Metrics

__all__ = ["accuracy", "agreement", "calibration", "masked_sum", "merge", "nll", "to_host", "value"]


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the values of the examples that count.

    Args:
        values: one value per example, [batch...] or with further axes behind, any float type.
        mask: [batch...], true where an example counts; it spans the leading axes of `values`.

    Returns:
        The total, a float32 (or wider) scalar, and how many values went into it.

    Raises:
        ValueError: if `mask` does not span leading axes of `values`.
    """
    if values.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"masked_sum: mask has shape {mask.shape}, expected leading axes of {values.shape}"
        )
    selected = jnp.broadcast_to(_expand(mask, values.ndim), values.shape)
    total = jnp.sum(
        jnp.where(selected, values, 0), dtype=jnp.promote_types(values.dtype, jnp.float32)
    )
    return total, jnp.sum(selected, dtype=jnp.float32)


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
    picked = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    return masked_sum(-picked, mask)


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
    correct = jnp.argmax(logits, axis=-1) == labels
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    selected = jnp.broadcast_to(_expand(mask, confidence.ndim), confidence.shape)
    gaps = jnp.where(selected, confidence - correct, 0)
    totals = jnp.zeros(num_bins, gaps.dtype).at[bins.ravel()].add(gaps.ravel())
    return totals, jnp.sum(selected, dtype=jnp.float32)


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


def _expand(mask: Array, ndim: int) -> Array:
    return jnp.reshape(mask, mask.shape + (1,) * (ndim - mask.ndim)).astype(bool)
