"""What losses on the logits of a classifier share: classes last, one of them chosen."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks

Array = jax.Array


def as_classes(
    function: str, student: Any, teacher: Any, axis: int, where: Array | None
) -> tuple[Array, Array]:
    """Widen two logits of one shape, classes last and -inf where `where` is False.

    Returns:
        The student's, and the teacher's, which are constant.

    Raises:
        TypeError: if one is not of a floating type, or `where` is not boolean.
        ValueError: if a shape does not fit.
    """
    pair = _checks.as_pair(function, ("student_logits", "teacher_logits"), student, teacher)
    student, teacher = (_checks.select_classes(function, x, where, axis) for x in pair)
    return student, jax.lax.stop_gradient(teacher)


def as_chosen(function: str, labels: Any, x: Array) -> Array:
    """Return which class each example's label is, [..., num_classes].

    Args:
        function: the public function, for the message.
        labels: integer classes [...].
        x: logits, classes last.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if their shape does not fit, or one that is not traced is no class.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{function}: labels has dtype {labels.dtype}, expected integer")
    _checks.check_shape(function, "labels", labels.shape, x.shape[:-1], "the examples")
    _checks.check_labels(function, labels, x.shape[-1])
    return jax.nn.one_hot(labels, x.shape[-1], dtype=bool)


def labelled(chosen: Array, values: Array) -> Array:
    """Return the values, nan where a traced label was no class."""
    return jnp.where(jnp.any(chosen, axis=-1), values, jnp.nan)


def weighted(function: str, name: str, weight: Any, values: Array) -> Array:
    """Multiply by a weight; a number of 0 gives 0 even where a value is infinite.

    Raises:
        TypeError: if the weight is not a number.
        ValueError: if it is a negative number, or its shape is neither () nor the values'.
    """
    _checks.check_number(function, name, weight, low=0.0)
    if isinstance(weight, int | float) and weight == 0:
        return jnp.zeros_like(values)
    weight = jnp.asarray(weight, values.dtype)
    if weight.ndim:
        _checks.check_shape(function, name, weight.shape, values.shape, "the examples")
    return weight * values


def at_one(x: Array) -> Array:
    """Return the temperature 1 of every example, [..., 1]."""
    return jnp.ones((*x.shape[:-1], 1), x.dtype)


def over(x: Array, t: Array) -> Array:
    """Divide logits by a temperature; -inf stays, and has no gradient."""
    absent = jnp.isneginf(x)
    return jnp.where(absent, -jnp.inf, jnp.where(absent, 0, x) / t)


def spread(chosen: Array, exists: Array, confidence: Any) -> Array:
    """Return logarithms of probabilities that give one class its confidence.

    Args:
        chosen: the class, [..., num_classes].
        exists: which classes there are; the others share what is left, or have none.
        confidence: the chosen class's probability.
    """
    others = exists & ~chosen
    num_others = jnp.maximum(jnp.sum(others, axis=-1, keepdims=True), 1)
    rest = jnp.log1p(-confidence) - jnp.log(num_others)
    return jnp.where(chosen, jnp.log(confidence), jnp.where(others, rest, -jnp.inf))


def as_examples(function: str, mask: Any, x: Array) -> Array:
    """Return which examples count, [...]; all of them for None.

    Args:
        function: the public function, for the message.
        mask: boolean, the leading axes of [...], or None.
        x: logits [..., num_classes].

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if its shape is none of leading axes.
    """
    batch = x.shape[:-1]
    if mask is None:
        return jnp.ones(batch, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool")
    _checks.check_shape(function, "mask", mask.shape, batch[: mask.ndim], "the examples")
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(batch) - mask.ndim)), batch)
