"""Soft targets in float32 against 50 digits, where the textbook sum loses its digits."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from kdjax import losses
from kdjax.losses import soft_target_loss

BAR = 3e-5
SCALES = (1.0, 5.0, 30.0)
GAPS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
TEMPERATURES = (0.5, 1.0, 4.0, 20.0, 200.0)
SETTINGS = tuple(itertools.product(SCALES, GAPS, TEMPERATURES))


def textbook(student, teacher, *, temperature):
    t = temperature[..., None]
    log_p, log_q = jax.nn.log_softmax(teacher / t), jax.nn.log_softmax(student / t)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def with_gradient(loss, student, teacher, temperature):
    @jax.jit
    def run(student):
        value, pull = jax.vjp(lambda x: loss(x, teacher, temperature=temperature), student)
        return value, pull(jnp.ones_like(value))[0]

    return [np.asarray(x, np.float64) for x in run(student)]


def errors(loss, student, teacher, temperature, exact):
    """Relative errors of values and of gradients, [settings] each."""
    value, grad = with_gradient(loss, student, teacher, temperature)
    by_value, by_grad = [], []
    for i, (true_value, true_grad) in enumerate(exact):
        off = abs(value[i] - true_value)
        by_value.append(0.0 if off <= 1e-30 else off / abs(true_value))
        largest = np.max(np.abs(true_grad))
        off = np.max(np.abs(grad[i] - true_grad))
        # Below, float32 is denormal and has no digits to compare.
        by_grad.append(0.0 if largest < 1e-35 else off / largest)
    return np.array(by_value), np.array(by_grad)


@pytest.fixture(scope="module", params=[2, 3, 10, 100], ids="c{}".format)
def examples(request):
    rng = np.random.default_rng(request.param)
    rows = []
    for scale, gap, _ in SETTINGS:
        teacher = rng.normal(0, scale, request.param).astype(np.float32)
        student = (teacher + rng.normal(0, gap, request.param)).astype(np.float32)
        rows.append((student, teacher))
    student, teacher = (np.stack(x) for x in zip(*rows, strict=True))
    temperature = np.array([t for _, _, t in SETTINGS], np.float32)
    exact = list(map(reference.exact_soft_target_loss, student, teacher, temperature))
    return student, teacher, temperature, exact


def test_value_and_gradient_keep_their_digits(examples):
    by_value, by_grad = errors(soft_target_loss, *examples)
    worst = np.fmax(by_value, by_grad)
    at = int(np.argmax(np.nan_to_num(worst, nan=np.inf)))
    message = f"(scale, gap, T) = {SETTINGS[at]}: value {by_value[at]:.1e}, grad {by_grad[at]:.1e}"
    assert np.all(by_value <= BAR) and np.all(by_grad <= BAR), message


def test_the_textbook_sum_does_not(examples):
    by_value, by_grad = errors(textbook, *examples)
    missed = ~(by_value <= BAR)
    assert np.sum(missed) >= 0.4 * len(SETTINGS)
    # Mostly where the two nearly agree: the difference that a distilled student is left with.
    small = np.array([gap <= 0.1 for _, gap, _ in SETTINGS])
    assert np.mean(missed[small]) >= 0.9
    assert np.sum(~(by_grad <= BAR)) >= 0.2 * len(SETTINGS)


def test_a_shift_of_all_logits_costs_no_digits():
    """Student and teacher differ by a number that float32 cannot hold, and by what is in it."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(4, 100)).astype(np.float32)
    student = (teacher + 100 + 1e-3 * rng.normal(size=teacher.shape)).astype(np.float32)
    temperature = np.ones(4, np.float32)
    exact = list(map(reference.exact_soft_target_loss, student, teacher, temperature))
    by_value, by_grad = errors(soft_target_loss, student, teacher, temperature, exact)
    assert np.all(by_value <= BAR) and np.all(by_grad <= BAR), (by_value, by_grad)


@pytest.mark.parametrize("size", [1000, 32768])
def test_divergences_of_log_probabilities_keep_their_digits(size):
    """What the sum by the definition makes of these is off by most of itself, or negative."""
    rng = np.random.default_rng(0)
    teacher, noise = rng.normal(0, 1, size), rng.normal(0, 1, size)

    def log_softmax(z):
        return z - math.log(math.fsum(np.exp(z)))

    @jax.jit
    def run(x, v):
        q, p = jax.nn.log_softmax(x), jax.nn.log_softmax(v)
        both = losses.kl_divergence(q, p), losses.reverse_kl_divergence(q, p)
        ends = (losses.generalized_js_divergence(q, p, beta=end) for end in (0.0, 1.0))
        return jnp.stack([*both, *ends])

    for gap in (1e-2, 1e-3, 1e-4):
        x, v = (np.float32(z) for z in (teacher + gap * noise, teacher))
        q, p = (log_softmax(np.float64(z)) for z in (x, v))
        kl = [math.fsum(np.exp(a) * (np.expm1(b - a) - (b - a))) for a, b in ((p, q), (q, p))]
        np.testing.assert_allclose(run(x, v), [*kl, *kl], rtol=2e-3)


def test_divergences_of_a_part_are_the_sum_as_it_stands():
    rng = np.random.default_rng(0)
    q, p = (np.log(rng.dirichlet(np.ones(5), 3)).astype(np.float32) for _ in range(2))
    part = np.arange(5) < 3
    expected = np.sum(np.where(part, np.exp(p) * (p - q), 0), -1)
    np.testing.assert_allclose(losses.kl_divergence(q, p, where=part[None]), expected, rtol=1e-5)
    twice = losses.kl_divergence(q + np.float32(np.log(2)), p)
    np.testing.assert_allclose(twice, np.sum(np.exp(p) * (p - q), -1) - np.log(2), rtol=1e-5)


@pytest.mark.parametrize(("gap", "temperature"), [(1e-2, 4.0), (3.0, 1.0)])
def test_a_vocabulary_of_32768_classes(gap, temperature):
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 5, 32768).astype(np.float32)
    student = (teacher + rng.normal(0, gap, teacher.shape)).astype(np.float32)
    x, v = student.astype(np.float64) / temperature, teacher.astype(np.float64) / temperature

    def log_total(z):
        return math.log(math.fsum(np.exp(z - z.max()))) + z.max()

    # No cancellation: log(q / p) is the gap less a constant, and the terms are not negative.
    p = np.exp(v - log_total(v))
    ratio = (x - v) - math.log(math.fsum(p * np.exp(x - v)))
    value = temperature**2 * math.fsum(p * (np.expm1(ratio) - ratio))
    exact = [(value, temperature * p * np.expm1(ratio))]
    batch = student[None], teacher[None], np.array([temperature], np.float32)
    by_value, by_grad = errors(soft_target_loss, *batch, exact)
    assert by_value[0] <= BAR and by_grad[0] <= BAR, (by_value, by_grad)


def test_a_gradient_in_bfloat16_is_rounded_once():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(16, 10)), jnp.bfloat16) for _ in range(2))
    labels = jnp.asarray(rng.integers(0, 10, 16))
    by_student = jax.jit(jax.grad(lambda x: losses.kd_loss(x, teacher, labels).sum()))
    grads = by_student(student), by_student(student.astype(jnp.float32))
    np.testing.assert_array_equal(grads[0], grads[1].astype(jnp.bfloat16))


WITHOUT_SCALE = {
    "attention": functools.partial(losses.attention_transfer_loss, power=4),
    "distances": functools.partial(losses.distance_relation_loss, eps=0.0),
    "squares": functools.partial(losses.distance_relation_loss, eps=0.0, squared=True),
    "angles": losses.angle_relation_loss,
    "similarity": losses.similarity_preserving_loss,
    "cosine": losses.cosine_loss,
    "factors": losses.factor_transfer_loss,
    "affinity": losses.affinity_loss,
    "channels": losses.inter_channel_correlation_loss,
    "selectivity": losses.neuron_selectivity_loss,
    "mutual": losses.itrd_mutual_loss,
    "correlation": losses.itrd_correlation_loss,
}


def test_what_knows_no_scale_knows_none_however_extreme():
    """Squares and powers of these numbers vanish in float32, or overflow."""
    rng = np.random.default_rng(0)
    x, v = (rng.normal(size=(4, 3, 3, 5)).astype(np.float32) for _ in range(2))
    run = jax.jit(lambda x, v: {name: loss(x, v) for name, loss in WITHOUT_SCALE.items()})
    expected = run(x, v)
    for scale in np.float32([1e-25, 1e-19, 1e19, 1e25]):
        for name, values in run(scale * x, scale * v).items():
            words = f"{name}, {scale}"
            np.testing.assert_allclose(values, expected[name], rtol=1e-3, err_msg=words)


@pytest.mark.slow
def test_correlations_of_vanishing_probabilities():
    """A class 43 below the others varies too, by numbers whose product vanishes."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32).at[:, 4].add(-43)
    value, grad = jax.value_and_grad(lambda z: losses.dist_loss(z, x, eps=0.0).sum())(x)
    assert value == 0
    assert np.all(np.isfinite(grad))
    moved = losses.dist_loss(x[::-1], x, eps=0.0)
    with jax.enable_x64(True):
        wide = losses.dist_loss(*(jnp.asarray(z, jnp.float64) for z in (x[::-1], x)), eps=0.0)
    np.testing.assert_allclose(moved, wide, rtol=1e-5)


def test_logits_too_far_apart_for_the_type_are_no_number():
    far, near = jnp.array([[3e38, -3e38, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    for pair in ((far, near), (near, far), (far, -far)):
        assert not np.isfinite(soft_target_loss(*pair)[0])
    with pytest.raises(ValueError, match=r"temperature is 1e\+19, expected in \[1e-12, 1e\+12\]"):
        soft_target_loss(near, near, temperature=1e19)
