"""What the audit checks of a term: whether it passed (None: it does not apply), and why."""

from typing import Any

import jax
import numpy as np

from kdjax.testing._compare import assert_close, numbers
from kdjax.testing._drawing import log_softmax
from kdjax.testing._harness import Verdict
from kdjax.testing._probe import Answer, Probe, others
from kdjax.types import Array, Outputs, TermInputs


def finite(probe: Probe) -> Verdict:
    """Look for nan and infinity in the loss and its gradients."""
    base = probe.base
    if not np.isfinite(base.mean):
        return False, f"the loss is {float(base.mean)} on this batch: look for a log or root of 0"
    if not all(np.all(np.isfinite(x)) for x in numbers((base.params, base.student))):
        return False, "a gradient is not finite: look for a root, norm or logarithm at 0"
    return True, f"the loss is {float(base.mean):.4g}, all gradients are finite"


def zero_at_equality(probe: Probe) -> Verdict:
    """Give the student the teacher's outputs."""
    if not probe.looks_at_teacher:
        return None, "looks at no teacher"
    if probe.looks_at_batch:
        return None, "labels or other entries of the batch have a say"
    if probe.learns or probe.remembers:
        return None, "parameters or a memory stand between student and teacher"
    inputs = _copying(probe)
    if inputs is None:
        return None, "student and teacher cannot be equal: other shapes or features"
    now, equal = float(probe.base.mean), probe.answer(inputs)
    value = float(equal.mean)
    if abs(value) <= 1e-6 + 1e-4 * abs(now):
        return True, f"{value:.2g} for a student that equals the teacher"
    steepest = _largest(equal.student)
    usual = _largest(probe.base.student)
    if steepest <= 1e-4 * usual:
        return None, f"a constant, {value:.3g}, is left at equality; no gradient, so no harm"
    return False, (
        f"{value:.3g}, and a gradient, for a student that equals the teacher (now {now:.3g}): is "
        "something (softmax, temperature, normalization) applied to one side only?"
    )


def _largest(tree: Any) -> float:
    return max(float(np.abs(x).max(initial=0)) for x in numbers(tree))


def _copying(probe: Probe) -> TermInputs | None:
    """Return the inputs with the teacher's outputs in the student's place."""
    student, teacher = probe.inputs.student, probe.inputs.teacher
    assert teacher is not None
    ours, theirs = probe.student_features(), probe.teacher_features()
    if len(ours) != len(theirs):
        return None
    if probe.looks_at_student_logits and student.logits.shape != teacher.logits.shape:
        return None
    logits = teacher.logits if student.logits.shape == teacher.logits.shape else student.logits
    pairs = {a: teacher.features[b] for a, b in zip(ours, theirs, strict=True)}
    if any(student.features[name].shape != x.shape for name, x in pairs.items()):
        return None
    copied = Outputs(logits.astype(student.logits.dtype), {**student.features, **pairs})
    return probe.inputs._replace(student=copied)


def shift_invariance(probe: Probe) -> Verdict:
    """Add a constant to the logits of every example."""
    if not probe.looks_at_student_logits:
        return None, "looks at no logits"
    inputs, now = probe.inputs, float(probe.base.mean)
    sides = {"student": inputs._replace(student=_shifted(inputs.student))}
    if inputs.teacher is not None:
        sides["teacher"] = inputs._replace(teacher=_shifted(inputs.teacher))
    for side, changed in sides.items():
        value = float(probe.answer(changed).mean)
        if not np.isclose(value, now, rtol=1e-3, atol=1e-6):
            return False, (
                f"adding 16 to the {side}'s logits turns {now:.4g} into {value:.4g}: probabilities "
                "do not change, so a softmax is missing; exempt a loss that is meant for raw logits"
            )
    return True, "adding 16 to an example's logits changes nothing"


def _shifted(outputs: Outputs) -> Outputs:
    return outputs._replace(logits=outputs.logits + np.asarray(16, outputs.logits.dtype))


def temperature_scale(probe: Probe) -> Verdict:
    """Infer temperature and factor of soft targets from how the teacher pulls at the gradient.

    A term factor * KL(softmax(v / T) || softmax(z / T)), and whatever labels add, has in the
    student's gradient the part -(factor / T) * softmax(v / T). Its size is factor / T for a teacher
    that is sure, and falls by T for one that is nearly undecided: two measurements, two unknowns.
    """
    teacher = probe.inputs.teacher
    if teacher is None or not probe.looks_at_teacher or not probe.looks_at_student_logits:
        return None, "no soft targets: looks at no teacher's logits"
    shape = teacher.logits.shape
    if shape != probe.inputs.student.logits.shape or len(shape) != 2 or shape[-1] < 2:
        return None, "no soft targets: other logits than the student's"
    uniform, draw = np.zeros(shape, np.float32), np.random.default_rng(0).normal(size=shape)
    some = 0.05 * np.asarray(draw, np.float32)
    sure = 1e5 * np.eye(shape[-1], dtype=np.float32)[np.arange(shape[0]) % shape[-1]]
    small = (_pull(probe, some) - _pull(probe, -some)) / 2
    centered = some - some.mean(-1, keepdims=True)
    slope = _size(small) * shape[-1] / _size(centered[_valid(probe)])
    start = _pull(probe, uniform)
    top = _size(_pull(probe, sure) - start) / np.sqrt(1 - 1 / shape[-1])
    if not slope > 0 or not np.isfinite(top / slope):
        return None, "no soft targets: the teacher's logits do not pull at the student's"
    temperature, factor = top / slope, top * top / slope
    given = np.asarray(teacher.logits, np.float64)
    expected = -top * (np.exp(log_softmax(given / temperature)) - 1 / shape[-1])[_valid(probe)]
    found = _pull(probe, given.astype(np.float32)) - start
    if _size(found - expected) > 0.03 * _size(expected):
        return None, "not the forward KL of soft targets"
    if _lacks_square(temperature, factor):
        return False, (
            f"soft targets at T = {temperature:.3g} with a factor of {factor:.3g} in place of T^2: "
            f"their gradient is {factor / temperature**2:.3g} of what it is at T = 1; multiply by "
            "T^2, or soft_target_loss does"
        )
    weight = factor / temperature**2
    return True, f"soft targets at T = {temperature:.3g}, times T^2, times {weight:.3g}"


def _lacks_square(temperature: float, factor: float) -> bool:
    """Whether a factor of at most one stands where T^2 should."""
    high = temperature > 1.1 and factor < 1.05
    return high or (temperature < 0.9 and abs(factor - 1) < 0.05)


def _valid(probe: Probe) -> np.ndarray:
    return np.asarray(probe.inputs.mask, bool)


def _pull(probe: Probe, logits: np.ndarray) -> np.ndarray:
    """Gradient by the student's logits, for one example, with these logits in the teacher."""
    teacher = probe.inputs.teacher
    assert teacher is not None
    given: Any = logits.astype(teacher.logits.dtype)
    answer = probe.answer(probe.inputs._replace(teacher=teacher._replace(logits=given)))
    valid = _valid(probe)
    pull: np.ndarray = np.asarray(answer.student.logits, np.float64)[valid] * valid.sum()
    return pull


def _size(rows: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.asarray(rows, np.float64)).sum(-1).mean()))


def mask_neutrality(probe: Probe) -> Verdict:
    """Mask a third of the examples and replace what is in them."""
    valid = _valid(probe)
    kept = valid & (np.cumsum(valid).reshape(valid.shape) % 3 != 1)
    if not kept.any():
        return None, "too few examples"
    got, want = probe.behind_mask(kept, others)
    for part, words in _PARTS.items():
        try:
            assert_close(getattr(got, part), getattr(want, part), 1e-3, words)
        except AssertionError:
            return False, (
                f"what stands in masked examples changes the {words}: padding would train the "
                "student; use inputs.mask inside the term"
            )
    return True, "what stands in masked examples changes nothing"


_PARTS = {
    "mean": "loss",
    "state": "new state",
    "params": "gradients of the term's parameters",
    "student": "student's gradients",
}


def accumulation(probe: Probe) -> Verdict:
    """Cut the batch in two, as micro-batches do, and add up."""
    size = len(probe.inputs.mask)
    if size < 2 or size % 2:
        return None, f"a batch of {size} does not divide by 2"
    halves = [jax.tree.map(lambda x, i=i: x[i::2], probe.inputs) for i in (0, 1)]
    try:
        first = probe.answer(halves[0])
        answers = [first, probe.answer(halves[1], first.state)]
    except ValueError as error:
        # The whole objective is evaluated: another term may refuse, one that declares it.
        passed = None if probe.couples_batch else False
        return passed, f"a term refuses a part of the batch: {error}"
    try:
        _assert_add_up(probe, [half.mask.sum() for half in halves], answers)
    except AssertionError:
        if probe.name in probe.couples_batch or probe.remembers:
            return None, "relates examples or remembers: micro-batches change it, as declared"
        return False, (
            "two halves do not add up to the whole: a mean inside the term, or examples that see "
            "one another (then declare couples_batch=True, and do not use micro-batches)"
        )
    return True, "two halves add up to the whole"


def _assert_add_up(probe: Probe, counts: list[Array], answers: list[Answer]) -> None:
    shares = [float(count) / max(float(sum(counts)), 1) for count in counts]
    parts = [
        jax.tree.map(lambda g, share=share: share * g, (a.mean, a.params, a.student))
        for share, a in zip(shares, answers, strict=True)
    ]
    total = jax.tree.map(np.add, parts[0][:2], parts[1][:2])
    student = [jax.tree.map(lambda g, i=i: g[i::2], probe.base.student) for i in (0, 1)]
    whole = (probe.base.mean, probe.base.params), student
    assert_close((total, [part[2] for part in parts]), whole, 1e-3, "")


def teacher_gradient(probe: Probe) -> Verdict:
    """Look for a gradient by the teacher's outputs."""
    if probe.inputs.teacher is None:
        return None, "looks at no teacher"
    if any(np.any(x) for x in numbers(probe.base.teacher)):
        return False, "a gradient reaches the teacher: put jax.lax.stop_gradient on its outputs"
    return True, "none"


def low_precision(probe: Probe) -> Verdict:
    """Give the outputs in bfloat16, and the same numbers in float32."""
    got, want = probe.in_low_precision
    if not all(np.all(np.isfinite(x)) for x in numbers((got.mean, got.params, got.student))):
        return False, f"not finite from bfloat16 outputs (the loss is {float(got.mean)})"
    if not np.isclose(got.mean, want.mean, rtol=1e-3, atol=1e-7):
        return False, (
            f"{float(got.mean):.5g} from bfloat16 outputs, {float(want.mean):.5g} from the same "
            "numbers in float32: the arithmetic is in bfloat16; cast to float32 first"
        )
    return True, "finite, and computed in float32"
