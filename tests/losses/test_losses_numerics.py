"""Soft targets in float32 against 50 digits, where the textbook sum loses its digits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

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
