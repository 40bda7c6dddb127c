"""Where losses break: masked classes and examples, extremes, shapes that broadcast."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kdjax.testing import _drawing
from kdjax.testing._compare import assert_finite, assert_not_nan, assert_zero
from kdjax.testing._loss import Loss, LossInputs, rows
from kdjax.testing._probe import Answer

_OUT = -np.float32(np.inf)


def check_where(loss: Loss) -> None:
    """A class that `where` leaves out is gone."""
    inputs = _with_class(loss, np.float32(3))
    shape = jax.tree.leaves(inputs.student)[0].shape
    keep = np.broadcast_to(np.arange(shape[-1]) < shape[-1] - 1, shape)
    _assert_gone(loss, loss.answer(inputs, where=keep))


def check_minus_infinity(loss: Loss) -> None:
    """A class at -inf in both is gone; one at -inf in either gives no nan."""
    _assert_gone(loss, loss.answer(_with_class(loss, _OUT)))
    inputs = loss.inputs
    cases = {"the student alone": inputs._replace(student=_exclude(loss, inputs.student))}
    if inputs.teacher is not None:
        cases["the teacher alone"] = inputs._replace(teacher=_exclude(loss, inputs.teacher))
        cases["a one-hot teacher"] = inputs._replace(teacher=_one_hot(inputs.teacher))
    for words, changed in cases.items():
        answer = loss.answer(changed)
        assert_not_nan(answer.values, f"values, with -inf in {words}")
        assert_finite(answer.student, f"gradients, with -inf in {words}")


def check_mask(loss: Loss) -> None:
    """Examples that `mask` leaves out neither pair nor count."""
    mask = _drawing.some_mask(len(loss.inputs.mask))
    got = loss.answer(loss.inputs._replace(mask=mask))
    few = loss.answer(rows(loss.inputs, lambda x: x[mask]))
    close = loss.probe.assert_close
    close(got.values[mask], few.values, "masked (left), without the others (right)")
    assert_zero(got.values[~mask], "values of masked examples")
    for ours, theirs in ((got.student, few.student), (got.teacher, few.teacher)):
        kept = jax.tree.map(lambda x: x[mask], ours)
        close(kept, theirs, "gradients, masked (left), without them (right)", 10)
    assert_zero(jax.tree.map(lambda x: x[~mask], got.student), "gradients of masked examples")
    none = loss.answer(loss.inputs._replace(mask=np.zeros_like(mask)))
    assert_zero(none.values, "values where every example is masked")
    assert_finite(none.student, "gradients where every example is masked")


def check_one_example(loss: Loss) -> None:
    """A batch of one is finite."""
    answer = loss.answer(rows(loss.inputs, lambda x: x[:1]))
    assert_finite(answer.values, "values")
    assert_finite(answer.student, "gradients")


def check_extremes(loss: Loss) -> None:
    """Finite at extremes, constants, zeros and equality, gradients too."""
    student, teacher = loss.inputs.student, loss.inputs.teacher
    cases = _extremes(loss)
    if jax.tree.map(np.shape, student) == jax.tree.map(np.shape, teacher):
        cases["student = teacher"] = loss.inputs._replace(student=teacher)
    for words, inputs in cases.items():
        answer = loss.answer(inputs)
        assert_finite(answer.values, f"values, {words}")
        assert_finite(answer.student, f"gradients, {words}")


def check_misuse(loss: Loss) -> None:
    """Shapes that would be broadcast are refused."""
    inputs, teacher = loss.inputs, loss.inputs.teacher
    if teacher is not None:
        one = jax.tree.map(lambda x: x[:1], teacher)
        _assert_refused(loss, inputs._replace(teacher=one))
        if loss.signature.has_classes:
            between = jax.tree.map(lambda x: np.expand_dims(x, -2), teacher)
            _assert_refused(loss, inputs._replace(teacher=between))
    if loss.signature.labels is not None:
        _assert_refused(loss, loss.with_labels(inputs, lambda x: x[:1]))


def _assert_refused(loss: Loss, inputs: LossInputs) -> None:
    shapes = ", ".join(
        f"{name} {jax.tree.map(np.shape, arg)}"
        for name, arg in zip(loss.signature.positional, loss.args(inputs), strict=True)
    )
    try:
        jax.eval_shape(loss.values, inputs)
    except (ValueError, TypeError):
        return
    raise AssertionError(f"{shapes}: expected a ValueError or TypeError, but it was broadcast")


def _with_class(loss: Loss, fill: np.float32) -> LossInputs:
    """Append a class of that logit to student and teacher, without label mass."""

    def grow(x: Any, value: Any = fill) -> Any:
        return np.concatenate([x, np.full_like(x[..., :1], value)], -1)

    return loss.classes(grow, probs_fn=lambda x: grow(x, 0))


def _assert_gone(loss: Loss, got: Answer) -> None:
    """Compare with the loss as it is; the answer has one class more, at the end."""
    want, close = loss.answer(), loss.probe.assert_close
    close(got.values, want.values, "with a masked class (left), without it (right)")
    for ours, theirs in ((got.student, want.student), (got.teacher, want.teacher)):
        assert_zero(jax.tree.map(lambda x: x[..., -1], ours), "gradients of the masked class")
        others = jax.tree.map(lambda x: x[..., :-1], ours)
        close(others, theirs, "gradients, with a masked class (left), without it (right)", 10)


def _exclude(loss: Loss, tree: Any) -> Any:
    """Return logits with -inf at one class of every example, not its label."""
    index = loss.signature.labels
    labels = None if index is None else loss.inputs.batch["args"][index]

    def change(x: Any) -> Any:
        classes = np.arange(x.shape[-1])
        gone = np.zeros(x.shape[:-1], int)
        if labels is not None and np.shape(labels) == x.shape[:-1]:
            gone = (np.asarray(labels) + 1) % x.shape[-1]
        return np.where(classes == gone[..., None], _OUT, x)

    return jax.tree.map(change, tree)


def _one_hot(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.where(x == x.max(-1, keepdims=True), 0, _OUT), tree)


def _extremes(loss: Loss) -> dict[str, LossInputs]:
    """Return inputs whose student, teacher or both are extreme, by what they are."""
    rng, cases, inputs = np.random.default_rng(2), {}, loss.inputs
    finish = _drawing.log_softmax if loss.signature.is_log_probs else np.asarray
    changes: dict[str, Callable[[Any], Any]] = {
        "zeros": np.zeros_like,
        "constants": np.ones_like,
        "a dead channel": lambda x: x * (np.arange(x.shape[-1]) > 0).astype(x.dtype),
    }
    if loss.signature.has_classes:
        changes = {
            "logits of +-1e4": lambda x: finish(rng.choice([-1e4, 0.0, 1.0, 1e4], size=x.shape)),
            "constant rows": lambda x: finish(np.zeros(x.shape)),
        }
    for words, change in changes.items():
        both = inputs.student, inputs.teacher
        first, second = jax.tree.map(lambda x, c=change: c(x).astype(np.float32), both)
        cases[f"{words} in the student"] = inputs._replace(student=first)
        cases[f"{words} in the teacher"] = inputs._replace(teacher=second)
        cases[f"{words} in both"] = inputs._replace(student=first, teacher=second)
    return cases
