"""Where losses break: masked classes and examples, extremes, shapes that broadcast."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kdjax.testing import _drawing
from kdjax.testing._compare import assert_finite, assert_not_nan, assert_zero
from kdjax.testing._subject import Answer, Subject

_OUT = -np.float32(np.inf)


def check_where(subject: Subject) -> None:
    """A class that `where` leaves out is gone."""
    args = _with_class(subject, np.float32(3))
    keep = np.ones(jax.tree.leaves(args[0])[0].shape[-1], bool)
    keep[-1] = False
    _assert_gone(subject, subject.answer(args, where=keep))


def check_minus_infinity(subject: Subject) -> None:
    """A class at -inf in both is gone; one at -inf in either gives no nan."""
    _assert_gone(subject, subject.answer(_with_class(subject, _OUT)))
    cases = {"the student alone": (_exclude(subject, subject.student), subject.teacher)}
    if subject.signature.teacher is not None:
        cases["the teacher alone"] = (subject.student, _exclude(subject, subject.teacher))
        cases["a one-hot teacher"] = (subject.student, _one_hot(subject.teacher))
    for words, (student, teacher) in cases.items():
        answer = subject.answer(subject.put(subject.args, student, teacher))
        assert_not_nan(answer.values, f"values, with -inf in {words}")
        assert_finite(answer.student, f"gradients, with -inf in {words}")


def check_mask(subject: Subject) -> None:
    """Examples that `mask` leaves out neither pair nor count."""
    mask = _drawing.some_mask(subject.batch[0])
    got, few = subject.answer(mask=mask), subject.answer(subject.rows(lambda x: x[mask]))
    subject.assert_close(got.values[mask], few.values, "masked (left), without the others (right)")
    assert_zero(got.values[~mask], "values of masked examples")
    for ours, theirs in ((got.student, few.student), (got.teacher, few.teacher)):
        kept = jax.tree.map(lambda x: x[mask], ours)
        subject.assert_close(kept, theirs, "gradients, masked (left), without them (right)", 10)
    assert_zero(jax.tree.map(lambda x: x[~mask], got.student), "gradients of masked examples")
    none = subject.answer(mask=np.zeros_like(mask))
    assert_zero(none.values, "values where every example is masked")
    assert_finite(none.student, "gradients where every example is masked")


def check_one_example(subject: Subject) -> None:
    """A batch of one is finite."""
    answer = subject.answer(subject.rows(lambda x: x[:1]))
    assert_finite(answer.values, "values")
    assert_finite(answer.student, "gradients")


def check_extremes(subject: Subject) -> None:
    """Finite at extremes, constants, zeros and equality, gradients too."""
    student, teacher = subject.student, subject.teacher
    pairs = _extremes(subject)
    if jax.tree.map(np.shape, student) == jax.tree.map(np.shape, teacher):
        pairs["student = teacher"] = (teacher, teacher)
    for words, (first, second) in pairs.items():
        answer = subject.answer(subject.put(subject.args, first, second))
        assert_finite(answer.values, f"values, {words}")
        assert_finite(answer.student, f"gradients, {words}")


def check_misuse(subject: Subject) -> None:
    """Shapes that would be broadcast are refused."""
    args, signature = subject.args, subject.signature
    if signature.teacher is not None:
        one = jax.tree.map(lambda x: x[:1], subject.teacher)
        _assert_refused(subject, subject.put(args, subject.student, one))
        if signature.has_classes:
            between = jax.tree.map(lambda x: np.expand_dims(x, -2), subject.teacher)
            _assert_refused(subject, subject.put(args, subject.student, between))
    if signature.labels is not None:
        changed = list(args)
        changed[signature.labels] = args[signature.labels][:1]
        _assert_refused(subject, tuple(changed))


def _assert_refused(subject: Subject, args: tuple[Any, ...]) -> None:
    shapes = ", ".join(
        f"{name} {jax.tree.map(np.shape, arg)}"
        for name, arg in zip(subject.signature.positional, args, strict=True)
    )
    try:
        jax.eval_shape(subject.fn, *_drawing.as_arrays(args, np.float32))
    except (ValueError, TypeError):
        return
    raise AssertionError(f"{shapes}: expected a ValueError or TypeError, but it was broadcast")


def _with_class(subject: Subject, fill: np.float32) -> tuple[Any, ...]:
    """Append a class of that logit to student and teacher, without label mass."""

    def grow(x: Any, value: Any = fill) -> Any:
        return np.concatenate([x, np.full_like(x[..., :1], value)], -1)

    def relabel(labels: Any) -> Any:
        return grow(labels, 0) if np.issubdtype(labels.dtype, np.floating) else labels

    return subject.classes(grow, relabel)


def _assert_gone(subject: Subject, got: Answer) -> None:
    """Compare with the subject as it is; the answer has one class more, at the end."""
    want = subject.answer()
    subject.assert_close(got.values, want.values, "with a masked class (left), without it (right)")
    for ours, theirs in ((got.student, want.student), (got.teacher, want.teacher)):
        assert_zero(jax.tree.map(lambda x: x[..., -1], ours), "gradients of the masked class")
        others = jax.tree.map(lambda x: x[..., :-1], ours)
        words = "gradients, with a masked class (left), without it (right)"
        subject.assert_close(others, theirs, words, 10)


def _exclude(subject: Subject, tree: Any) -> Any:
    """Return logits with -inf at one class of every example, not its label."""
    labels = None if subject.signature.labels is None else subject.args[subject.signature.labels]

    def change(x: Any) -> Any:
        classes = np.arange(x.shape[-1])
        gone = np.zeros(x.shape[:-1], int)
        if labels is not None and np.shape(labels) == x.shape[:-1]:
            gone = (np.asarray(labels) + 1) % x.shape[-1]
        return np.where(classes == gone[..., None], _OUT, x)

    return jax.tree.map(change, tree)


def _one_hot(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.where(x == x.max(-1, keepdims=True), 0, _OUT), tree)


def _extremes(subject: Subject) -> dict[str, tuple[Any, Any]]:
    """Return students and teachers that are extreme, one of them or both, by what they are."""
    rng, pairs = np.random.default_rng(2), {}
    finish = _drawing.log_softmax if subject.signature.is_log_probs else np.asarray
    changes: dict[str, Callable[[Any], Any]] = {
        "zeros": np.zeros_like,
        "constants": np.ones_like,
        "a dead channel": lambda x: x * (np.arange(x.shape[-1]) > 0).astype(x.dtype),
    }
    if subject.signature.has_classes:
        changes = {
            "logits of +-1e4": lambda x: finish(rng.choice([-1e4, 0.0, 1.0, 1e4], size=x.shape)),
            "constant rows": lambda x: finish(np.zeros(x.shape)),
        }
    both = subject.student, subject.teacher
    for words, change in changes.items():
        first, second = jax.tree.map(lambda x, c=change: c(x).astype(np.float32), both)
        pairs[f"{words} in the student"] = (first, subject.teacher)
        pairs[f"{words} in the teacher"] = (subject.student, second)
        pairs[f"{words} in both"] = (first, second)
    return pairs
