"""What all losses do with their arguments: widen them, check them, give them one shape.

`function` is everywhere the name of the public function and `name` that of its argument: errors
name both, with the shapes. Every check raises a TypeError for a wrong type, and a ValueError for a
shape that does not fit. Student and teacher come back in one type, float32 or wider.

Values are checked where they are known before the program runs, in arrays as in Python numbers.
Where they are traced, a hyper-parameter out of its range is nan, and a label that is no class makes
its example nan: nothing that is made of them is plausible.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from kdjax.losses import _numbers
from kdjax.losses._numerics import exact, pooling, relations

Names = tuple[str, str]
Pair = tuple[Array, Array]
Mask = Array | None

FEATURES: Names = ("student_features", "teacher_features")
LOGITS: Names = ("student_logits", "teacher_logits")
LOG_PROBS: Names = ("student_log_probs", "teacher_log_probs")


class TopK(NamedTuple):
    """A teacher's largest logits, or log-probabilities, and their classes, [..., k] both.

    Every other class has no mass: -inf. So has one that is negative or beyond the student's. None
    stands twice in a row. Public as `kdjax.heads.TopK`.
    """

    logits: Array
    indices: Array


def in_full(top: TopK, size: int) -> Array:
    """Return logits of as many classes, [..., size], float32 or wider, -inf where none is given."""
    logits, ids = (x.reshape(-1, x.shape[-1]) for x in (top.logits, in_wide(top.indices)))
    ids = jnp.where(ids < 0, size, ids)
    nothing = jnp.full((len(ids), size), -jnp.inf, jnp.promote_types(jnp.float32, logits.dtype))
    rows = jnp.arange(len(ids))[:, None]
    full = nothing.at[rows, ids].max(logits.astype(nothing.dtype), mode="drop")
    return full.reshape(*top.logits.shape[:-1], size)


class Labels(NamedTuple):
    """Which class each label is, [..., num_classes]; whether it is one; which to leave out."""

    chosen: Array
    valid: Array
    ignored: Mask

    def of(self, values: Array) -> Array:
        """Return values [...], 0 where the label is to be ignored, nan where it is no class."""
        values = jnp.where(self.valid, values, jnp.nan)
        return values if self.ignored is None else jnp.where(self.ignored, 0, values)

    def counting(self, logits: Array) -> Array:
        """Return logits [..., num_classes], 0 where the label is to be ignored.

        What is nan there, as behind the attention of a row of padding, would be so in gradients.
        """
        return logits if self.ignored is None else jnp.where(self.ignored[..., None], 0, logits)


def as_type(function: str, name: str, x: Array, kind: DTypeLike, expected: str) -> Array:
    """Return an array; its type must be of a kind."""
    if isinstance(x, TopK):
        raise TypeError(f"{function}: {name} is a TopK, expected an array; kd_loss takes both")
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError):
        given = "None" if x is None else f"of type {type(x).__name__}"
        raise TypeError(f"{function}: {name} is {given}, expected an array") from None
    if not jnp.issubdtype(x.dtype, kind):
        raise TypeError(f"{function}: {name} has dtype {x.dtype}, expected {expected}")
    return x


def as_floats(function: str, name: str, x: Array) -> Array:
    """Return an array of any floating type as float32 or wider."""
    x = as_type(function, name, x, jnp.floating, "a floating type")
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


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


def as_channels(
    function: str, name: str, x: float | Array, like: Array, limits: _numbers.Limits
) -> Array:
    """Return a number or one for each channel, [channels], in the shape and type of features."""
    per = like.shape[-1:]
    x = _numbers.as_number(function, name, x, like.dtype, limits, per=per, what="channel")
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape)


def as_feature_batch(
    function: str, student: Array, teacher: Array, mask: Mask
) -> relations.FeatureBatch:
    """Flatten features of any two widths; masked rows become 0, the teacher's constant."""
    first, second = both(as_floats, function, (student, teacher))
    check_fits(first.ndim >= 2, function, "student_features", first, "[batch, ...]")
    check_fits(second.ndim >= 2, function, "teacher_features", second, "[batch, ...]")
    expected = f"a batch of {len(first)} like student_features of shape {first.shape}"
    check_fits(len(first) == len(second), function, "teacher_features", second, expected)
    flat = _of_one_type(*map(pooling.flat, (first, second)))
    valid = relations.split_like(as_mask(function, mask, len(first)), flat[0])
    student, teacher = (jnp.where(valid[:, None], x, 0) for x in flat)
    num_valid = jnp.sum(valid, dtype=student.dtype)
    return relations.FeatureBatch(student, jax.lax.stop_gradient(teacher), valid, num_valid)


def as_logits(
    function: str,
    student: Array,
    teacher: Array,
    axis: int,
    where: Mask,
    names: Names = LOGITS,
    fewest: int = 2,
) -> Pair:
    """Return logits of one shape, classes last, as `where` selects; the teacher's are constant."""
    student, teacher = as_log_probs(function, student, teacher, axis, where, names, fewest)
    return student, jax.lax.stop_gradient(teacher)


def as_log_probs(
    function: str,
    student: Array,
    teacher: Array,
    axis: int,
    where: Mask,
    names: Names = LOG_PROBS,
    fewest: int = 2,
) -> Pair:
    """Return log-probabilities of one shape, classes last, as `where` selects."""
    first, second = as_pair(function, student, teacher, names)
    student = select_classes(function, names[0], first, where, axis, fewest)
    return student, select_classes(function, names[1], second, where, axis, fewest)


def as_top(
    function: str, student: Array, teacher: TopK, axis: int, where: Mask
) -> tuple[Array, TopK]:
    """Return a student's logits, classes last, and the teacher's largest: -inf where none is."""
    x = as_classes(function, LOGITS[0], student, axis, where)
    name = LOGITS[1]
    logits = jax.lax.stop_gradient(as_floats(function, f"{name}.logits", teacher.logits))
    ids = as_integers(function, f"{name}.indices", teacher.indices)
    fits = logits.ndim == x.ndim and logits.shape[:-1] == x.shape[:-1]
    expected = f"{x.shape[:-1]} like the examples, and one axis more"
    check_fits(fits, function, f"{name}.logits", logits, expected)
    check_shape(function, f"{name}.indices", ids, logits.shape, "its logits")
    x, logits = _of_one_type(x, logits)
    there = within(ids, x.shape[-1])
    ids = jnp.where(there, ids, 0)
    if where is not None:
        absent = select_classes(function, LOGITS[0], jnp.zeros(jnp.shape(student)), where, axis)
        there &= ~jnp.isneginf(exact.at(absent, ids))
    return x, TopK(jnp.where(there, logits, -jnp.inf), ids)


def as_logit_batch(
    function: str, student: Array, teacher: Array, axis: int, where: Mask, mask: Mask
) -> relations.LogitBatch:
    """Return logits whose examples are related; those that do not count become 0."""
    pair = as_pair(function, student, teacher, LOGITS)
    all_three = (jnp.zeros_like(pair[0]), *pair)
    absent, student, teacher = (
        select_classes(function, LOGITS[0], x, where, axis) for x in all_three
    )
    exists = ~jnp.isneginf(absent)
    valid = as_examples(function, mask, student)
    student, teacher = (jnp.where(valid[..., None], x, 0) for x in (student, teacher))
    return relations.LogitBatch(student, jax.lax.stop_gradient(teacher), exists, valid)


def as_classes(function: str, name: str, logits: Array, axis: int, where: Mask) -> Array:
    """Return the logits of one network, classes last, as `where` selects."""
    return select_classes(function, name, as_floats(function, name, logits), where, axis)


def select_classes(
    function: str, name: str, x: Array, where: Mask, axis: int, fewest: int = 2
) -> Array:
    """Move the class axis to the end and put -inf at classes that `where` leaves out."""
    _check_axis(function, name, x, axis, fewest)
    if where is not None:
        where = as_booleans(function, "where", where)
        sizes = zip(where.shape[::-1], x.shape[::-1], strict=False)
        fits = where.ndim <= x.ndim and all(n in (1, m) for n, m in sizes)
        expected = f"one that broadcasts to {x.shape} like the logits"
        check_fits(fits, function, "where", where, expected)
        x = jnp.where(jnp.broadcast_to(where, x.shape), x, -jnp.inf)
    return jnp.moveaxis(x, axis, -1)


def as_integers(function: str, name: str, x: Array) -> Array:
    """Return an array of any integers in 32 bits or more."""
    return in_wide(as_type(function, name, x, jnp.integer, "integers"))


def in_wide(x: Array) -> Array:
    """Return integers in 32 bits or more: what the 8 of some are compared with would wrap."""
    return x.astype(jnp.int64 if x.dtype.itemsize > 4 else jnp.int32)


def within(x: Array, size: int) -> Array:
    """Return which integers, of any type, are from 0 to size - 1."""
    wide = in_wide(jnp.asarray(x))
    return (wide >= 0) & (wide < size)


def as_chosen(
    function: str, labels: Array, x: Array, ignore_label: int | None = None, mask: Mask = None
) -> Labels:
    """Return which class each example's label is, for the logits x [..., num_classes].

    A label that is no class is an error, unless it is traced, to be ignored, or masked.
    """
    integers = as_integers(function, "labels", labels)
    like = "the examples"
    if integers.shape == x.shape:
        like += "; class probabilities are of a floating type"
    check_shape(function, "labels", integers, x.shape[:-1], like)
    check_labels(function, labels, x.shape[-1], ignore_label, mask)
    ignored = None if ignore_label is None else integers == ignore_label
    valid = within(integers, x.shape[-1])
    return Labels(jax.nn.one_hot(integers, x.shape[-1], dtype=bool), valid, ignored)


def are_probs(labels: Array) -> bool:
    """Return whether labels are class probabilities: numbers of a floating type."""
    dtype = labels.dtype if hasattr(labels, "dtype") else np.asarray(labels).dtype
    return bool(jnp.issubdtype(dtype, jnp.floating))


def as_label_probs(
    function: str, labels: Array, x: Array, axis: int = -1, mask: Mask = None
) -> Array:
    """Return class probabilities as constants, classes last, shaped like the logits x are then.

    Those that do not sum to 1 are an error, unless they are traced, or masked.
    """
    probs = jnp.asarray(labels)
    shape = list(x.shape[:-1])
    shape.insert(axis % x.ndim, x.shape[-1])
    like = f"the logits; {x.shape[:-1]} integers are classes"
    check_shape(function, "labels", probs, tuple(shape), like)
    _check_sums(function, labels, axis, mask)
    return jax.lax.stop_gradient(jnp.moveaxis(probs, axis, -1).astype(x.dtype))


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
        mask = jnp.ones(batch, bool)
    mask = as_booleans(function, "mask", mask)
    check_shape(function, "mask", mask, batch[: mask.ndim], "the examples")
    mask = mask.reshape(mask.shape + (1,) * (len(batch) - mask.ndim))
    return relations.split_like(jnp.broadcast_to(mask, batch), x)


def as_temperature(
    function: str, temperature: float | Array, x: Array, name: str = "temperature"
) -> Array:
    """Return a positive temperature for every example of x, classes last, as [..., 1]."""
    return _per_example(function, name, temperature, x, _numbers.TEMPERATURE)


def as_fraction(function: str, name: str, value: float | Array, x: Array) -> Array:
    """Return a share in [0, 1] for every example of x, classes last, as [..., 1]."""
    return _per_example(function, name, value, x, _numbers.SHARE)


def weighted(function: str, name: str, weight: float | Array, values: Array) -> Array:
    """Multiply by a weight, () or [...]; a number of 0 gives 0 even where a value is infinite."""
    limits, per = _numbers.NOT_NEGATIVE, values.shape
    weight = _numbers.as_number(function, name, weight, values.dtype, limits, per=per)
    if isinstance(weight, int | float) and weight == 0:
        return jnp.zeros_like(values)
    return weight * values


def check_fits(fits: bool, function: str, name: str, x: Array, expected: str) -> None:
    """Raise a ValueError with the expected shape unless that of x fits."""
    if not fits:
        raise ValueError(f"{function}: {name} has shape {jnp.shape(x)}, expected {expected}")


def check_shape(function: str, name: str, x: Array, shape: tuple[int, ...], like: str) -> None:
    """Raise a ValueError unless the shape of x is the expected one."""
    check_fits(x.shape == shape, function, name, x, f"{shape} like {like}")


def _per_example(
    function: str, name: str, value: float | Array, x: Array, limits: _numbers.Limits
) -> Array:
    """Return a number for every example of x, classes last, as [..., 1]."""
    per = x.shape[:-1]
    if np.shape(value) == (*per, 1):
        value = jnp.squeeze(jnp.asarray(value), -1)
    value = _numbers.as_number(function, name, value, x.dtype, limits, per=per)
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), per)[..., None]


def _check_axis(function: str, name: str, x: Array, axis: int, fewest: int) -> None:
    """Raise unless the axis is one of x, with classes enough for a softmax to say something."""
    if not -x.ndim <= _numbers.as_index(function, "axis", axis) < x.ndim:
        raise ValueError(f"{function}: axis is {axis}, the logits have shape {x.shape}")
    if x.shape[axis] < min(fewest, 1):
        raise ValueError(f"{function}: {name} has shape {x.shape}, no classes on axis {axis}")
    if x.shape[axis] < fewest:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}, one class on axis {axis}, whose probability "
            "is always 1; for a sigmoid's logit take sigmoid_kd_loss and binary_cross_entropy"
        )


def check_labels(
    function: str, labels: Any, num_classes: int, ignored: int | None, mask: Mask
) -> None:
    """Raise on a label that counts and is no class, where it is known before the program runs."""
    numbers, counts = _numbers.known(labels), _numbers.known(True if mask is None else mask)
    if numbers is None or counts is None:
        return
    wrong = numbers[((numbers < 0) | (numbers >= num_classes)) & (numbers != ignored) & counts]
    if wrong.size:
        raise ValueError(
            f"{function}: labels has {wrong[0]}, expected 0 to {num_classes - 1} for {num_classes} "
            f"classes; a mask, or a loss's ignore_label={wrong[0]}, leaves such examples out"
        )


def _check_sums(function: str, labels: Any, axis: int, mask: Mask) -> None:
    """Raise on a row that counts and is no distribution, where it is known."""
    probs, counts = _numbers.known(labels), _numbers.known(True if mask is None else mask)
    if probs is None or counts is None:
        return
    probs = np.moveaxis(probs.astype(np.float32), axis, -1)
    fits = (np.abs(probs.sum(-1) - 1) <= 0.01) & np.all(probs >= 0, axis=-1)
    if not np.all(fits | ~counts):
        row = probs[~fits & counts][0]
        raise ValueError(
            f"{function}: labels has a row from {row.min():.3g} to {row.max():.3g} with sum "
            f"{row.sum():.3g}, expected probabilities of classes, which sum to 1"
        )


def _of_one_type(first: Array, second: Array) -> Pair:
    wide = max(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
    return first.astype(wide), second.astype(wide)
