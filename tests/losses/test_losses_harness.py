"""Every loss against one harness: references, shapes, transformations, extremes, misuse."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from kdjax import losses


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss of student and teacher, and perhaps labels, with its float64 reference."""

    name: str
    loss: Callable[..., Any]
    expected: Callable[..., Any]
    teacher_is_data: bool = True
    log_probs: bool = False
    labels: str = ""
    divergence: bool = True

    @functools.cached_property
    def fast(self):
        """The loss compiled, where that it also runs without is not the point."""
        return jax.jit(self.loss, static_argnames="axis")

    def __str__(self):
        return self.name

    def inputs(self, shape=(4, 6), seed=0, dtype=np.float32, scale=3.0):
        rng = np.random.default_rng(seed)
        pair = [(scale * rng.normal(size=shape)).astype(np.float32) for _ in range(2)]
        if self.log_probs:
            pair = [reference.log_softmax(x).astype(np.float32) for x in pair]
        pair = [jnp.asarray(x, dtype) for x in pair]
        if self.labels == "int":
            pair.append(jnp.asarray(rng.integers(0, shape[-1], shape[:-1]), jnp.int32))
        if self.labels == "probs":
            pair.append(jnp.asarray(reference.softmax(rng.normal(size=shape)), pair[0].dtype))
        return pair


CASES = [
    Case("kl_divergence", losses.kl_divergence, reference.kl_divergence, False, True),
    Case(
        "reverse_kl_divergence",
        losses.reverse_kl_divergence,
        reference.reverse_kl_divergence,
        False,
        True,
    ),
    Case("soft_target_loss", losses.soft_target_loss, reference.soft_target_loss),
    Case(
        "cross_entropy",
        lambda s, t, y, **kw: losses.cross_entropy(s, y, **kw),
        lambda s, t, y: reference.cross_entropy(s, y),
        labels="int",
        divergence=False,
    ),
    Case("kd_loss", losses.kd_loss, reference.kd_loss, labels="int", divergence=False),
    Case("kd_loss_probs", losses.kd_loss, reference.kd_loss, labels="probs", divergence=False),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


@EVERY
@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 7)])
def test_equals_the_reference(case, shape):
    inputs = case.inputs(shape)
    got = case.fast(*inputs)
    chex.assert_shape(got, shape[:-1])
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, case.expected(*map(np.asarray, inputs)), rtol=1e-5, atol=1e-6)


@EVERY
def test_float64_stays_float64(case):
    with jax.enable_x64(True):
        inputs = case.inputs(dtype=jnp.float64)
        got = case.fast(*inputs)
        chex.assert_type(got, jnp.float64)
        np.testing.assert_allclose(got, case.expected(*map(np.asarray, inputs)), rtol=1e-12)


@EVERY
def test_jit_vmap_and_axis_change_nothing(case):
    inputs = case.inputs()
    eager = case.loss(*inputs)
    np.testing.assert_allclose(case.fast(*inputs), eager, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(case.loss)(*inputs), eager, rtol=1e-6)
    moved = [x.T if x.ndim == 2 else x for x in inputs]
    np.testing.assert_allclose(case.fast(*moved, axis=0), eager, rtol=1e-6)


@EVERY
def test_where_removes_classes(case):
    inputs = case.inputs()
    keep = np.array([1, 0, 1, 1, 0, 1], bool)
    if case.labels == "int":
        inputs[2] = jnp.array([0, 2, 5, 3])
    fewer = [x[:, keep] if x.ndim == 2 else jnp.array([0, 1, 3, 2]) for x in inputs]
    if case.labels == "probs":
        inputs[2] = jnp.where(keep, inputs[2], 0)
    got = case.fast(*inputs, where=jnp.asarray(keep)[None])
    np.testing.assert_allclose(got, case.fast(*fewer), rtol=1e-5)


@EVERY
def test_gradients_are_numerical_ones_and_the_teacher_is_data(case):
    with jax.enable_x64(True):
        student, teacher, *rest = case.inputs((3, 5), dtype=jnp.float64)
        chex.assert_numerical_grads(
            jax.jit(lambda s: case.loss(s, teacher, *rest).sum()), (student,), order=2
        )
        gradient = jax.grad(lambda t: case.fast(student, t, *rest).sum())(teacher)
        assert case.teacher_is_data != bool(np.any(gradient))
        if not case.teacher_is_data:
            chex.assert_numerical_grads(
                jax.jit(lambda t: case.loss(student, t, *rest).sum()), (teacher,), order=2
            )


@EVERY
def test_laws(case):
    student, teacher, *rest = case.inputs(seed=5)
    values = case.fast(student, teacher, *rest)
    assert np.all(np.asarray(values) >= 0)
    if case.divergence:
        np.testing.assert_array_equal(case.fast(teacher, teacher), 0)
    order = np.random.default_rng(0).permutation(6)
    permuted = [x[:, order] if x.ndim == 2 else jnp.asarray(np.argsort(order))[x] for x in rest]
    np.testing.assert_allclose(
        case.fast(student[:, order], teacher[:, order], *permuted), values, rtol=1e-5
    )
    if not case.log_probs:
        np.testing.assert_allclose(case.fast(student + 64, teacher - 128, *rest), values, rtol=2e-4)


@EVERY
def test_a_class_at_minus_infinity_in_both_is_gone(case):
    student, teacher, *rest = case.inputs((4, 6))
    gone = np.array([0, 0, 1, 0, 0, 0], bool)
    if case.labels == "int":
        rest = [jnp.array([0, 1, 3, 5])]
    if case.labels == "probs":
        rest = [jnp.where(gone, 0, rest[0])]
    masked = [jnp.where(gone, -jnp.inf, x) for x in (student, teacher)]
    fewer = [x[:, ~gone] for x in (student, teacher)]
    labels = [x[:, ~gone] if x.ndim == 2 else jnp.array([0, 1, 2, 4]) for x in rest]

    def total(s, t, labels):
        return case.fast(s, t, *labels).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(*masked, rest)
    expected, expected_gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(*fewer, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_array_equal(got[:, 2], 0)
        np.testing.assert_allclose(got[:, ~gone], want, rtol=1e-4, atol=1e-6)


SOFT = [c for c in CASES if c.name in ("soft_target_loss", "kd_loss", "kl_divergence")]


@pytest.mark.parametrize("case", SOFT, ids=str)
def test_a_class_that_only_the_student_excludes_is_infinitely_wrong(case):
    student, teacher, *rest = case.inputs((4, 6))
    rest = [jnp.zeros(4, jnp.int32) for _ in rest]
    student = student.at[1, 3].set(-jnp.inf)
    values = case.fast(student, teacher, *rest)
    assert np.isposinf(values[1])
    assert np.all(np.isfinite(np.delete(values, 1)))
    gradient = jax.grad(lambda s: case.fast(s, teacher, *rest).sum())(student)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient)[1])


def test_mass_is_a_finite_logit_even_where_it_underflows():
    student, teacher = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([0.0, 1.0, -1e4])
    assert np.isposinf(losses.soft_target_loss(student, teacher, temperature=1.0))


@pytest.mark.parametrize("case", SOFT, ids=str)
def test_a_class_that_only_the_teacher_excludes_adds_nothing(case):
    student, teacher, *rest = case.inputs((1, 4))
    rest = [jnp.zeros(1, jnp.int32) for _ in rest]
    excluded = case.fast(student, teacher.at[0, 3].set(-jnp.inf), *rest)
    nearly = case.fast(student, teacher.at[0, 3].set(-1e4), *rest)
    np.testing.assert_allclose(excluded, nearly, rtol=1e-5)


@EVERY
def test_extreme_logits_stay_finite(case):
    if case.log_probs:
        pytest.skip("log-probabilities as given")
    rest = case.inputs((3, 4))[2:]
    student = jnp.array([[1e4, 0.0, -1e4, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1e4, 1e4, 5.0]])
    teacher = jnp.array([[-1e4, 0.0, 1e4, 1.0], [1e4, 0.0, 0.0, 0.0], [1.0, 1e4, -1e4, 5.0]])
    value, gradient = jax.value_and_grad(lambda s: case.fast(s, teacher, *rest).sum())(student)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_equal_logits_give_exactly_zero():
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 33)) * 20, dtype)
        x = x.at[:, 5].set(-jnp.inf)
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(losses.soft_target_loss)))(x, x)
        assert not np.any(values)
        assert not np.any(np.asarray(gradients, np.float32))


def test_nan_is_not_hidden_and_no_class_at_all_is_zero():
    assert np.isnan(losses.soft_target_loss(jnp.array([jnp.nan, 0.0]), jnp.zeros(2)))
    nothing = jnp.full(3, -jnp.inf)
    value, gradient = jax.value_and_grad(losses.soft_target_loss)(nothing, nothing)
    assert float(value) == 0
    assert not np.any(gradient)


def test_temperature_may_be_traced_has_a_gradient_and_may_differ_by_example():
    case = next(c for c in CASES if c.name == "soft_target_loss")
    with jax.enable_x64(True):
        student, teacher = case.inputs((3, 5), dtype=jnp.float64)

        def total(s, t):
            return losses.soft_target_loss(s, teacher, temperature=t).sum()

        chex.assert_numerical_grads(jax.jit(total), (student, jnp.array(3.0)), order=2)
        each = jnp.array([1.0, 2.0, 8.0])
        rows = [
            losses.soft_target_loss(s, v, temperature=float(t))
            for s, v, t in zip(student, teacher, each, strict=True)
        ]
        together = jax.jit(lambda t: losses.soft_target_loss(student, teacher, temperature=t))
        np.testing.assert_allclose(together(each), jnp.stack(rows), rtol=1e-12)
        np.testing.assert_allclose(together(each[:, None]), jnp.stack(rows), rtol=1e-12)


def test_t_squared_keeps_the_gradient_from_shrinking():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.asarray(rng.normal(size=10), jnp.float32) for _ in range(2))

    def norm(t):
        gradient = jax.grad(losses.soft_target_loss)(student, teacher, temperature=t)
        return float(jnp.linalg.norm(gradient))

    assert norm(50.0) == pytest.approx(norm(100.0), rel=0.02)


def test_soft_weight_at_its_ends_leaves_the_other_part_out():
    student, teacher = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([0.0, 1.0, 2.0])
    hard = losses.kd_loss(student, teacher, jnp.array(0), soft_weight=0.0)
    np.testing.assert_allclose(hard, losses.cross_entropy(student, jnp.array(0)))
    soft = losses.kd_loss(student, teacher + 1, jnp.array(2), soft_weight=1)
    assert np.isposinf(soft)
    traced = jax.jit(lambda w: losses.kd_loss(teacher, teacher, jnp.array(0), soft_weight=w))
    np.testing.assert_allclose(
        traced(0.25), 0.75 * losses.cross_entropy(teacher, jnp.array(0)), rtol=1e-6
    )


def test_softmax_and_its_logarithm():
    logits = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32) * 5
    got = losses.tempered_softmax(jnp.asarray(logits), 3.0)
    np.testing.assert_allclose(got, reference.softmax(logits, 3.0), rtol=1e-5)
    logs = losses.tempered_log_softmax(jnp.asarray(logits), 3.0)
    np.testing.assert_allclose(logs, reference.log_softmax(logits, 3.0), rtol=1e-5, atol=1e-6)
    where = jnp.array([True, True, False, True, True])
    masked = losses.tempered_softmax(jnp.asarray(logits), 3.0, where=where)
    assert not np.any(masked[:, 2])
    np.testing.assert_allclose(masked.sum(-1), 1, rtol=1e-6)
    moved = losses.tempered_softmax(jnp.asarray(logits.T), 3.0, axis=0)
    np.testing.assert_allclose(moved.T, got, rtol=1e-6)
    assert not np.any(losses.tempered_softmax(jnp.full(3, -jnp.inf), 1.0))


def test_hint_loss():
    rng = np.random.default_rng(3)
    student, teacher = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
    got = losses.hint_loss(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(got, reference.hint_loss(student, teacher), rtol=1e-5)
    gradient = jax.grad(lambda t: losses.hint_loss(jnp.asarray(student), t).sum())(
        jnp.asarray(teacher)
    )
    assert not np.any(gradient)
    with pytest.raises(ValueError, match=r"hint_loss: student_features has shape \(3,\)"):
        losses.hint_loss(jnp.zeros(3), jnp.zeros(3))


X, Y = jnp.zeros((8, 10)), jnp.zeros(8, jnp.int32)
MISUSE = [
    (
        ValueError,
        "kd_loss: teacher_logits has shape (8, 1, 10), expected (8, 10) like student_logits",
        lambda: losses.kd_loss(X, jnp.zeros((8, 1, 10)), Y),
    ),
    (
        ValueError,
        "soft_target_loss: teacher_logits has shape (1, 10), expected (8, 10)",
        lambda: losses.soft_target_loss(X, jnp.zeros((1, 10))),
    ),
    (
        ValueError,
        "kl_divergence: teacher_log_probs has shape (8, 9), expected (8, 10)",
        lambda: losses.kl_divergence(X, jnp.zeros((8, 9))),
    ),
    (ValueError, "kd_loss: temperature is 0", lambda: losses.kd_loss(X, X, Y, temperature=0)),
    (ValueError, "temperature is -1.0", lambda: losses.kd_loss(X, X, Y, temperature=-1.0)),
    (ValueError, "temperature is nan", lambda: losses.kd_loss(X, X, Y, temperature=float("nan"))),
    (ValueError, "temperature is inf", lambda: losses.kd_loss(X, X, Y, temperature=float("inf"))),
    (TypeError, "temperature is '4'", lambda: losses.kd_loss(X, X, Y, temperature="4")),
    (TypeError, "temperature is True", lambda: losses.kd_loss(X, X, Y, temperature=True)),
    (
        ValueError,
        "temperature has shape (3,)",
        lambda: losses.kd_loss(X, X, Y, temperature=jnp.ones(3)),
    ),
    (ValueError, "soft_weight is 1.5", lambda: losses.kd_loss(X, X, Y, soft_weight=1.5)),
    (ValueError, "soft_weight is nan", lambda: losses.kd_loss(X, X, Y, soft_weight=float("nan"))),
    (ValueError, "kd_loss: labels has 10, expected 0 to 9", lambda: losses.kd_loss(X, X, Y + 10)),
    (ValueError, "labels has -1", lambda: losses.cross_entropy(X, Y - 1)),
    (ValueError, "kd_loss: labels has shape (7,)", lambda: losses.kd_loss(X, X, Y[:7])),
    (ValueError, "labels has shape (8, 9)", lambda: losses.kd_loss(X, X, jnp.zeros((8, 9)))),
    (TypeError, "labels has dtype bool", lambda: losses.kd_loss(X, X, Y == 0)),
    (
        TypeError,
        "kd_loss: student_logits has dtype int32",
        lambda: losses.kd_loss(X.astype(jnp.int32), X, Y),
    ),
    (TypeError, "where has dtype", lambda: losses.soft_target_loss(X, X, where=X)),
    (
        ValueError,
        "where has shape (9,)",
        lambda: losses.soft_target_loss(X, X, where=jnp.ones(9, bool)),
    ),
    (ValueError, "axis is 2", lambda: losses.soft_target_loss(X, X, axis=2)),
    (ValueError, "temperature is 0.0", lambda: losses.tempered_softmax(X, 0.0)),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)


def test_a_traced_label_that_is_no_class_poisons_the_value():
    values = jax.jit(losses.cross_entropy)(X, Y.at[3].set(10))
    assert np.isnan(values[3])
    assert np.all(np.isfinite(np.delete(values, 3)))
