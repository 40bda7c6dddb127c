"""What relates the examples of a batch: pairs, inner products, distances, anchor by anchor."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from kdjax.losses._numerics import exact, norms

PyTree = Any

# Anchors are taken one round at a time, as many in a round as need this many numbers together.
_MAX_ELEMENTS = 2**22


class FeatureBatch(NamedTuple):
    """Student and teacher [batch, width], 0 at rows that do not count; mask [batch]; its sum."""

    student: Array
    teacher: Array
    mask: Array
    num_valid: Array


class LogitBatch(NamedTuple):
    """Logits [..., num_classes], 0 at examples that do not count; which classes and examples do."""

    student: Array
    teacher: Array
    exists: Array
    valid: Array

    @property
    def num_classes(self) -> Array:
        """Return how many classes some example has."""
        counted = rows(self.exists & self.valid[..., None])
        return jnp.maximum(jnp.sum(jnp.any(counted, axis=0), dtype=self.student.dtype), 1)

    def probs(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Return both probabilities, which classes there are, which examples count [..., 1]."""
        q, p = (jnp.exp(exact.log_softmax(x, t)) for x in (self.student, self.teacher))
        return q, p, self.exists, self.valid[..., None]

    def gaps(self, t: Array) -> tuple[Array, Array, Array]:
        """Return both probabilities and their exact difference, [examples, num_classes]."""
        q, p, _, valid = self.probs(t)
        gap = exact.probability_gap(self.student, self.teacher, t)
        q, p, gap = (rows(jnp.where(valid, x, 0)) for x in (q, p, gap))
        return q, p, gap


def rows(x: Array) -> Array:
    """Return [examples, num_classes] of [..., num_classes], of no examples too."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def whole(x: Array) -> Array:
    """Return an array that every device has all of, where the axes of the mesh are explicit.

    Rows that are split are so compared with all rows, and what comes of them is split as they are.
    """
    split = any(jax.typeof(x).sharding.spec)
    return jax.reshard(x, PartitionSpec(*[None] * x.ndim)) if split else x


def split_like(x: Array, like: Array) -> Array:
    """Return an array whose axes are split as the first ones of another are."""
    spec = PartitionSpec(*jax.typeof(like).sharding.spec[: x.ndim])
    return x if spec == jax.typeof(x).sharding.spec else jax.reshard(x, spec)


def pairs(mask: Array) -> Array:
    """Mark the pairs of two different rows that count, [batch, batch]."""
    return mask[:, None] & whole(mask)[None, :] & ~jnp.eye(len(mask), dtype=bool)


def gram(x: Array) -> Array:
    """Return the inner products of all pairs of rows, [batch, batch]."""
    return jnp.einsum("iw,jw->ij", x, whole(x), precision="highest")


def distances(
    x: Array, mask: Array, *, squared: bool = False, eps: float | Array = 0.0
) -> tuple[Array, Array]:
    """Return the distances of all pairs of rows, [batch, batch], from differences; and their unit.

    Those from inner products have no digits left where two rows are close. They are measured in
    units of the size of the rows, so that no square vanishes or overflows.

    Args:
        x: [batch, width].
        mask: [batch]; rows that do not count are at distance 0.
        squared: whether to leave out the root.
        eps: squared distances below it count as this much, with gradient 0.
    """
    unit = norms.unit_of(x, None)
    x, unit = x / unit, unit[0, 0]
    every = whole(x)
    squares = over_anchors(lambda y: jnp.sum(jnp.square(y[None, :] - every), axis=-1), x, x.size)
    # The root first: XLA makes eps / unit / unit a quotient by the unit's square, which vanishes.
    least = jnp.minimum(jnp.square(jnp.sqrt(eps) / unit), np.finfo(x.dtype).max ** 0.5)
    squares = jnp.where(pairs(mask), jnp.maximum(squares, least), 0)
    return squares if squared else norms.safe_sqrt(squares), unit


def gap_in_units(student: Array, teacher: Array, student_unit: Array, teacher_unit: Array) -> Array:
    """Return student / student_unit - teacher / teacher_unit, the units positive.

    Not as a difference of quotients: with a fused multiply-add, equal ones would not cancel.
    """
    return (student - teacher * (student_unit / teacher_unit)) / student_unit


def over_anchors(fn: Callable[[PyTree], Array], anchors: PyTree, num_elements: int) -> Array:
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
    size = -(-size // _num_shards(anchors)) * _num_shards(anchors)
    num_rounds = -(-batch // size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, size * num_rounds - batch)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(padded.reshape(size, num_rounds, *x.shape[1:]), 0, 1)

    rounds = jax.lax.map(jax.checkpoint(jax.vmap(fn)), jax.tree.map(split, anchors))
    joined = jnp.swapaxes(rounds, 0, 1)
    return joined.reshape(size * num_rounds, *joined.shape[2:])[:batch]


def _num_shards(anchors: PyTree) -> int:
    """Return over how many devices the anchors are split by explicit axes of a mesh."""
    sharding = jax.typeof(jax.tree.leaves(anchors)[0]).sharding
    axes = sharding.spec[0] or ()
    return math.prod(sharding.mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))


def gram_gap(q: Array, p: Array, gap: Array, sums: str) -> Array:
    """Return q q' - p p' as (q - p) q' + p (q - p)', which keeps the digits of q - p."""
    first = jnp.einsum(sums, gap, whole(q), precision="highest")
    return first + jnp.einsum(sums, p, whole(gap), precision="highest")


def class_rows(batch: LogitBatch, t: Array) -> Array:
    """Sum the squared differences of a class's correlations with all classes, [num_classes]."""
    q, p, gap = map(whole, batch.gaps(t))
    return jnp.sum(jnp.square(gram_gap(q, p, gap, "ic,id->cd")), axis=-1)
