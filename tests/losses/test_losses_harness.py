"""Every loss against the harness of `kdjax.testing`, and what is particular to each."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from every import quick

from kdjax import losses
from kdjax.testing import check_loss


def kd_loss_on_probabilities(
    student_logits, teacher_logits, label_probs, *, temperature=4.0, axis=-1, where=None
):
    return losses.kd_loss(
        student_logits, teacher_logits, label_probs, temperature=temperature, axis=axis, where=where
    )


CHECKS = {
    "kl_divergence": (losses.kl_divergence, {"teacher_is_data": False, "order": 2}),
    "reverse_kl_divergence": (losses.reverse_kl_divergence, {"teacher_is_data": False}),
    "soft_target_loss": (losses.soft_target_loss, {"order": 2}),
    "cross_entropy": (losses.cross_entropy, {"order": 2}),
    # A sum of the two before.
    "kd_loss": (losses.kd_loss, {}),
    "kd_loss_on_probabilities": (kd_loss_on_probabilities, {"teacher_is_data": True}),
    "hint_loss": (losses.hint_loss, {}),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_law(name):
    loss, options = CHECKS[name]
    expected = getattr(reference, name.removesuffix("_on_probabilities"))
    check_loss(loss, reference=expected, rtol64=1e-12, **options)


def inputs_of(loss, shape, dtype=np.float32):
    """Draw student, teacher and, where the loss takes labels, zeros."""
    rng = np.random.default_rng(0)
    pair = [3 * rng.normal(size=shape) for _ in range(2)]
    if loss is losses.kl_divergence:
        pair = map(reference.log_softmax, pair)
    labels = [jnp.zeros(shape[:-1], jnp.int32)] if loss is losses.kd_loss else []
    return [*(jnp.asarray(x, dtype) for x in pair), *labels]


SOFT = pytest.mark.parametrize(
    "loss", [losses.soft_target_loss, losses.kd_loss, losses.kl_divergence]
)


@SOFT
def test_a_class_that_only_the_student_excludes_is_infinitely_wrong(loss):
    student, teacher, *rest = inputs_of(loss, (4, 6))
    student = student.at[1, 3].set(-jnp.inf)
    values = jax.jit(loss)(student, teacher, *rest)
    assert np.isposinf(values[1])
    assert np.all(np.isfinite(np.delete(values, 1)))
    gradient = jax.grad(lambda s: jax.jit(loss)(s, teacher, *rest).sum())(student)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient)[1])


def test_mass_is_a_finite_logit_even_where_it_underflows():
    student, teacher = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([0.0, 1.0, -1e4])
    assert np.isposinf(losses.soft_target_loss(student, teacher, temperature=1.0))


@SOFT
def test_a_class_that_only_the_teacher_excludes_adds_nothing(loss):
    student, teacher, *rest = inputs_of(loss, (1, 4))
    excluded = jax.jit(loss)(student, teacher.at[0, 3].set(-jnp.inf), *rest)
    nearly = jax.jit(loss)(student, teacher.at[0, 3].set(-1e4), *rest)
    np.testing.assert_allclose(excluded, nearly, rtol=1e-5)


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
    with jax.enable_x64(True):
        student, teacher = inputs_of(losses.soft_target_loss, (3, 5), jnp.float64)

        def total(s, t):
            return losses.soft_target_loss(s, teacher, temperature=t).sum()

        chex.assert_numerical_grads(jax.jit(total), (student, jnp.array(3.0)), order=2)
        each = jnp.array([1.0, 2.0, 8.0])
        one = quick(lambda s, v, t: losses.soft_target_loss(s, v, temperature=t))
        rows = [one(*row) for row in zip(student, teacher, each, strict=True)]
        together = jax.jit(lambda t: losses.soft_target_loss(student, teacher, temperature=t))
        np.testing.assert_allclose(together(each), jnp.stack(rows), rtol=1e-12)
        np.testing.assert_allclose(together(each[:, None]), jnp.stack(rows), rtol=1e-12)


def test_t_squared_keeps_the_gradient_from_shrinking():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.asarray(rng.normal(size=10), jnp.float32) for _ in range(2))

    gradient = quick(lambda t: jax.grad(losses.soft_target_loss)(student, teacher, temperature=t))

    def norm(t):
        return float(np.linalg.norm(gradient(t)))

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
    (TypeError, "axis is None, expected an integer", lambda: losses.kd_loss(X, X, Y, axis=None)),
    (TypeError, "axis is 1.0, expected an integer", lambda: losses.kl_divergence(X, X, axis=1.0)),
    (
        ValueError,
        "student_logits has shape (8, 0), no classes on axis -1",
        lambda: losses.soft_target_loss(X[:, :0], X[:, :0]),
    ),
    (
        TypeError,
        "teacher_logits is None, expected an array",
        lambda: losses.soft_target_loss(X, None),
    ),
    (TypeError, "cross_entropy: labels is None", lambda: losses.cross_entropy(X, None)),
    (
        ValueError,
        "labels has 10, expected 0 to 9 for 10 classes; a mask, or a loss's ignore_label=10",
        lambda: jax.jit(lambda x: losses.cross_entropy(x, np.full(8, 10)))(X),
    ),
    (
        ValueError,
        "labels has 4294967296, expected 0 to 9",
        lambda: losses.cross_entropy(X, np.full(8, 2**32)),
    ),
    (
        ValueError,
        "labels has a row from 0 to 0 with sum 0, expected probabilities",
        lambda: losses.kd_loss(X, X, X),
    ),
    (
        ValueError,
        "labels has a row from -1 to 2 with sum 1",
        lambda: losses.cross_entropy(X[:1, :2], np.array([[-1.0, 2.0]])),
    ),
    (
        ValueError,
        "labels has shape (8, 10), expected (8,) like the examples; class probabilities are of a",
        lambda: losses.kd_loss(X, X, jnp.ones((8, 10), jnp.int32)),
    ),
    (
        TypeError,
        "ignore_label is 3, but labels are floating",
        lambda: losses.kd_loss(X, X, jax.nn.softmax(X), ignore_label=3),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)


IGNORED = {
    "cross_entropy": (-100, jnp.int32, 1),
    "kd_loss": (-100, jnp.int32, 2),
    "dkd_loss": (255, jnp.uint8, 2),
    "nkd_loss": (-1, jnp.int8, 2),
    "wsld_loss": (5, jnp.int32, 2),
    "self_rank_loss": (255, jnp.uint8, 2),
    "virtual_teacher_loss": (255, jnp.int32, 1),
    "self_target_loss": (-1, jnp.int8, 1),
}


@pytest.mark.parametrize("name", IGNORED)
def test_labels_that_are_to_be_ignored_have_no_value_and_no_gradient(name):
    label, dtype, num_networks = IGNORED[name]
    rng, kept = np.random.default_rng(0), np.array([0, 2, 3])
    networks = [jnp.asarray(rng.normal(size=(4, 6)), jnp.float32) for _ in range(num_networks)]
    labels = jnp.array([0, label, 2, 3], dtype)

    @jax.jit
    def run(labels, *networks):
        loss = functools.partial(getattr(losses, name), ignore_label=label)
        return loss(*networks, labels), jax.grad(lambda x: loss(x, *networks[1:], labels).sum())(
            networks[0]
        )

    values, grads = run(labels, *networks)
    assert values[1] == 0 and not np.any(grads[1])
    if name == "self_target_loss":  # which looks at the mean of those that count
        few = run(labels[kept], *(x[kept] for x in networks))
    else:
        few = [x[kept] for x in run(jnp.where(labels == label, 0, labels), *networks)]
    np.testing.assert_allclose(values[kept], few[0], rtol=1e-5)
    np.testing.assert_allclose(grads[kept], few[1], rtol=1e-4, atol=1e-6)
    known = quick(lambda *x: getattr(losses, name)(*x, labels, ignore_label=label))(*networks)
    np.testing.assert_allclose(known, values, rtol=1e-5)


def test_float8_logits_are_widened():
    x = jnp.array([[1.0, 2.0, 3.0]])
    loss = quick(losses.soft_target_loss)
    low = loss(x.astype(jnp.float8_e4m3fn), x[:, ::-1].astype(jnp.float8_e5m2))
    np.testing.assert_array_equal(low, loss(x, x[:, ::-1]))


def test_counts_may_be_numbers_of_numpy():
    maps = jnp.ones((2, 4, 4, 3))
    losses.class_attention_loss(maps, maps, resolution=np.int64(2))
    losses.hierarchical_context_loss(maps, maps, levels=np.array([2, 1]))
    losses.top_k_log_probs(X, X, num_kept=np.int32(2))


def test_a_traced_label_that_is_no_class_poisons_the_value():
    values = jax.jit(losses.cross_entropy)(X, Y.at[3].set(10))
    assert np.isnan(values[3])
    assert np.all(np.isfinite(np.delete(values, 3)))
