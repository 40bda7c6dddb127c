"""Multi-level logit distillation: instances, batch and classes, at several temperatures."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _classes, _exact, _predictions

Array = jax.Array


def multi_level_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperatures: Sequence[float] | Array = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_weight: Any = 1.0,
    batch_weight: Any = 1.0,
    class_weight: Any = 1.0,
    confidence_quantile: Any = None,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match predictions at several temperatures, as instances, as a batch and as classes.

    sum over T of (w_i * soft_target_loss + w_b * batch_correlation_loss + w_c *
    class_correlation_loss)

    The paper trains on two views of each example, weak and strong, and adds the loss of both and
    the labels' cross-entropy of both.

    Args:
        student_logits: [..., num_classes], any floating type; -inf is a probability of 0.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperatures: the values of T: positive numbers, or an array of one axis.
        instance_weight: w_i, a number that is not negative, or an array: scalar or [...].
        batch_weight: w_b, likewise.
        class_weight: w_c, likewise.
        confidence_quantile: None, or a number in [0, 1]: then only the examples whose largest
            teacher probability is up to this quantile of the batch are anchors of the first two
            parts, and only the classes whose probabilities' sum over the batch is up to this
            quantile of all classes are rows of the third. The authors' code has 0.5 for the weak
            view. The divisors stay.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, there is no temperature or one is not positive and
            finite, a weight is negative, or the quantile is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import multi_level_loss
        >>> student = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> teacher = jnp.array([[9.0, 0.0], [0.0, 9.0]])
        >>> print(multi_level_loss(student, teacher, temperatures=(1.0, 2.0)).mean())
        17.171

    References:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", 2023, CVPR, section 3.

    Differs from the authors' code: the confidences choose examples and classes, as its comments
    have it, where in the code they scale a sum that is already reduced; and all parts use the view
    that they are given.
    """
    name = "multi_level_loss"
    rows = _predictions.as_predictions(name, student_logits, teacher_logits, axis, where, mask)
    uncertain, uncommon = _unsure(name, rows, confidence_quantile)

    def levels(temperature: Array) -> tuple[Array, Array, Array]:
        t = jnp.broadcast_to(temperature, (*rows.valid.shape, 1))
        instance = jnp.squeeze(t * t, -1) * _exact.tempered_kl(rows.student, rows.teacher, t)
        squares = jnp.square(_predictions.gram_gap(*rows.gaps(t), "ic,jc->ij"))
        by_class = jnp.where(uncommon, _predictions.class_rows(rows, t), 0)
        return instance, jnp.sum(squares, axis=-1), jnp.sum(by_class) / rows.num_classes

    parts = jax.vmap(levels)(_as_temperatures(name, temperatures, rows.student.dtype))
    instance, batch, classes = (jnp.sum(part, axis=0) for part in parts)
    anchors = _classes.weighted(name, "instance_weight", instance_weight, instance)
    anchors += _classes.weighted(name, "batch_weight", batch_weight, batch.reshape(anchors.shape))
    shared = jnp.broadcast_to(classes, anchors.shape)
    shared = _classes.weighted(name, "class_weight", class_weight, shared)
    return jnp.where(rows.valid, jnp.where(uncertain, anchors, 0) + shared, 0)


def _as_temperatures(name: str, temperatures: Any, dtype: Any) -> Array:
    if not isinstance(temperatures, jax.Array):
        for temperature in temperatures:
            _checks.check_number(name, "temperatures", temperature, low=0.0, open_low=True)
    array = jnp.asarray(temperatures, dtype)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: temperatures has shape {array.shape}, expected some on one axis")
    return array


def _unsure(name: str, rows: _predictions.Predictions, quantile: Any) -> tuple[Array, Array]:
    """Mark the examples and the classes whose confidence is up to the quantile."""
    if quantile is None:
        return jnp.ones_like(rows.valid), jnp.ones(rows.exists.shape[-1], bool)
    _checks.check_number(name, "confidence_quantile", quantile, low=0.0, high=1.0)
    probs = jnp.exp(_exact.log_softmax(rows.teacher, _classes.at_one(rows.teacher)))
    probs = jnp.where(rows.valid[..., None], probs, 0).reshape(-1, probs.shape[-1])
    counted = (rows.exists & rows.valid[..., None]).reshape(probs.shape)

    def low(confidence: Array, counts: Array) -> Array:
        known = jnp.where(counts, confidence, jnp.nan)
        return confidence <= jnp.nanquantile(known, jnp.asarray(quantile, known.dtype))

    uncertain = low(jnp.max(probs, axis=-1), rows.valid.reshape(-1))
    uncommon = low(jnp.sum(probs, axis=0), jnp.any(counted, axis=0))
    return uncertain.reshape(rows.valid.shape), uncommon
