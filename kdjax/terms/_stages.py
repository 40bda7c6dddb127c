"""Terms of several stages: module paths of the student's features and the teacher's, in pairs."""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp

from kdjax.terms._base import feature_of, stateless, teacher_of
from kdjax.types import Array, Term, TermInputs

Paths = str | Sequence[str]
"""One module path, or one for each stage from the input to the output."""


def pair_paths(term: str, student: Paths, teacher: Paths) -> list[tuple[str, str]]:
    """Return pairs of paths.

    Raises:
        ValueError: if there are not as many, or none.
    """
    students, teachers = ([x] if isinstance(x, str) else list(x) for x in (student, teacher))
    if len(students) != len(teachers) or not students:
        raise ValueError(
            f"{term}: teacher_features are {teachers}, expected as many as student_features, "
            f"{students}, and at least one"
        )
    return list(zip(students, teachers, strict=True))


def stages(
    term: str, inputs: TermInputs, paths: Sequence[tuple[str, str]]
) -> list[tuple[Array, Array]]:
    """Return the features at pairs of paths."""
    teacher = teacher_of(inputs)
    return [
        (
            feature_of(term, "student", inputs.student, student_path),
            feature_of(term, "teacher", teacher, teacher_path),
        )
        for student_path, teacher_path in paths
    ]


def summed(
    term: str,
    loss: Callable[[Array, Array], Array],
    student_features: Paths,
    teacher_features: Paths,
) -> Term:
    """Sum a loss of two features over the stages, as a term that neither learns nor remembers."""
    paths = pair_paths(term, student_features, teacher_features)
    return stateless(lambda x: total(loss(*pair) for pair in stages(term, x, paths)))


def total(values: Iterable[Array]) -> Array:
    """Add arrays of one shape."""
    return functools.reduce(jnp.add, values)
