"""Measures of other tasks than one class of many, each a pair of sums that merges exactly.

Where the number is not total / count, the pair is a named one whose method `value` makes it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import _inputs
from kdjax.losses._numerics import relations
from kdjax.metrics._means import counted, masked_sum, read, shaped, spread, squared_error
from kdjax.types import Array, Batch, Outputs

# Logits beyond are as certain as these: bins are as wide as (1 + |z|)^2 / 2048.
_LARGEST, _BINS = 1e6, 4096


class RankedLabels(NamedTuple):
    """How many labels are false and true, [2, labels, bins] by their scores, and how many count."""

    total: Any
    count: Any

    def value(self) -> float:
        """Return the mean over the labels that are ever true of the average precision."""
        if np.isnan(self.count):
            return float("nan")
        false, true = np.flip(np.asarray(self.total, np.float64), -1)
        hits = np.cumsum(true, -1)
        precision = hits / np.maximum(hits + np.cumsum(false, -1), 1e-30)
        ever = hits[:, -1] > 0
        areas = np.sum(precision * true, -1) / np.where(ever, hits[:, -1], 1)
        return float(areas[ever].mean()) if ever.any() else float("nan")


class RootMean(NamedTuple):
    """A total and a count, whose number is the root of their quotient."""

    total: Any
    count: Any

    def value(self) -> float:
        """Return sqrt(total / count)."""
        return float(np.sqrt(self.total / self.count)) if self.count else float("nan")


class Explained(NamedTuple):
    """Sums of (z - y)^2, y and y^2, [3, values], y from some center on, and how many count."""

    total: Any
    count: Any

    def value(self) -> float:
        """Return 1 - residual / variance, the mean over values."""
        if not self.count:
            return float("nan")
        residual, first, second = np.asarray(self.total, np.float64)
        varied = second - first**2 / self.count
        shares = residual / np.where(varied > 0, varied, np.nan)
        return float(np.mean(1 - shares))


class Confusion(NamedTuple):
    """How often each class was taken for each, [classes, classes] by label and answer."""

    total: Any
    count: Any

    def value(self) -> float:
        """Return the mean of intersection over union, over the classes that are there at all."""
        counts = np.asarray(self.total, np.float64)
        if np.isnan(self.count):
            return float("nan")
        union = counts.sum(0) + counts.sum(1) - counts.diagonal()
        shares = counts.diagonal()[union > 0] / union[union > 0]
        return float(shares.mean()) if shares.size else float("nan")


def of(
    measure: Callable[..., Any], *, feature: str | None = None, **settings: Any
) -> Callable[[Batch, Outputs], Any]:
    """Make of a measure what `make_eval_step(metrics={name: ...})` takes.

    Args:
        measure: of a network's outputs, labels and mask, as those here are.
        feature: path of the feature that it looks at; the logits by default.
        **settings: what the measure is called with beside that.

    Returns:
        A function of a batch and the outputs for it, which reads `label` and, where the batch has
        one, `mask`.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> from kdjax.types import Outputs
        >>> measure = metrics.of(metrics.r_squared)
        >>> batch = {"label": jnp.array([1.0, 3.0]), "mask": jnp.array([True, True])}
        >>> metrics.value(measure(batch, Outputs(jnp.array([[1.0], [3.0]]))))
        1.0
    """

    def measured(batch: Batch, outputs: Outputs) -> Any:
        x = outputs.logits if feature is None else outputs.features[feature]
        mask = batch["mask"] if "mask" in batch else jnp.ones(len(x), bool)
        return measure(x, batch["label"], mask, **settings)

    return measured


def binary_accuracy(
    logits: Array, labels: Array, mask: Array, *, ignore_label: int | None = None
) -> tuple[Array, Array]:
    """Count the labels that are told right, each by itself: true where its logit is positive.

    Args:
        logits: [batch..., num_labels].
        labels: 0, 1 or booleans of the same shape, or [batch...] for one logit.
        mask: [batch...], true where an example counts.
        ignore_label: the label that is not known, and does not count.

    Returns:
        How many labels are right, and how many there are.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> logits, labels = jnp.array([[2.0, -1.0], [3.0, 1.0]]), jnp.array([[1, 0], [1, 0]])
        >>> found = jax.jit(metrics.binary_accuracy)(logits, labels, jnp.array([True, True]))
        >>> metrics.value(found)
        0.75
    """
    x, true, counts = _labels("binary_accuracy", logits, labels, mask, ignore_label)
    right = ((x > 0) == (true == 1)).astype(jnp.float32)
    return masked_sum(jnp.where((true == 0) | (true == 1), right, jnp.nan), counts)


def mean_average_precision(
    logits: Array, labels: Array, mask: Array, *, ignore_label: int | None = None
) -> RankedLabels:
    """Rank the examples by each label's score: the mean over labels of the average precision.

    sum over thresholds of (R_n - R_(n-1)) P_n, with precision P and recall R

    Scores are counted in 4,096 bins, which is what makes parts merge exactly to the whole: logits
    that differ by less than (1 + |z|)^2 / 2048 may tie.

    Args:
        logits: [batch..., num_labels].
        labels: 0, 1 or booleans of the same shape, or [batch...] for one logit.
        mask: [batch...], true where an example counts.
        ignore_label: the label that is not known, and does not count.

    Returns:
        Counts by label and score.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> scores, labels = jnp.array([[2.0], [1.0], [0.0]]), jnp.array([[1], [0], [1]])
        >>> found = jax.jit(metrics.mean_average_precision)(scores, labels, jnp.full(3, True))
        >>> round(metrics.value(found), 3)
        0.833
    """
    x, true, weights = _labels("mean_average_precision", logits, labels, mask, ignore_label)
    x = jnp.clip(x, -_LARGEST, _LARGEST)
    place = (1 + x / (1 + jnp.abs(x))) / 2 * _BINS
    bins = jnp.clip(place.astype(jnp.int32), 0, _BINS - 1)
    which = _last_index(x)
    weights = jnp.where((true == 0) | (true == 1) | (weights == 0), weights, jnp.nan)
    true = jnp.where(true == 1, 1, 0)
    places = (relations.whole(a.ravel()) for a in (true, which, bins))
    counts = jnp.zeros((2, x.shape[-1], _BINS), jnp.float32)
    counts = counts.at[tuple(places)].add(relations.whole(weights.ravel()))
    return RankedLabels(counts, jnp.sum(weights))


def root_mean_squared_error(outputs: Array, targets: Array, mask: Array) -> RootMean:
    """Sum squared errors, whose number is the root of their mean, in the unit of the targets.

    Args:
        outputs: [batch..., values].
        targets: the same shape, or [batch...] for a single value.
        mask: [batch...], true where an example counts.

    Returns:
        The total and the number of examples.

    Raises:
        ValueError: if the targets have another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> outputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])
        >>> found = metrics.root_mean_squared_error(outputs, targets, jnp.full(2, True))
        >>> round(metrics.value(found), 3)
        1.414
    """
    return RootMean(*squared_error(outputs, targets, mask))


def r_squared(outputs: Array, targets: Array, mask: Array, *, center: float = 0.0) -> Explained:
    """Sum what the share of the variance that a regression explains is made of.

    1 - sum (z - y)^2 / sum (y - mean(y))^2, the mean over values

    Args:
        outputs: [batch..., values].
        targets: the same shape, or [batch...] for a single value.
        mask: [batch...], true where an example counts.
        center: a number near the targets' mean: far from it float32 would leave few digits of
            their variance. It changes nothing else.

    Returns:
        Sums for each value, and the number of examples.

    Raises:
        ValueError: if the targets have another shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> outputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [3.0]])
        >>> found = jax.jit(metrics.r_squared)(outputs, targets, jnp.full(2, True))
        >>> metrics.value(found)
        0.5
    """
    x, y = (jnp.asarray(a).astype(jnp.float32) for a in (outputs, targets))
    y = shaped("r_squared", y, x, "targets") - center
    weights = spread(mask, x.shape[:-1]).astype(jnp.float32)[None, ..., None]
    parts = jnp.stack([jnp.square(x - center - y), y, jnp.square(y)])
    weighed = jnp.where(weights > 0, parts, 0) * weights
    total = jnp.sum(weighed, axis=tuple(range(1, weighed.ndim - 1)))
    return Explained(total, jnp.sum(weights))


def recall_at_k(scores: Array, relevant: Array, mask: Array, *, k: int = 1) -> tuple[Array, Array]:
    """Count the queries with something relevant among their k best candidates.

    Args:
        scores: [batch, candidates], such as the inner products of embeddings with those of a
            collection that is the same for all batches; -inf leaves a candidate out.
        relevant: booleans of the same shape, or the index of the one relevant candidate, [batch];
            nan if one that is traced and counts is of no candidate.
        mask: [batch], true where a query counts.
        k: how many candidates are looked at.

    Returns:
        The number of such queries and the number of all.

    Raises:
        ValueError: if the shapes do not fit, or an index that is not traced is of no candidate.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> scores, relevant = jnp.array([[0.9, 0.8, 0.1]]), jnp.array([[False, True, False]])
        >>> metrics.value(metrics.recall_at_k(scores, relevant, jnp.array([True]), k=2))
        1.0
    """
    relevant, valid = jnp.asarray(relevant), jnp.ones((), bool)
    if relevant.shape == scores.shape[:1] and relevant.dtype != bool:
        counts = counted(spread(mask, relevant.shape))
        truth = _inputs.as_chosen("recall_at_k", relevant, scores, mask=counts)
        relevant, valid = truth.chosen, truth.valid
    if relevant.shape != scores.shape or relevant.dtype != bool:
        raise ValueError(
            f"recall_at_k: relevant is {relevant.dtype}{relevant.shape}, expected booleans of "
            f"{scores.shape} like the scores, or indices of {scores.shape[:1]}"
        )
    best, places = jax.lax.top_k(scores, min(k, scores.shape[1]))
    hits = jnp.take_along_axis(relevant, places, axis=-1) & (best > -jnp.inf)
    hits = jnp.where(valid, jnp.any(hits, axis=-1).astype(jnp.float32), jnp.nan)
    return masked_sum(hits, mask)


def mean_iou(
    logits: Array, labels: Array, mask: Array, *, ignore_label: int | None = None
) -> Confusion:
    """Count how often each class is taken for each: the mean of intersection over union.

    Args:
        logits: [batch..., num_classes], such as [batch, height, width, num_classes].
        labels: integer classes, [batch...].
        mask: [batch...], true where an example or a pixel counts.
        ignore_label: the label of pixels that do not count, such as 255.

    Returns:
        Counts by label and answer.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if the shapes do not fit, or labels that are not traced are no classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> logits = 9 * jax.nn.one_hot(jnp.array([[0, 1, 1, 2]]), 3)
        >>> found = jax.jit(metrics.mean_iou)(
        ...     logits, jnp.array([[0, 1, 2, 2]]), jnp.array([True])
        ... )
        >>> round(metrics.value(found), 3)
        0.667
    """
    labels = jnp.asarray(labels)
    weights = spread(mask, jnp.shape(logits)[:-1])
    if ignore_label is not None:
        ignored = _inputs.as_integers("mean_iou", "labels", labels) == ignore_label
        weights = jnp.where(ignored, jnp.zeros_like(weights), weights)
    x, _, label = read("mean_iou", logits, labels, weights)
    answer, size = jnp.argmax(x, axis=-1), x.shape[-1]
    weights = weights.astype(jnp.float32)
    wrong = (label < 0) | (label >= size)
    weights = jnp.where(wrong & (weights > 0), jnp.nan, weights)
    places = (relations.whole(a.ravel()) for a in (jnp.clip(label, 0, size - 1), answer))
    counts = (
        jnp.zeros((size, size), jnp.float32).at[tuple(places)].add(relations.whole(weights.ravel()))
    )
    return Confusion(counts, jnp.sum(weights))


def _labels(
    function: str, logits: Array, labels: Array, mask: Array, ignore_label: int | None
) -> tuple[Array, Array, Array]:
    """Return logits, labels of their shape as numbers, and the weight of each."""
    x = jnp.asarray(logits)
    y = shaped(function, jnp.asarray(labels).astype(jnp.float32), x, "labels")
    weights = spread(mask, x.shape[:-1])
    weights = jnp.broadcast_to(weights[..., None], x.shape).astype(jnp.float32)
    if ignore_label is not None:
        weights = jnp.where(y == ignore_label, 0, weights)
    return x.astype(jnp.float32), y, weights


def _last_index(x: Array) -> Array:
    last = jnp.arange(x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.broadcast_to(last, x.shape)
