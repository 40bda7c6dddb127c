"""What a loss should satisfy as mathematics."""

from typing import Any

import jax
import numpy as np

from kdjax.testing._compare import assert_close, assert_zero
from kdjax.testing._compile import compiled
from kdjax.testing._drawing import as_arrays
from kdjax.testing._subject import Subject


def holds_teacher_constant(subject: Subject) -> bool:
    """Whether a loss takes a teacher and says that it is data."""
    return subject.signature.teacher is not None and subject.options.teacher_is_data is True


def looks_at_both_alone(subject: Subject) -> bool:
    """Whether a loss takes a teacher and no labels."""
    return subject.signature.teacher is not None and subject.signature.labels is None


def softens_logits(subject: Subject) -> bool:
    """Whether a loss takes logits and a temperature."""
    return subject.signature.is_logits and isinstance(subject.signature.temperature, int | float)


def check_teacher_is_data(subject: Subject) -> None:
    """No gradient reaches the teacher."""
    words = "gradient by the teacher (jax.lax.stop_gradient on its input is missing)"
    assert_zero(subject.answer().teacher, words)


def check_nonnegative(subject: Subject) -> None:
    """No value is negative."""
    smallest = subject.answer().values.min()
    assert smallest >= -subject.options.zero_atol, f"the smallest value is {smallest:.3g}"


def check_zero_at_equality(subject: Subject) -> None:
    """The teacher as its own student costs nothing."""
    atol = subject.options.zero_atol
    if jax.tree.map(np.shape, subject.student) != jax.tree.map(np.shape, subject.teacher):
        return
    answer = subject.answer(subject.put(subject.args, subject.teacher, subject.teacher))
    assert_zero(answer.values, "values where student and teacher are equal", atol)
    if not subject.signature.is_log_probs:  # which are taken as given, so their gradient is -p
        scale = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(subject.answer().student))
        words = "gradient where student and teacher are equal"
        assert_zero(answer.student, words, max(1e-6 * scale, atol))


def check_shift(subject: Subject) -> None:
    """Adding a constant to an example's logits changes nothing."""
    student = jax.tree.map(lambda x: x + np.float32(64), subject.student)
    teacher = jax.tree.map(lambda x: x - np.float32(128), subject.teacher)
    values, shifted = subject.answer().values, subject.put(subject.args, student, teacher)
    words = "student + 64, teacher - 128 (left), as they are (right)"
    assert_close(subject.answer(shifted).values, values, max(subject.options.rtol, 1e-5), words)


def check_permutation(subject: Subject) -> None:
    """The order of the classes does not matter."""
    num_classes = jax.tree.leaves(subject.student)[0].shape[-1]
    order = np.random.default_rng(1).permutation(num_classes)

    def relabel(labels: Any) -> Any:
        floating = np.issubdtype(labels.dtype, np.floating)
        return labels[..., order] if floating else np.argsort(order)[labels].astype(labels.dtype)

    permuted = subject.answer(subject.classes(lambda x: x[..., order], relabel))
    words = "classes in another order (left), as they are (right)"
    subject.assert_close(permuted.values, subject.answer().values, words)


def check_temperature(subject: Subject) -> None:
    """The gradient keeps its size as the temperature grows."""
    low, high = (_pull(subject, temperature) for temperature in (50.0, 100.0))
    ratio = float(high / low) if low else 1.0
    assert abs(ratio - 1) <= 0.02, (
        f"doubling a high temperature multiplies the teacher's pull on the gradient by {ratio:.3g} "
        "instead of 1; the factor T^2 keeps it (1/4: it is missing)"
    )


def _pull(subject: Subject, temperature: float) -> float:
    """Size of what the teacher contributes to the gradient: labels have a part without T."""
    small = subject.classes(lambda x: x / np.float32(8), np.asarray)
    first = _gradient(subject, small, temperature)
    if subject.signature.teacher is None:
        return float(np.linalg.norm(first))
    other = -small[subject.signature.teacher]
    second = _gradient(subject, subject.put(small, small[0], other), temperature)
    return float(np.linalg.norm(first - second))


def _gradient(subject: Subject, args: Any, temperature: float) -> np.ndarray:
    if subject.scalable:
        return np.asarray(subject.answer(args, temperature=temperature).student)
    arrays = as_arrays(args, np.float32)

    def total(student: Any) -> Any:
        return subject.fn(student, *arrays[1:], temperature=temperature).sum()

    return np.asarray(compiled(jax.grad(total))(arrays[0]))
