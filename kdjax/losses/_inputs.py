"""What all losses do with their arguments: widen them, check them, give them one shape.

`function` is everywhere the name of the public function and `name` that of its argument: errors
name both, with the shapes. Every check raises a TypeError for a wrong type, and a ValueError for a
shape that does not fit or a Python number out of its range. Student and teacher come back in one
type, float32 or wider.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from kdjax.losses._numerics import pooling, relations

Names = tuple[str, str]
Pair = tuple[Array, Array]
Mask = Array | None

FEATURES: Names = ("student_features", "teacher_features")
LOGITS: Names = ("student_logits", "teacher_logits")
LOG_PROBS: Names = ("student_log_probs", "teacher_log_probs")


def as_type(function: str, name: str, x: Array, kind: DTypeLike, expected: str) -> Array:
    """Return an array; its type must be of a kind."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, kind):
        raise TypeError(f"{function}: {name} has dtype {x.dtype}, expected {expected}")
    return x


def as_floats(function: str, name: str, x: Array) -> Array:
    """Return an array of any floating type as float32 or wider."""
    x = as_type(function, name, x, jnp.floating, "a floating type")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_booleans(function: str, name: str, x: Array) -> Array:
    """Return an array of booleans."""
    return as_type(function, name, x, jnp.bool_, "bool")


def both(
    convert: Callable[[str, str, Array], Array], function: str, pair: Pair, names: Names = FEATURES
) -> Pair:
    """Return student and teacher, each converted under its own name."""
    return convert(function, names[0], pair[0]), convert(function, names[1], pair[1])


def as_pair(function: str, student: Array, teacher: Array, names: Names = FEATURES) -> Pair:
    """Return student and teacher of one shape; nothing is broadcast."""
    first, second = both(as_floats, function, (student, teacher), names)
    check_shape(function, names[1], second, first.shape, names[0])
    return _of_one_type(first, second)


def as_features(
    function: str, student: Array, teacher: Array, names: Names = FEATURES, width: str = ""
) -> Pair:
    """Return features of one shape, with axes behind the batch; the teacher's are constant."""
    student, teacher = as_pair(function, student, teacher, names)
    check_fits(student.ndim >= 2, function, names[0], student, f"[batch, ...{width}]")
    return student, jax.lax.stop_gradient(teacher)


def as_map(function: str, name: str, x: Array) -> Array:
    """Return a feature map, [batch, positions..., channels]."""
    x = as_floats(function, name, x)
    check_fits(x.ndim >= 3, function, name, x, "[batch, positions..., channels]")
    return x


def as_image(function: str, name: str, x: Array) -> Array:
    """Return a feature map with two axes of positions, [batch, height, width, channels]."""
    x = as_floats(function, name, x)
    check_fits(x.ndim == 4, function, name, x, "[batch, height, width, channels]")
    return x


def as_one_size(function: str, first: Array, second: Array, names: Names = FEATURES) -> Pair:
    """Return features [batch, ..., channels] in one size: the larger is averaged along an axis."""
    first, second = both(as_floats, function, (first, second), names)
    one, two = first.shape, second.shape
    expected = f"[batch, ..., channels] with the number of axes and examples of {names[0]}, {one}"
    fits = len(one) >= 2 and len(one) == len(two) and one[0] == two[0]
    check_fits(fits, function, names[1], second, expected)
    sizes = [min(n, m) for n, m in zip(one[1:-1], two[1:-1], strict=True)]
    first, second = _of_one_type(first, second)
    return pooling.average_pool(first, sizes), pooling.average_pool(second, sizes)


def as_maps(function: str, student: Array, teacher: Array) -> Pair:
    """Return two feature maps of any widths in one size; the teacher's is constant."""
    student, teacher = as_one_size(function, *both(as_map, function, (student, teacher)))
    return student, jax.lax.stop_gradient(teacher)


def as_like_maps(function: str, student: Array, teacher: Array, names: Names = FEATURES) -> Pair:
    """Return two features of as many channels in one size; the teacher's is constant."""
    first, second = as_one_size(function, student, teacher, names)
    expected = f"the channels of {names[0]}, {jnp.shape(student)}"
    check_fits(first.shape == second.shape, function, names[1], teacher, expected)
    return first, jax.lax.stop_gradient(second)


def as_channels(function: str, name: str, x: float | Array, like: Array) -> Array:
    """Return a number or one for each channel, [channels], in the shape and type of features."""
    x = _one_per(function, name, jnp.asarray(x, like.dtype), like.shape[-1:], "channel")
    return jnp.broadcast_to(x, like.shape)


def as_feature_batch(
    function: str, student: Array, teacher: Array, mask: Mask
) -> relations.FeatureBatch:
    """Flatten features of any two widths; masked rows become 0, the teacher's constant."""
    first, second = both(as_floats, function, (student, teacher))
    check_fits(first.ndim >= 2, function, "student_features", first, "[batch, ...]")
    check_fits(second.ndim >= 2, function, "teacher_features", second, "[batch, ...]")
    expected = f"a batch of {len(first)} like student_features of shape {first.shape}"
    check_fits(len(first) == len(second), function, "teacher_features", second, expected)
    valid = as_mask(function, mask, len(first))
    flat = _of_one_type(*(x.reshape(len(x), -1) for x in (first, second)))
    student, teacher = (jnp.where(valid[:, None], x, 0) for x in flat)
    num_valid = jnp.sum(valid, dtype=student.dtype)
    return relations.FeatureBatch(student, jax.lax.stop_gradient(teacher), valid, num_valid)


def as_logits(
    function: str, student: Array, teacher: Array, axis: int, where: Mask, names: Names = LOGITS
) -> Pair:
    """Return logits of one shape, classes last, as `where` selects; the teacher's are constant."""
    student, teacher = as_log_probs(function, student, teacher, axis, where, names)
    return student, jax.lax.stop_gradient(teacher)


def as_log_probs(
    function: str, student: Array, teacher: Array, axis: int, where: Mask, names: Names = LOG_PROBS
) -> Pair:
    """Return log-probabilities of one shape, classes last, as `where` selects."""
    pair = as_pair(function, student, teacher, names)
    student, teacher = (select_classes(function, x, where, axis) for x in pair)
    return student, teacher


def as_logit_batch(
    function: str, student: Array, teacher: Array, axis: int, where: Mask, mask: Mask
) -> relations.LogitBatch:
    """Return logits whose examples are related; those that do not count become 0."""
    pair = as_pair(function, student, teacher, LOGITS)
    exists = ~jnp.isneginf(select_classes(function, jnp.zeros_like(pair[0]), where, axis))
    student, teacher = (select_classes(function, x, where, axis) for x in pair)
    valid = as_examples(function, mask, student)
    student, teacher = (jnp.where(valid[..., None], x, 0) for x in (student, teacher))
    return relations.LogitBatch(student, jax.lax.stop_gradient(teacher), exists, valid)


def as_classes(function: str, name: str, logits: Array, axis: int, where: Mask) -> Array:
    """Return the logits of one network, classes last, as `where` selects."""
    return select_classes(function, as_floats(function, name, logits), where, axis)


def select_classes(function: str, x: Array, where: Mask, axis: int) -> Array:
    """Move the class axis to the end and put -inf at classes that `where` leaves out."""
    if where is not None:
        where = as_booleans(function, "where", where)
        sizes = zip(where.shape[::-1], x.shape[::-1], strict=False)
        fits = where.ndim <= x.ndim and all(n in (1, m) for n, m in sizes)
        expected = f"one that broadcasts to {x.shape} like the logits"
        check_fits(fits, function, "where", where, expected)
        x = jnp.where(jnp.broadcast_to(where, x.shape), x, -jnp.inf)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis is {axis}, the logits have shape {x.shape}")
    return jnp.moveaxis(x, axis % x.ndim, -1)


def as_chosen(function: str, labels: Array, x: Array) -> Array:
    """Return which class each example's label is, [..., num_classes], like the logits x.

    A label that is no class is an error, unless it is traced.
    """
    labels = as_type(function, "labels", labels, jnp.integer, "integer")
    check_shape(function, "labels", labels, x.shape[:-1], "the examples")
    _check_labels(function, labels, x.shape[-1])
    return jax.nn.one_hot(labels, x.shape[-1], dtype=bool)


def as_mask(function: str, mask: Mask, size: int) -> Array:
    """Return which examples count, [batch]; all of them for None."""
    if mask is None:
        return jnp.ones(size, bool)
    mask = as_booleans(function, "mask", mask)
    check_shape(function, "mask", mask, (size,), "the batch")
    return mask


def as_examples(function: str, mask: Mask, x: Array) -> Array:
    """Return which examples of logits [..., num_classes] count, [...]; all of them for None.

    A mask has the shape of the leading axes, as many as it has.
    """
    batch = x.shape[:-1]
    if mask is None:
        return jnp.ones(batch, bool)
    mask = as_booleans(function, "mask", mask)
    check_shape(function, "mask", mask, batch[: mask.ndim], "the examples")
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(batch) - mask.ndim)), batch)


def as_temperature(function: str, temperature: float | Array, x: Array) -> Array:
    """Return a positive temperature for every example of x, classes last, as [..., 1]."""
    check_number(function, "temperature", temperature, low=0.0, open_low=True)
    array = jnp.asarray(temperature, x.dtype)
    if array.ndim == x.ndim and array.shape[-1] == 1:
        array = jnp.squeeze(array, -1)
    array = _one_per(function, "temperature", array, x.shape[:-1], "example")
    return jnp.broadcast_to(array, x.shape[:-1])[..., None]


def as_fraction(function: str, name: str, value: float | Array, x: Array) -> Array:
    """Return a share in [0, 1] for every example of x, classes last, as [..., 1]."""
    check_number(function, name, value, low=0.0, high=1.0)
    array = _one_per(function, name, jnp.asarray(value, x.dtype), x.shape[:-1], "example")
    return jnp.broadcast_to(array, x.shape[:-1])[..., None]


def weighted(function: str, name: str, weight: float | Array, values: Array) -> Array:
    """Multiply by a weight, () or [...]; a number of 0 gives 0 even where a value is infinite."""
    check_number(function, name, weight, low=0.0)
    if isinstance(weight, int | float) and weight == 0:
        return jnp.zeros_like(values)
    weight = jnp.asarray(weight, values.dtype)
    if weight.ndim:
        check_shape(function, name, weight, values.shape, "the examples")
    return weight * values


def check_fits(fits: bool, function: str, name: str, x: Array, expected: str) -> None:
    """Raise a ValueError with the expected shape unless that of x fits."""
    if not fits:
        raise ValueError(f"{function}: {name} has shape {jnp.shape(x)}, expected {expected}")


def check_shape(function: str, name: str, x: Array, shape: tuple[int, ...], like: str) -> None:
    """Raise a ValueError unless the shape of x is the expected one."""
    check_fits(x.shape == shape, function, name, x, f"{shape} like {like}")


def check_count(function: str, name: str, value: int) -> None:
    """Check a number of things: a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{function}: {name} is {value!r}, expected an integer")
    if value < 1:
        raise ValueError(f"{function}: {name} is {value}, expected 1 or more")


def check_number(
    function: str,
    name: str,
    value: float | Array,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Check a hyper-parameter that is a Python number; arrays pass, they may be traced."""
    if isinstance(value, Array | np.ndarray):
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{function}: {name} is {value!r}, expected a number or an array")
    inside = value > low if open_low else value >= low
    if not (inside and value <= high and math.isfinite(value)):
        left = "(" if open_low or math.isinf(low) else "["
        right = ")" if math.isinf(high) else "]"
        raise ValueError(f"{function}: {name} is {value}, expected in {left}{low}, {high}{right}")


def _check_labels(function: str, labels: Array, num_classes: int) -> None:
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


def _one_per(function: str, name: str, x: Array, shape: tuple[int, ...], what: str) -> Array:
    """Return a number, or one for each example or channel, whose shape fits."""
    check_fits(x.shape in ((), shape), function, name, x, f"() or {shape}, one for each {what}")
    return x


def _of_one_type(first: Array, second: Array) -> Pair:
    wide = jnp.promote_types(first.dtype, second.dtype)
    return first.astype(wide), second.astype(wide)
