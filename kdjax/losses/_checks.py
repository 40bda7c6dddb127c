"""Widening and checks that all losses share. Errors name function, argument and shapes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_logits(function: str, name: str, x: Any) -> jax.Array:
    """Return an array of float32 or wider.

    Args:
        function: the public function, for the message.
        name: its argument, for the message.
        x: an array of any floating type.

    Raises:
        TypeError: if it is none.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{function}: {name} has dtype {x.dtype}, expected a floating type")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_pair(function: str, names: Sequence[str], student: Any, teacher: Any) -> list[jax.Array]:
    """Return student and teacher in one type of float32 or wider, after checking their shapes.

    Raises:
        TypeError: if one is not of a floating type.
        ValueError: if their shapes differ; nothing is broadcast.
    """
    arrays = [as_logits(function, n, x) for n, x in zip(names, (student, teacher), strict=True)]
    check_shape(function, names[1], arrays[1].shape, arrays[0].shape, names[0])
    wide = jnp.promote_types(arrays[0].dtype, arrays[1].dtype)
    return [x.astype(wide) for x in arrays]


def check_shape(
    function: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...], like: str
) -> None:
    """Raise a ValueError unless a shape is the expected one."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{function}: {name} has shape {tuple(shape)}, expected {tuple(expected)} like {like}"
        )


def check_axis(function: str, x: jax.Array, axis: int) -> int:
    """Return the axis counted from the front.

    Raises:
        ValueError: if there is no such axis.
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis is {axis}, the logits have shape {x.shape}")
    return axis % x.ndim


def select_classes(
    function: str, x: jax.Array, where: Any, axis: int, dtype: Any = None
) -> jax.Array:
    """Move the class axis to the end and put -inf at classes that `where` leaves out.

    Raises:
        TypeError: if `where` is not boolean.
        ValueError: if it does not broadcast to the logits.
    """
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            raise TypeError(f"{function}: where has dtype {where.dtype}, expected bool")
        try:
            chosen = jnp.broadcast_to(where, x.shape)
        except ValueError as error:
            raise ValueError(
                f"{function}: where has shape {where.shape}, expected one that broadcasts to "
                f"{x.shape} like the logits"
            ) from error
        x = jnp.where(chosen, x, -jnp.inf)
    return jnp.moveaxis(x, check_axis(function, x, axis), -1)


def as_temperature(function: str, temperature: Any, x: jax.Array) -> jax.Array:
    """Return the temperature as an array with a class axis of one, [..., 1].

    Args:
        function: the public function, for the message.
        temperature: a number, checked; or an array, scalar or one entry per example.
        x: logits with the class axis at the end.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is a number and not positive and finite, or has another shape.
    """
    check_number(function, "temperature", temperature, low=0.0, open_low=True)
    array = jnp.asarray(temperature, x.dtype)
    batch = x.shape[:-1]
    if array.ndim == x.ndim and array.shape[-1] == 1:
        array = jnp.squeeze(array, -1)
    if array.shape not in ((), batch):
        raise ValueError(
            f"{function}: temperature has shape {array.shape}, expected () or {batch}, "
            "one for each example"
        )
    return jnp.broadcast_to(array, batch)[..., None]


def check_count(function: str, name: str, value: Any) -> None:
    """Check a number of things.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is not positive.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} is {value!r}, expected an integer")
    if value < 1:
        raise ValueError(f"{function}: {name} is {value}, expected 1 or more")


def check_number(
    function: str,
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Check a hyper-parameter that is a Python number; arrays pass, they may be traced.

    Raises:
        TypeError: if it is neither a number nor an array.
        ValueError: if it is nan, infinite or out of range.
    """
    if isinstance(value, jax.Array | np.ndarray):
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{function}: {name} is {value!r}, expected a number or an array")
    inside = value > low if open_low else value >= low
    if not (inside and value <= high and math.isfinite(value)):
        left = "(" if open_low or math.isinf(low) else "["
        right = ")" if math.isinf(high) else "]"
        raise ValueError(f"{function}: {name} is {value}, expected in {left}{low}, {high}{right}")


def check_labels(function: str, labels: jax.Array, num_classes: int) -> None:
    """Raise on a label that is no class, where the values are known before the program runs."""
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    with jax.ensure_compile_time_eval():  # known labels under a jit that closes over them, too
        low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{function}: labels has {low if low < 0 else high}, expected 0 to {num_classes - 1} "
            f"for {num_classes} classes"
        )
