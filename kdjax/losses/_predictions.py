"""Predictions of a batch, of which rows and columns are related."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _classes, _exact

Array = jax.Array


class Predictions(NamedTuple):
    """Logits [..., num_classes], 0 at examples that do not count; which classes and examples do."""

    student: Array
    teacher: Array
    exists: Array
    valid: Array

    @property
    def num_classes(self) -> Array:
        """How many classes some example has."""
        counted = (self.exists & self.valid[..., None]).reshape(-1, self.exists.shape[-1])
        return jnp.maximum(jnp.sum(jnp.any(counted, axis=0)), 1)

    def probs(self, t: Array) -> tuple[Array, Array, Array, Array]:
        """Probabilities of both, which classes there are, and which examples count [..., 1]."""
        q, p = (jnp.exp(_exact.log_softmax(x, t)) for x in (self.student, self.teacher))
        return q, p, self.exists, self.valid[..., None]

    def gaps(self, t: Array) -> tuple[Array, Array, Array]:
        """Probabilities of both and their exact difference, [examples, num_classes]."""
        q, p, _, valid = self.probs(t)
        gap = _exact.probability_gap(self.student, self.teacher, t)
        q, p, gap = (jnp.where(valid, x, 0).reshape(-1, x.shape[-1]) for x in (q, p, gap))
        return q, p, gap


def as_predictions(
    name: str, student: Any, teacher: Any, axis: int, where: Array | None, mask: Any
) -> Predictions:
    """Check and widen logits; rows that do not count become 0, the teacher's constant."""
    pair = _checks.as_pair(name, ("student_logits", "teacher_logits"), student, teacher)
    exists = ~jnp.isneginf(_checks.select_classes(name, jnp.zeros_like(pair[0]), where, axis))
    student, teacher = (_checks.select_classes(name, x, where, axis) for x in pair)
    valid = _classes.as_examples(name, mask, student)
    student, teacher = (jnp.where(valid[..., None], x, 0) for x in (student, teacher))
    return Predictions(student, jax.lax.stop_gradient(teacher), exists, valid)


def gram_gap(q: Array, p: Array, gap: Array, sums: str) -> Array:
    """Products q q' - p p' as (q - p) q' + p (q - p)', which keeps the digits of q - p."""
    first = jnp.einsum(sums, gap, q, precision="highest")
    return first + jnp.einsum(sums, p, gap, precision="highest")


def class_rows(rows: Predictions, t: Array) -> Array:
    """Squared differences of a class's correlations with all classes, [num_classes]."""
    return jnp.sum(jnp.square(gram_gap(*rows.gaps(t), "ic,id->cd")), axis=-1)
