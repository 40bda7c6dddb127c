"""Examples as rows, and what relates each row of a batch to the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _norms

Array = jax.Array

# A batch is related anchor by anchor, as many at once as have intermediates of this many numbers.
_MAX_ELEMENTS = 2**22


class Rows(NamedTuple):
    """Student and teacher [batch, width], 0 at rows that do not count; mask [batch]; its sum."""

    student: Array
    teacher: Array
    mask: Array
    num_valid: Array


def as_rows(function: str, student: Any, teacher: Any, mask: Any) -> Rows:
    """Flatten and widen features of any two widths; the teacher's become constant.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, or there is no axis behind the batch.
    """
    names = ("student_features", "teacher_features")
    pair = [
        _checks.as_logits(function, n, x) for n, x in zip(names, (student, teacher), strict=True)
    ]
    for name, x in zip(names, pair, strict=True):
        if x.ndim < 2:
            raise ValueError(f"{function}: {name} has shape {x.shape}, expected [batch, ...]")
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"{function}: teacher_features has shape {pair[1].shape}, expected a batch of "
            f"{len(pair[0])} like student_features of shape {pair[0].shape}"
        )
    valid = as_mask(function, mask, len(pair[0]))
    wide = jnp.promote_types(pair[0].dtype, pair[1].dtype)
    flat = [x.reshape(len(x), -1).astype(wide) for x in pair]
    student, teacher = (jnp.where(valid[:, None], x, 0) for x in flat)
    return Rows(student, jax.lax.stop_gradient(teacher), valid, jnp.sum(valid, dtype=wide))


def as_mask(function: str, mask: Any, size: int) -> Array:
    """Return which examples count, [batch]; all of them for None.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if it has another shape.
    """
    if mask is None:
        return jnp.ones(size, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{function}: mask has dtype {mask.dtype}, expected bool")
    _checks.check_shape(function, "mask", mask.shape, (size,), "the batch")
    return mask


def pairs(mask: Array) -> Array:
    """Mark the pairs of two different rows that count, [batch, batch]."""
    return mask[:, None] & mask[None, :] & ~jnp.eye(len(mask), dtype=bool)


def gram(x: Array) -> Array:
    """Return the inner products of all pairs of rows, [batch, batch]."""
    return jnp.einsum("iw,jw->ij", x, x, precision="highest")


def distances(x: Array, mask: Array, *, squared: bool = False, eps: float | Array = 0.0) -> Array:
    """Return the distances of all pairs of rows, [batch, batch], from differences.

    Those from inner products have no digits left where two rows are close.

    Args:
        x: [batch, width].
        mask: [batch]; rows that do not count are at distance 0.
        squared: whether to leave out the root.
        eps: squared distances below it count as this much, with gradient 0.
    """
    squares = over_anchors(lambda row: jnp.sum(jnp.square(row[None, :] - x), axis=-1), x, x.size)
    squares = jnp.where(pairs(mask), jnp.maximum(squares, eps), 0)
    return squares if squared else _norms.safe_sqrt(squares)


def gap_in_units(student: Array, teacher: Array, student_unit: Array, teacher_unit: Array) -> Array:
    """Return student / student_unit - teacher / teacher_unit, the units positive.

    Not as a difference of quotients: with a fused multiply-add, equal ones would not cancel.
    """
    return (student - teacher * (student_unit / teacher_unit)) / student_unit


def over_anchors(fn: Callable[..., Array], anchors: Any, num_elements: int) -> Array:
    """Map a function over anchors in parallel, in rounds where that would take much memory.

    Rounds are computed again for the gradient. Each takes anchors from all over the batch, so
    that devices between which the batch is split all have a share of it.

    Args:
        fn: of one anchor.
        anchors: arrays [batch, ...].
        num_elements: the size of the intermediates of one anchor.

    Returns:
        What the function returns, [batch, ...].
    """
    batch = len(jax.tree.leaves(anchors)[0])
    num_rounds = -(-batch * num_elements // _MAX_ELEMENTS)
    if num_rounds <= 1:
        return jax.vmap(fn)(anchors)
    size = -(-batch // min(num_rounds, batch))
    num_rounds = -(-batch // size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, size * num_rounds - batch)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(padded.reshape(size, num_rounds, *x.shape[1:]), 0, 1)

    rounds = jax.lax.map(jax.checkpoint(jax.vmap(fn)), jax.tree.map(split, anchors))
    joined = jnp.swapaxes(rounds, 0, 1)
    return joined.reshape(size * num_rounds, *joined.shape[2:])[:batch]
