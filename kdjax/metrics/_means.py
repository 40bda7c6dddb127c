"""Means of values, how they are weighed, and how parts of a whole merge."""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import _inputs
from kdjax.losses._inputs import TopK
from kdjax.losses._numbers import known
from kdjax.losses._numerics import pooling, relations
from kdjax.types import Array, Metrics


def are_probabilities(values: np.ndarray) -> bool:
    """Return whether all rows are distributions: nonnegative, and 1 in sum within rounding.

    Example:
        >>> import numpy as np
        >>> from kdjax import metrics
        >>> rows = np.array([[0.25, 0.75]]), np.array([[2.0, -1.0]])
        >>> [metrics.are_probabilities(row) for row in rows]
        [True, False]
    """
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

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> print(metrics.weights_of(jnp.array([0.5, 2.0])))
        [0.5 2. ]
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
    weights = _widen(mask)
    return jnp.where((weights >= 0) & jnp.isfinite(weights), weights, jnp.nan)


def counted(mask: Array) -> Array:
    """Return which examples count: the mask itself, or where a weight is more than 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> print(metrics.counted(jnp.array([0.5, 0.0, 2.0])))
        [ True False  True]
    """
    return mask if mask.dtype == bool else mask > 0


def spread(mask: Array, shape: tuple[int, ...]) -> Array:
    """Return weights, or whether something counts, for each of some values.

    Where the mask tells of positions, of pixels or tokens, and the values have them in another
    size, a value counts if any position of its cell does: of a smaller map each cell covers
    several. A value of a whole example counts if any of the example's positions does. Values that
    were matched so all weigh the same.

    Args:
        mask: [batch, positions...], as for `weights_of`.
        shape: of the values, [batch, ...].

    Returns:
        Booleans or weights of that shape.

    Raises:
        ValueError: as `weights_of`.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> metrics.spread(jnp.array([True, False]), (2, 3)).shape
        (2, 3)
    """
    weights = weights_of(mask)
    if weights.shape != shape[: weights.ndim]:
        weights = _matched(counted(weights), shape)
    weights = jnp.reshape(weights, weights.shape + (1,) * (len(shape) - weights.ndim))
    return jnp.broadcast_to(weights, shape)


def positions_of(mask: Array, features: Array) -> Array:
    """Return which positions of features count.

    Args:
        mask: [batch] or [batch, positions...], booleans.
        features: [batch, ..., channels]. With as many axes of positions as the mask they are
            matched to it, see `spread`; otherwise all positions of an example count alike.

    Returns:
        Booleans, [batch, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> mask, features = jnp.array([[True, False]]), jnp.ones((1, 2, 8))
        >>> metrics.positions_of(mask, features).shape
        (1, 2)
    """
    related = features.ndim == mask.ndim + 1
    return spread(mask if related else examples_of(mask), features.shape[:-1])


def examples_of(mask: Array) -> Array:
    """Return of which examples anything counts, [batch], whatever a mask tells of their parts.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> print(metrics.examples_of(jnp.array([[True, False], [False, False]])))
        [ True False]
    """
    return jnp.any(counted(mask), axis=tuple(range(1, mask.ndim))) if mask.ndim > 1 else mask


def mean_of(total: Array, count: Array) -> Array:
    """Divide a total by its count; the mean of nothing is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> print(metrics.mean_of(jnp.array(6.0), jnp.array(4.0)))
        1.5
    """
    return total / jnp.where(count == 0, 1, count)


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the values of the examples that count.

    Args:
        values: one value per example, [batch...] or with further axes behind, any float type.
        mask: [batch...], true where an example counts, or its weight, see `weights_of`; it spans
            the leading axes of `values`, or is matched to them, see `spread`.

    Returns:
        The total, a float32 (or wider) scalar, and how many values went into it, or the sum of
        their weights. A value that weighs nothing may be nan.

    Raises:
        ValueError: if `mask` is of other examples than `values`.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> total, count = metrics.masked_sum(
        ...     jnp.array([1.0, 2.0, 6.0]), jnp.array([True, True, False])
        ... )
        >>> print(total, count)
        3.0 2.0
    """
    if values.shape[:1] != mask.shape[:1]:
        raise ValueError(
            f"masked_sum: mask has shape {mask.shape}, expected leading axes of {values.shape}"
        )
    weighed, weights = _weighed(values, mask)
    return jnp.sum(_widen(weighed)), jnp.sum(weights, dtype=jnp.float32)


def accuracy(logits: Array | TopK, labels: Array, mask: Array) -> tuple[Array, Array]:
    """Count the examples whose most likely class is the label.

    Args:
        logits: [batch..., num_classes], or a `kdjax.heads.TopK` beside integer classes.
        labels: integer classes [batch...], or class probabilities [batch..., num_classes], which
            sum to 1 and count by their most likely class.
        mask: [batch...], true where an example counts.

    Returns:
        The number of hits and the number of examples.

    Raises:
        TypeError: if the labels are real numbers and no probabilities.
        ValueError: if there is one class alone, or labels that are not traced are no classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> found = jax.jit(metrics.accuracy)(logits, labels, jnp.array([True, True]))
        >>> round(metrics.value(found), 3)
        0.5
    """
    if isinstance(logits, TopK):
        classes = _inputs.as_integers("accuracy", "labels", labels)
        hits = likeliest("accuracy", "logits", logits) == classes
        return masked_sum(hits.astype(jnp.float32), mask)
    return masked_sum(_hits(*read("accuracy", logits, labels, mask)), mask)


def agreement(
    student_logits: Array, teacher_logits: Array | TopK, mask: Array
) -> tuple[Array, Array]:
    """Count the examples on which two networks name the same class.

    Args:
        student_logits: [batch..., num_classes].
        teacher_logits: [batch..., num_classes], or a `kdjax.heads.TopK`.
        mask: [batch...], true where an example counts.

    Returns:
        The number of agreements and the number of examples.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> student, teacher = (
        ...     jnp.array([[2.0, 0.0], [0.0, 1.0]]),
        ...     jnp.array([[1.0, 0.0], [3.0, 1.0]]),
        ... )
        >>> found = jax.jit(metrics.agreement)(student, teacher, jnp.array([True, True]))
        >>> metrics.value(found)
        0.5
    """
    first, second = (
        likeliest("agreement", f"{name}_logits", x)
        for name, x in (("student", student_logits), ("teacher", teacher_logits))
    )
    return masked_sum((first == second).astype(jnp.float32), mask)


def likeliest(function: str, name: str, logits: Array | TopK) -> Array:
    """Return the class with the largest logit, [batch...], of all logits or the largest alone."""
    if isinstance(logits, TopK):
        place = jnp.argmax(logits.logits, axis=-1, keepdims=True)
        return jnp.take_along_axis(jnp.asarray(logits.indices), place, axis=-1)[..., 0]
    return jnp.argmax(_inputs.as_classes(function, name, logits, -1, None), axis=-1)


def nll(logits: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
    """Sum the negative log-likelihood of the labels, in nats.

    -log q[label], or - sum y log q for class probabilities y

    Args:
        logits: [batch..., num_classes].
        labels: integer classes [batch...], or class probabilities [batch..., num_classes], which
            sum to 1.
        mask: [batch...], true where an example counts.

    Returns:
        The total in nats and the number of examples.

    Raises:
        TypeError: if the labels are real numbers and no probabilities.
        ValueError: if there is one class alone, or labels that are not traced are no classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> found = jax.jit(metrics.nll)(logits, labels, jnp.array([True, True]))
        >>> round(metrics.value(found), 3)
        0.72
    """
    x, truth, _ = read("nll", logits, labels, mask)
    log_probs = jax.nn.log_softmax(x, axis=-1)
    if isinstance(truth, _inputs.Labels):
        picked = truth.of(jnp.sum(jnp.where(truth.chosen, log_probs, 0), axis=-1))
    else:
        nothing = truth == 0
        terms = truth * jnp.where(nothing, 0, log_probs)
        picked = jnp.sum(jnp.where(nothing, 0, terms), axis=-1)
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

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> outputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]])
        >>> metrics.value(metrics.squared_error(outputs, targets, jnp.full(2, True)))
        2.0
    """
    targets = shaped("squared_error", targets, outputs, "targets")
    errors = _widen(outputs) - _widen(targets)
    return masked_sum(jnp.mean(jnp.square(errors), axis=-1), mask)


def calibration(
    logits: Array, labels: Array, mask: Array, *, num_bins: int = 15
) -> tuple[Array, Array]:
    """Sum confidence minus correctness within equal-width bins of confidence.

    The expected calibration error (ECE), sum over bins of |total| / count, is what `value` makes of
    it.

    Args:
        logits: [batch..., num_classes].
        labels: integer classes [batch...], or class probabilities [batch..., num_classes], which
            count by their most likely class.
        mask: true where an example counts; it spans leading axes of the labels.
        num_bins: the number of bins that split (0, 1].

    Returns:
        Totals of confidence - correctness, [num_bins], and the number of examples.

    Raises:
        TypeError: if the labels are real numbers and no probabilities.
        ValueError: if there is one class alone, or labels that are not traced are no classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> found = jax.jit(metrics.calibration)(logits, labels, jnp.array([True, True]))
        >>> round(metrics.value(found), 3)
        0.425

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
        arXiv:1706.04599.
    """
    found = read("calibration", logits, labels, mask)
    confidence = jnp.max(jax.nn.softmax(found[0], axis=-1), axis=-1)
    return calibration_of(confidence, _hits(*found), mask, num_bins=num_bins)


def calibration_of(
    confidence: Array, correct: Array, mask: Array, *, num_bins: int = 15
) -> tuple[Array, Array]:
    """Do as `calibration` does, where there are no logits any more.

    Args:
        confidence: the largest probability of each example, [batch...].
        correct: 1 where its class is the label, else 0, [batch...].
        mask: true where an example counts; it spans leading axes.
        num_bins: the number of bins that split (0, 1].

    Returns:
        Totals of confidence - correctness, [num_bins], and the number of examples.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> confidence, correct = jnp.array([0.9, 0.7]), jnp.array([True, False])
        >>> found = metrics.calibration_of(confidence, correct, jnp.array([True, True]))
        >>> round(metrics.value(found), 3)
        0.4
    """
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    gaps, weights = _weighed(confidence - correct, mask)
    bins, gaps = (relations.whole(x.ravel()) for x in (bins, gaps))
    totals = jnp.zeros(num_bins, gaps.dtype).at[bins].add(gaps)
    return totals, jnp.sum(weights, dtype=jnp.float32)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add up two sets of metrics, in float64 on the host when they are NumPy arrays.

    Args:
        first: `{name: (total, count)}`.
        second: `{name: (total, count)}`; a name that only one of them has is kept as it is.

    Returns:
        The metrics of both parts together.

    Example:
        >>> import numpy as np
        >>> from kdjax import metrics
        >>> first, second = {"loss": (np.array(6.0), 2)}, {"loss": (np.array(1.0), 1)}
        >>> round(metrics.value(metrics.merge(first, second)["loss"]), 3)
        2.333
    """
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        merged[name] = jax.tree.map(operator.add, first[name], second[name])
    return merged


def to_host(metrics: Metrics) -> dict[str, Any]:
    """Fetch metrics as float64 NumPy arrays, so that sums over many steps stay exact.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> metrics.to_host({"loss": (jnp.array(3.0), jnp.array(2))})["loss"][0].dtype
        dtype('float64')
    """
    # What is in the host's memory is read where it lies, in a tenth of the time.
    fetched = metrics if jax.default_backend() == "cpu" else jax.device_get(metrics)
    exact: dict[str, Any] = jax.tree.map(lambda x: np.asarray(x, np.float64), fetched)
    return exact


def value(metric: tuple[Any, Any]) -> float:
    """Turn a total and a count into a number.

    Args:
        metric: `(total, count)`; totals with a bin axis are summed in absolute value.

    Returns:
        total / count, or sum |total| / count over bins; nan when nothing was counted. A pair with
        a method `value` says itself what its number is.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import metrics
        >>> metrics.value((jnp.array(3.0), jnp.array(2)))
        1.5
    """
    own = getattr(metric, "value", None)
    if own is not None:
        return float(own())
    total, count = (np.asarray(part, np.float64) for part in metric)
    if not count:
        return float("nan")
    return float((np.abs(total).sum() if total.ndim else total) / count)


def read(
    function: str, logits: Array, labels: Array, mask: Array
) -> tuple[Array, _inputs.Labels | Array, Array]:
    """Return logits in float32 or wider, which class is the label or how likely, and the class."""
    x = _inputs.as_classes(function, "logits", logits, -1, None)
    counts = counted(spread(mask, x.shape[:-1]))
    if _inputs.are_probs(labels):
        probs = _inputs.as_label_probs(function, labels, x, mask=counts)
        return x, probs, jnp.argmax(probs, axis=-1)
    truth = _inputs.as_chosen(function, labels, x, mask=counts)
    return x, truth, _inputs.as_integers(function, "labels", labels)


def _hits(x: Array, truth: _inputs.Labels | Array, label: Array) -> Array:
    """Return 1 where the most likely class is the label, nan where that is no class."""
    hits = (jnp.argmax(x, axis=-1) == label.astype(jnp.int32)).astype(jnp.float32)
    return truth.of(hits) if isinstance(truth, _inputs.Labels) else hits


def _widen(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _matched(mask: Array, shape: tuple[int, ...]) -> Array:
    """Return booleans for values of another size, or for whole examples."""
    if len(shape) != mask.ndim:
        return examples_of(mask)
    for axis in range(1, mask.ndim):
        if mask.shape[axis] != shape[axis]:
            cells = jnp.asarray(pooling.bins(mask.shape[axis], shape[axis]) > 0, jnp.float32)
            hits = jnp.tensordot(mask.astype(jnp.float32), cells, axes=(axis, 1))
            mask = jnp.moveaxis(hits > 0, -1, axis)
    return mask


def _weighed(values: Array, mask: Array) -> tuple[Array, Array]:
    """Return values times their weights, and the weights, both in the shape of the values."""
    weights = spread(mask, values.shape)
    # Selected before it is multiplied: 0 * nan is nan.
    selected = jnp.where(counted(weights), values, 0)
    if weights.dtype != bool:
        selected = _widen(selected) * weights.astype(_widen(selected).dtype)
    return selected, weights


def shaped(function: str, y: Array, x: Array, name: str) -> Array:
    """Return labels in the shape of outputs [batch..., values]; [batch...] fits one value."""
    y = y[..., None] if y.shape == x.shape[:-1] and x.shape[-1] == 1 else y
    if y.shape != x.shape:
        raise ValueError(f"{function}: {name} have shape {y.shape}, expected {x.shape}")
    return y
