"""How terms read what they are given: the teacher's outputs, features by module path."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

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
    """Return a captured feature.

    Args:
        term: the term that asks, for the message.
        whose: "student" or "teacher", for the message too.
        outputs: of that network.
        name: the feature's module path.

    Raises:
        ValueError: if the network captured no feature of that name.
    """
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


def examples_of(mask: Array) -> Array:
    """Return which examples count, [batch], whatever a mask tells of their parts."""
    return jnp.any(mask, axis=tuple(range(1, mask.ndim))) if mask.ndim > 1 else mask


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


def total(values: Iterable[Array]) -> Array:
    """Add arrays of one shape."""
    return functools.reduce(jnp.add, values)
