"""How terms read what they are given: the teacher's outputs, features by module path."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kdjax.metrics import examples_of, mean_of, spread
from kdjax.types import Array, Outputs, TermInputs

Paths = str | Sequence[str]
"""One module path, or one for each stage from the input to the output."""


def teacher_of(inputs: TermInputs) -> Outputs:
    """Return the teacher's outputs.

    Raises:
        ValueError: if the step was given none.
    """
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher's outputs, but the step was given none")
    return inputs.teacher


def feature_of(term: str, whose: str, outputs: Outputs, name: str) -> Array:
    """Return a captured feature, or under the name "logits" what the network answers.

    Args:
        term: the term that asks, for the message.
        whose: "student" or "teacher", for the message too.
        outputs: of that network.
        name: the feature's module path.

    Raises:
        ValueError: if the network captured no feature of that name.
    """
    if name == "logits" and name not in outputs.features:
        return outputs.logits
    if name not in outputs.features:
        raise ValueError(
            f"{term}: the {whose} captured no feature {name!r}, only {sorted(outputs.features)}"
        )
    return outputs.features[name]


def pair_of(term: str, inputs: TermInputs, student: str, teacher: str) -> tuple[Array, Array]:
    """Return the student's and the teacher's feature at a pair of paths."""
    return (
        feature_of(term, "student", inputs.student, student),
        feature_of(term, "teacher", teacher_of(inputs), teacher),
    )


def paths_of(paths: Paths) -> list[str]:
    """Return paths as a list, of one where they are a string."""
    return [paths] if isinstance(paths, str) else list(paths)


def pair_paths(term: str, student: Paths, teacher: Paths) -> list[tuple[str, str]]:
    """Return pairs of paths.

    Raises:
        ValueError: if there are not as many, or none.
    """
    students, teachers = paths_of(student), paths_of(teacher)
    if len(students) != len(teachers) or not students:
        raise ValueError(
            f"{term}: teacher_features are {teachers}, expected as many as student_features, "
            f"{students}, and at least one"
        )
    return list(zip(students, teachers, strict=True))


def at_positions(loss: Callable[..., Array], mask: Array, **features: Array) -> Array:
    """Return the values of a loss that averages over positions, one for each of them.

    Args:
        loss: of features [batch, ..., channels], by keyword.
        mask: [batch], or [batch, positions...].
        **features: [batch, positions..., channels], alike but for the channels.

    Returns:
        [batch, positions...], or one value per example where the mask or the features have no
        positions of which the other tells.
    """
    related = all(x.ndim == mask.ndim + 1 for x in features.values())
    if mask.ndim > 1 and related and len({x.shape[:-1] for x in features.values()}) == 1:
        return _mapped(loss, mask.ndim - 1)(features)
    return loss(**features)


def _mapped(loss: Callable[..., Array], num_axes: int) -> Callable[..., Array]:
    def each(features: dict[str, Array]) -> Array:
        return loss(**features)

    for _ in range(num_axes):
        each = jax.vmap(each, in_axes=1, out_axes=1)
    return each


def summed(values: Array) -> Array:
    """Scale values of positions so that their mean is what they sum up to in an example."""
    return values * math.prod(values.shape[1:])


def rows_of(term: str, inputs: TermInputs, student: str, teacher: str) -> tuple[Array, Array]:
    """Return both features as rows, [batch, width], float32 or wider, for a map to learn on.

    The teacher's is constant, and padding, which may hold anything, is 0.
    """

    def rows(x: Array) -> Array:
        flat = x.reshape(len(x), -1)
        wide = flat.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.where(examples_of(inputs.mask)[:, None], wide, 0)

    own, taught = pair_of(term, inputs, student, teacher)
    return rows(own), rows(jax.lax.stop_gradient(taught))


def total(values: Sequence[Array], mask: Array) -> Array:
    """Add values of one grain; of several, those of positions are averaged for each example."""
    if len({x.shape for x in values}) > 1:
        values = [_of_examples(x, mask) for x in values]
    return functools.reduce(jnp.add, values)


def _of_examples(values: Array, mask: Array) -> Array:
    counts, axes = spread(mask, values.shape), tuple(range(1, values.ndim))
    count = jnp.sum(counts, axis=axes, dtype=values.dtype)
    return mean_of(jnp.sum(jnp.where(counts, values, 0), axis=axes), count)
