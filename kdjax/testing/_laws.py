"""What a loss should satisfy as mathematics."""

from typing import Any

import jax
import numpy as np

from kdjax.testing._compare import assert_close, assert_zero
from kdjax.testing._compile import compiled
from kdjax.testing._loss import Loss, LossInputs


def holds_teacher_constant(loss: Loss) -> bool:
    """Whether a loss takes a teacher and says that it is data."""
    return loss.signature.teacher is not None and loss.teacher_is_data is True


def looks_at_both_alone(loss: Loss) -> bool:
    """Whether a loss takes a teacher and no labels."""
    return loss.signature.teacher is not None and loss.signature.labels is None


def softens_logits(loss: Loss) -> bool:
    """Whether a loss takes logits and a temperature."""
    return loss.signature.is_logits and isinstance(loss.signature.temperature, int | float)


def check_teacher_is_data(loss: Loss) -> None:
    """No gradient reaches the teacher."""
    words = "gradient by the teacher (jax.lax.stop_gradient on its input is missing)"
    assert_zero(loss.answer().teacher, words)


def check_nonnegative(loss: Loss) -> None:
    """No value is negative."""
    smallest = loss.answer().values.min()
    assert smallest >= -loss.zero_atol, f"the smallest value is {smallest:.3g}"


def check_zero_at_equality(loss: Loss) -> None:
    """The teacher as its own student costs nothing."""
    atol = loss.zero_atol
    student, teacher = loss.inputs.student, loss.inputs.teacher
    if jax.tree.map(np.shape, student) != jax.tree.map(np.shape, teacher):
        return
    answer = loss.answer(loss.inputs._replace(student=teacher))
    assert_zero(answer.values, "values where student and teacher are equal", atol)
    if not loss.signature.is_log_probs:  # which are taken as given, so their gradient is -p
        scale = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(loss.answer().student))
        words = "gradient where student and teacher are equal"
        assert_zero(answer.student, words, max(1e-6 * scale, atol))


def has_teacher(loss: Loss) -> bool:
    """Whether the loss takes something of a teacher."""
    return loss.inputs.teacher is not None


def check_sees_teacher(loss: Loss) -> None:
    """Another teacher makes another loss."""
    # One that is 0 whatever it is given satisfies all other laws. Some do not see the order of the
    # examples, and some not that of what is in them.
    values = np.asarray(loss.answer().values)
    for axis in (0, -1):
        other = jax.tree.map(lambda x, axis=axis: np.roll(x, 1, axis), loss.inputs.teacher)
        if np.any(values != np.asarray(loss.answer(loss.inputs._replace(teacher=other)).values)):
            return
    raise AssertionError("the values are the same for other teachers: the loss does not see it")


def check_shift(loss: Loss) -> None:
    """Adding a constant to an example's logits changes nothing."""
    student = jax.tree.map(lambda x: x + np.float32(64), loss.inputs.student)
    teacher = jax.tree.map(lambda x: x - np.float32(128), loss.inputs.teacher)
    shifted = loss.answer(loss.inputs._replace(student=student, teacher=teacher))
    words = "student + 64, teacher - 128 (left), as they are (right)"
    assert_close(shifted.values, loss.answer().values, max(loss.rtol, 1e-5), words)


def check_permutation(loss: Loss) -> None:
    """The order of the classes does not matter."""
    num_classes = jax.tree.leaves(loss.inputs.student)[0].shape[-1]
    order = np.random.default_rng(1).permutation(num_classes)
    permuted = loss.answer(
        loss.classes(lambda x: x[..., order], labels_fn=lambda y: np.argsort(order)[y])
    )
    words = "classes in another order (left), as they are (right)"
    loss.probe.assert_close(permuted.values, loss.answer().values, words)


def check_temperature(loss: Loss) -> None:
    """The gradient keeps its size as the temperature grows."""
    low, high = (_pull(loss, temperature) for temperature in (50.0, 100.0))
    ratio = float(high / low) if low else 1.0
    assert abs(ratio - 1) <= 0.02, (
        f"doubling a high temperature multiplies the teacher's pull on the gradient by {ratio:.3g} "
        "instead of 1; the factor T^2 keeps it (1/4: it is missing)"
    )


def _pull(loss: Loss, temperature: float) -> float:
    """Size of what the teacher contributes to the gradient: labels have a part without T."""
    small = loss.classes(lambda x: x / np.float32(8), probs_fn=np.asarray)
    first = _gradient(loss, small, temperature)
    if small.teacher is None:
        return float(np.linalg.norm(first))
    second = _gradient(loss, small._replace(teacher=-small.teacher), temperature)
    return float(np.linalg.norm(first - second))


def _gradient(loss: Loss, inputs: LossInputs, temperature: float) -> np.ndarray:
    if loss.scalable:
        return np.asarray(loss.answer(inputs, temperature=temperature).student)

    def total(student: Any, inputs: LossInputs) -> Any:
        return loss.values(inputs._replace(student=student), temperature=temperature).sum()

    return np.asarray(compiled(jax.grad(total))(inputs.student, inputs))
