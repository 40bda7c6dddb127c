"""What all losses do with their arguments: widen them, check them, give them one shape.

`function` is everywhere the name of the public function and `name` that of its argument: errors
name both, with the shapes. Every check raises a TypeError for a wrong type, and a ValueError for a
shape that does not fit or a Python number out of its range. Student and teacher come back in one
type, float32 or wider.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses._numerics import pooling, relations

Names = tuple[str, str]
Pair = tuple[Array, Array]

FEATURES: Names = ("student_features", "teacher_features")
LOGITS: Names = ("student_logits", "teacher_logits")
LOG_PROBS: Names = ("student_log_probs", "teacher_log_probs")


def as_floats(function: str, name: str, x: Array) -> Array:
    """Return an array of any floating type as float32 or wider."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{function}: {name} has dtype {x.dtype}, expected a floating type")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_booleans(function: str, name: str, x: Array) -> Array:
    """Return an array of booleans."""
    x = jnp.asarray(x)
    if x.dtype != jnp.bool_:
        raise TypeError(f"{function}: {name} has dtype {x.dtype}, expected bool")
    return x


def as_pair(function: str, student: Array, teacher: Array, names: Names = FEATURES) -> Pair:
    """Return student and teacher of one shape; nothing is broadcast."""
    first, second = _widened(function, names, student, teacher)
    check_shape(function, names[1], second.shape, first.shape, names[0])
    return _of_one_type(first, second)


def as_features(
    function: str,
    student: Array,
    teacher: Array,
    names: Names = FEATURES,
    axes: str = "[batch, ...]",
) -> Pair:
    """Return features of one shape, with axes behind the batch; the teacher's are constant."""
    student, teacher = as_pair(function, student, teacher, names)
    if student.ndim < 2:
        raise ValueError(f"{function}: {names[0]} has shape {student.shape}, expected {axes}")
    return student, jax.lax.stop_gradient(teacher)


def as_map(function: str, name: str, x: Array) -> Array:
    """Return a feature map, [batch, positions..., channels]."""
    x = as_floats(function, name, x)
    if x.ndim < 3:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, expected [batch, positions..., channels]"
        )
    return x


def as_one_size(function: str, first: Array, second: Array, names: Names = FEATURES) -> Pair:
    """Return features [batch, ..., channels] in one size: the larger is averaged along an axis."""
    first, second = _widened(function, names, first, second)
    one, two = first.shape, second.shape
    if len(one) < 2 or len(one) != len(two) or one[0] != two[0]:
        raise ValueError(
            f"{function}: {names[1]} has shape {two}, expected [batch, ..., channels] with the "
            f"number of axes and examples of {names[0]}, {one}"
        )
    sizes = [min(n, m) for n, m in zip(one[1:-1], two[1:-1], strict=True)]
    first, second = _of_one_type(first, second)
    return pooling.average_pool(first, sizes), pooling.average_pool(second, sizes)


def as_maps(function: str, student: Array, teacher: Array) -> Pair:
    """Return two feature maps of any widths in one size; the teacher's is constant."""
    student, teacher = (
        as_map(function, *x) for x in zip(FEATURES, (student, teacher), strict=True)
    )
    student, teacher = as_one_size(function, student, teacher)
    return student, jax.lax.stop_gradient(teacher)


def as_like_maps(function: str, student: Array, teacher: Array, names: Names = FEATURES) -> Pair:
    """Return two features of as many channels in one size; the teacher's is constant."""
    first, second = as_one_size(function, student, teacher, names)
    if first.shape != second.shape:
        raise ValueError(
            f"{function}: {names[1]} has shape {jnp.shape(teacher)}, expected the channels of "
            f"{names[0]}, {jnp.shape(student)}"
        )
    return first, jax.lax.stop_gradient(second)


def as_channels(function: str, name: str, x: float | Array, like: Array) -> Array:
    """Return a number or one for each channel, [channels], in the shape and type of features."""
    x = jnp.asarray(x, like.dtype)
    if x.shape not in ((), like.shape[-1:]):
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, expected () or {like.shape[-1:]}, "
            "one for each channel"
        )
    return jnp.broadcast_to(x, like.shape)


def as_feature_batch(
    function: str, student: Array, teacher: Array, mask: Array | None
) -> relations.FeatureBatch:
    """Flatten features of any two widths; masked rows become 0, the teacher's constant."""
    first, second = _widened(function, FEATURES, student, teacher)
    for name, x in zip(FEATURES, (first, second), strict=True):
        if x.ndim < 2:
            raise ValueError(f"{function}: {name} has shape {x.shape}, expected [batch, ...]")
    if len(first) != len(second):
        raise ValueError(
            f"{function}: teacher_features has shape {second.shape}, expected a batch of "
            f"{len(first)} like student_features of shape {first.shape}"
        )
    valid = as_mask(function, mask, len(first))
    flat = _of_one_type(*(x.reshape(len(x), -1) for x in (first, second)))
    student, teacher = (jnp.where(valid[:, None], x, 0) for x in flat)
    num_valid = jnp.sum(valid, dtype=student.dtype)
    return relations.FeatureBatch(student, jax.lax.stop_gradient(teacher), valid, num_valid)


def as_logits(
    function: str,
    student: Array,
    teacher: Array,
    axis: int,
    where: Array | None,
    names: Names = LOGITS,
) -> Pair:
    """Return logits of one shape, classes last, as `where` selects; the teacher's are constant."""
    student, teacher = as_log_probs(function, student, teacher, axis, where, names)
    return student, jax.lax.stop_gradient(teacher)


def as_log_probs(
    function: str,
    student: Array,
    teacher: Array,
    axis: int,
    where: Array | None,
    names: Names = LOG_PROBS,
) -> Pair:
    """Return log-probabilities of one shape, classes last, as `where` selects."""
    pair = as_pair(function, student, teacher, names)
    student, teacher = (select_classes(function, x, where, axis) for x in pair)
    return student, teacher


def as_logit_batch(
    function: str,
    student: Array,
    teacher: Array,
    axis: int,
    where: Array | None,
    mask: Array | None,
) -> relations.LogitBatch:
    """Return logits whose examples are related; those that do not count become 0."""
    pair = as_pair(function, student, teacher, LOGITS)
    exists = ~jnp.isneginf(select_classes(function, jnp.zeros_like(pair[0]), where, axis))
    student, teacher = (select_classes(function, x, where, axis) for x in pair)
    valid = as_examples(function, mask, student)
    student, teacher = (jnp.where(valid[..., None], x, 0) for x in (student, teacher))
    return relations.LogitBatch(student, jax.lax.stop_gradient(teacher), exists, valid)


def select_classes(function: str, x: Array, where: Array | None, axis: int) -> Array:
    """Move the class axis to the end and put -inf at classes that `where` leaves out."""
    if where is not None:
        where = as_booleans(function, "where", where)
        try:
            chosen = jnp.broadcast_to(where, x.shape)
        except ValueError as error:
            raise ValueError(
                f"{function}: where has shape {where.shape}, expected one that broadcasts to "
                f"{x.shape} like the logits"
            ) from error
        x = jnp.where(chosen, x, -jnp.inf)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis is {axis}, the logits have shape {x.shape}")
    return jnp.moveaxis(x, axis % x.ndim, -1)


def as_chosen(function: str, labels: Array, x: Array) -> Array:
    """Return which class each example's label is, [..., num_classes], like the logits x.

    A label that is no class is an error, unless it is traced.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{function}: labels has dtype {labels.dtype}, expected integer")
    check_shape(function, "labels", labels.shape, x.shape[:-1], "the examples")
    _check_labels(function, labels, x.shape[-1])
    return jax.nn.one_hot(labels, x.shape[-1], dtype=bool)


def as_mask(function: str, mask: Array | None, size: int) -> Array:
    """Return which examples count, [batch]; all of them for None."""
    if mask is None:
        return jnp.ones(size, bool)
    mask = as_booleans(function, "mask", mask)
    check_shape(function, "mask", mask.shape, (size,), "the batch")
    return mask


def as_examples(function: str, mask: Array | None, x: Array) -> Array:
    """Return which examples of logits [..., num_classes] count, [...]; all of them for None.

    A mask has the shape of the leading axes, as many as it has.
    """
    batch = x.shape[:-1]
    if mask is None:
        return jnp.ones(batch, bool)
    mask = as_booleans(function, "mask", mask)
    check_shape(function, "mask", mask.shape, batch[: mask.ndim], "the examples")
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(batch) - mask.ndim)), batch)


def as_temperature(function: str, temperature: float | Array, x: Array) -> Array:
    """Return a positive temperature for every example of x, classes last, as [..., 1]."""
    check_number(function, "temperature", temperature, low=0.0, open_low=True)
    array = jnp.asarray(temperature, x.dtype)
    if array.ndim == x.ndim and array.shape[-1] == 1:
        array = jnp.squeeze(array, -1)
    return _one_per_example(function, "temperature", array, x)


def as_fraction(function: str, name: str, value: float | Array, x: Array) -> Array:
    """Return a share in [0, 1] for every example of x, classes last, as [..., 1]."""
    check_number(function, name, value, low=0.0, high=1.0)
    return _one_per_example(function, name, jnp.asarray(value, x.dtype), x)


def weighted(function: str, name: str, weight: float | Array, values: Array) -> Array:
    """Multiply by a weight, () or [...]; a number of 0 gives 0 even where a value is infinite."""
    check_number(function, name, weight, low=0.0)
    if isinstance(weight, int | float) and weight == 0:
        return jnp.zeros_like(values)
    weight = jnp.asarray(weight, values.dtype)
    if weight.ndim:
        check_shape(function, name, weight.shape, values.shape, "the examples")
    return weight * values


def check_shape(
    function: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...], like: str
) -> None:
    """Raise a ValueError unless a shape is the expected one."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{function}: {name} has shape {tuple(shape)}, expected {tuple(expected)} like {like}"
        )


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


def _one_per_example(function: str, name: str, array: Array, x: Array) -> Array:
    batch = x.shape[:-1]
    if array.shape not in ((), batch):
        raise ValueError(
            f"{function}: {name} has shape {array.shape}, expected () or {batch}, "
            "one for each example"
        )
    return jnp.broadcast_to(array, batch)[..., None]


def _widened(function: str, names: Names, first: Array, second: Array) -> Pair:
    return as_floats(function, names[0], first), as_floats(function, names[1], second)


def _of_one_type(first: Array, second: Array) -> Pair:
    wide = jnp.promote_types(first.dtype, second.dtype)
    return first.astype(wide), second.astype(wide)
