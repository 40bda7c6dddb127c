"""Losses of labels by themselves, real numbers, candidates and embeddings."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_tasks as reference
from every import quick

from kdjax import losses
from kdjax.testing import check_loss

INF = jnp.inf


def drawn(*shapes, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in shapes]


def several(rng):
    """Logits of six labels, and how likely each is true."""
    return 3 * rng.normal(size=(8, 6)), rng.random((8, 6)).round()


def numbers(rng):
    return tuple(rng.normal(size=(8, 3)) for _ in range(3))


BY_ITSELF = {"shift_invariant": False, "minus_infinity": False}
CASES = {
    # A label that is certainly false in both is one more that both are right about.
    "sigmoid_kd_loss": {**BY_ITSELF},
    "binary_cross_entropy": {**BY_ITSELF, "inputs": several},
    "squared_error": {"inputs": lambda rng: numbers(rng)[:2]},
    "bounded_regression_loss": {"inputs": numbers},
    # The first candidate is the relevant one.
    "margin_mse_loss": {"permutation_invariant": False},
    "similarity_score_loss": {"zero_atol": 1e-6},
    "similarity_distribution_loss": {"zero_atol": 1e-6, "rtol": 1e-4},
}


@pytest.mark.parametrize("name", CASES)
def test_harness(name):
    check_loss(getattr(losses, name), reference=getattr(reference, name), **CASES[name])


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_says_the_same():
    import torch
    from torch.nn import functional as F

    (z, v), y = drawn((5, 3), (5, 3), scale=3), np.random.default_rng(1).integers(0, 2, (5, 3))
    one, two, true = (torch.tensor(np.array(x), dtype=torch.float64) for x in (z, v, y))
    p = torch.sigmoid(two / 2)
    soft = F.binary_cross_entropy_with_logits(one / 2, p) - F.binary_cross_entropy(p, p)
    expected = {
        "soft": 4 * soft,
        "hard": F.binary_cross_entropy_with_logits(one, true),
        "mse": F.mse_loss(one, true),
        "margin": F.mse_loss(one[:, 0] - one[:, 1], two[:, 0] - two[:, 1]),
    }
    got = {
        "soft": losses.sigmoid_kd_loss(z, v, temperature=2.0),
        "hard": losses.binary_cross_entropy(z, y),
        "mse": losses.squared_error(z, y),
        "margin": losses.margin_mse_loss(z[:, :2], v[:, :2]),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(got[key].mean(), value, rtol=1e-5, err_msg=key)


def test_values_of_torch_as_constants():
    z, v = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[-0.5, 3.0, 0.0]])
    y = jnp.array([[1, 0, 1]])
    np.testing.assert_allclose(quick(losses.binary_cross_entropy)(z, y), [0.30475556], rtol=1e-6)
    soft = quick(losses.sigmoid_kd_loss, temperature=2.0)
    np.testing.assert_allclose(soft(z, v), [0.80753039], rtol=1e-5)
    np.testing.assert_allclose(losses.squared_error(z, y), [0.75], rtol=1e-6)


def test_one_logit_is_the_kd_loss_of_both_its_classes():
    z, v = drawn((8, 1), (8, 1), scale=4)
    got = quick(jax.value_and_grad(lambda a: losses.sigmoid_kd_loss(a, v).sum()))(z)
    both = [np.concatenate([np.zeros_like(x), x], -1) for x in (z, v)]
    want = quick(jax.value_and_grad(lambda a: losses.soft_target_loss(a, both[1]).sum()))(both[0])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], want[1][:, 1:], rtol=1e-6)
    hard = quick(losses.binary_cross_entropy)(z, np.arange(8) % 2)
    want = quick(losses.cross_entropy)(both[0], np.arange(8) % 2)
    np.testing.assert_allclose(hard, want, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_a_student_that_nearly_agrees_keeps_its_digits(temperature):
    """Half of p (1 - p) gap^2 to first order: of a gap of 1e-4 float32 would leave nothing."""
    v = jnp.array([[-7.0, -1.0, 0.0, 2.0, 9.0]])
    z = v + jnp.float32(1e-4)
    gap = np.float64(z) - np.float64(v)
    p = 1 / (1 + np.exp(-np.float64(v) / temperature))
    loss = functools.partial(losses.sigmoid_kd_loss, temperature=temperature)
    got, grad = quick(jax.value_and_grad(lambda a: loss(a, v)[0]))(z)
    np.testing.assert_allclose(got, np.mean(p * (1 - p) * gap**2) / 2, rtol=1e-3)
    np.testing.assert_allclose(grad, p * (1 - p) * gap / 5, rtol=1e-3)


def test_certainty_is_never_nan():
    z = jnp.array([INF, INF, -INF, -INF, 2.0, INF, 1e4, -1e4])[:, None]
    v = jnp.array([INF, -INF, -INF, 0.0, INF, 2.0, -1e4, -1e4])[:, None]
    values = quick(losses.sigmoid_kd_loss, temperature=1.0)(z, v)
    np.testing.assert_allclose(
        values, [0, np.inf, 0, np.inf, np.log1p(np.exp(-2)), np.inf, 1e4, 0], rtol=1e-6
    )
    grads = quick(jax.grad(lambda a: losses.sigmoid_kd_loss(a, v).sum()))(z)
    assert np.all(np.isfinite(grads))
    y = jnp.array([1, 0, 0, 1, 1, 1, 0, 0])
    values = quick(losses.binary_cross_entropy)(z, y)
    np.testing.assert_allclose(
        values, [0, np.inf, 0, np.inf, np.log1p(np.exp(-2)), 0, 1e4, 0], rtol=1e-6
    )
    grads = quick(jax.grad(lambda a: losses.binary_cross_entropy(a, y).sum()))(z)
    assert np.all(np.isfinite(grads))
    # Of a label that is almost sure the gradient is sigmoid(-z), not a rounded sigmoid(z) - 1.
    sure = quick(jax.grad(lambda a: losses.binary_cross_entropy(a, np.array([1]))[0]))(
        jnp.array([[30.0]])
    )
    np.testing.assert_allclose(sure, -np.exp(-30.0) * np.ones((1, 1)), rtol=1e-5)


def test_labels_that_are_not_known_do_not_count():
    z, v = drawn((4, 5), (4, 5), scale=2)
    known = np.arange(5) < np.array([[5], [2], [1], [0]])
    y = jnp.where(known, jnp.arange(20).reshape(4, 5) % 2, -1)
    loss = losses.binary_cross_entropy
    few = [quick(loss)(z[i : i + 1, :n], y[i : i + 1, :n])[0] for i, n in enumerate((5, 2, 1))]
    for got in (
        quick(loss, ignore_label=-1)(z, y),
        quick(loss, where=known)(z, y),
        quick(loss, axis=0, ignore_label=-1)(z.T, y.T),
    ):
        np.testing.assert_allclose(got, [*few, 0], rtol=1e-6)
    soft = quick(losses.sigmoid_kd_loss, where=known)(z, v)
    alone = quick(losses.sigmoid_kd_loss)(z[1, :2], v[1, :2])
    np.testing.assert_allclose(soft[1], alone, rtol=1e-6)
    assert soft[3] == 0


def test_labels_that_are_none_are_refused_or_nan():
    z = jnp.zeros((2, 3))
    for y in (jnp.full((2, 3), 2), jnp.full((2, 3), -1), jnp.full((2, 3), 1.5)):
        with pytest.raises(ValueError, match=r"binary_cross_entropy: labels has .*, expected 0, 1"):
            losses.binary_cross_entropy(z, y)
        assert np.all(np.isnan(jax.jit(losses.binary_cross_entropy)(z, y)))
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), expected \(2, 3\)"):
        losses.binary_cross_entropy(z, jnp.zeros(2))
    with pytest.raises(TypeError, match="ignore_label is -1, but labels are floating"):
        losses.binary_cross_entropy(z, z, ignore_label=-1)


def test_a_margin_makes_the_student_better_than_its_teacher():
    student, teacher = jnp.array([[2.0], [2.0], [3.0]]), jnp.array([[2.5], [2.0], [1.0]])
    zeros = jnp.zeros(3)
    at = functools.partial(losses.bounded_regression_loss, student, teacher, zeros)
    np.testing.assert_array_equal(at(), [0, 0, 9])
    np.testing.assert_array_equal(at(margin=1.0), [0, 4, 9])
    np.testing.assert_array_equal(at(margin=2.5), [4, 4, 9])
    for loss in (losses.squared_error, lambda x, y: losses.bounded_regression_loss(x, x, y)):
        with pytest.raises(ValueError, match=r"labels has shape \(3, 2\), expected \(3, 1\)"):
            loss(student, jnp.zeros((3, 2)))


def test_an_ignored_pixel_has_no_value_and_no_gradient():
    """[batch, height, width, classes]: nothing is needed but the losses of classification."""
    z, v = drawn((2, 3, 3, 4), (2, 3, 3, 4))
    y = jnp.arange(18).reshape(2, 3, 3) % 5
    y, known = jnp.where(y == 4, 255, y), y < 4

    def mean(a):
        values = losses.kd_loss(a, v, y, ignore_label=255)
        return values.sum() / known.sum()

    value, grad = jax.jit(jax.value_and_grad(mean))(z)
    want = quick(losses.kd_loss)(z[known], v[known], y[known]).mean()
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert not np.any(grad[~known])
