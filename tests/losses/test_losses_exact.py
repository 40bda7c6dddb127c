"""Right to 3e-5 in float32, against exact arithmetic on the same inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from kdjax.losses import kd_loss, soft_target_loss

BAR = 3e-5
SCALES, GAPS = (1, 5, 30), (1e-3, 1e-2, 0.1, 1, 10, 100, 1e4)


def textbook(student, teacher, temperature):
    log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def draw(num_classes, scale, gap, rng):
    teacher = (scale * rng.normal(size=num_classes)).astype(np.float32)
    student = (teacher + gap * rng.normal(size=num_classes)).astype(np.float32)
    return student, teacher


def errors(value, gradient, exact_value, exact_gradient):
    """Relative error of the value, absolute below 1e-30, and of the gradient's largest entry."""
    exact_value = float(exact_value)
    off = abs(float(value) - exact_value)
    value_error = off / abs(exact_value) if abs(exact_value) > 1e-30 else off / 1e-30 * BAR
    exact_gradient = np.array([float(x) for x in exact_gradient])
    largest = np.abs(exact_gradient).max()
    if largest < 1e-36:  # float32 has no such numbers
        return value_error, 0.0
    return value_error, np.abs(np.asarray(gradient, np.float64) - exact_gradient).max() / largest


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss))


def soft(student, teacher, label, temperature):
    return soft_target_loss(student, teacher, temperature=temperature)


def whole(student, teacher, label, temperature):
    return kd_loss(student, teacher, label, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 200.0])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_values_and_gradients_keep_their_digits(num_classes, temperature):
    rng = np.random.default_rng([num_classes, int(10 * temperature)])
    for scale in SCALES:
        for gap in GAPS:
            student, teacher = draw(num_classes, scale, gap, rng)
            label = int(rng.integers(num_classes))
            for loss, weight in ((soft, 1.0), (whole, 0.9)):
                exact = reference.exact_kd(student, teacher, label, temperature, weight)
                got = compiled(loss)(student, teacher, label, jnp.float32(temperature))
                assert max(errors(*got, *exact)) <= BAR, (scale, gap, loss.__name__)


def test_many_classes():
    rng = np.random.default_rng(0)
    for gap in (1e-3, 1.0):
        student, teacher = draw(32_768, 5, gap, rng)
        exact = reference.exact_kd(student, teacher, 0, 4.0)
        got = compiled(soft)(student, teacher, 0, jnp.float32(4))
        assert max(errors(*got, *exact)) <= BAR


def test_a_common_shift_of_ten_thousand_costs_no_digit():
    rng = np.random.default_rng(1)
    teacher = np.round(rng.normal(size=50) * 64).astype(np.float32) / 64
    student = teacher + np.round(rng.normal(size=50) * 4).astype(np.float32) / 64
    for shift in (0, 8192):
        exact = reference.exact_kd(student + shift, teacher, 0, 4.0)
        got = compiled(soft)(student + np.float32(shift), teacher, 0, jnp.float32(4))
        assert max(errors(*got, *exact)) <= BAR


def test_the_textbook_sum_would_fail():
    rng = np.random.default_rng(2)
    value_and_grad = jax.jit(jax.value_and_grad(textbook))
    failed = 0
    for gap in (1e-3, 1e-2, 0.1):
        student, teacher = draw(100, 1, gap, rng)
        exact = reference.exact_kd(student, teacher, 0, 20.0)
        failed += max(errors(*value_and_grad(student, teacher, 20.0), *exact)) > BAR
    assert failed == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_inputs_are_widened_first(dtype):
    rng = np.random.default_rng(3)
    student, teacher = (jnp.asarray(x, dtype) for x in draw(20, 5, 0.1, rng))
    low = soft_target_loss(student, teacher)
    wide = soft_target_loss(student.astype(jnp.float32), teacher.astype(jnp.float32))
    assert low.dtype == jnp.float32
    assert float(low) == float(wide)


def test_gradient_tends_to_matching_logits_as_the_temperature_grows():
    rng = np.random.default_rng(4)
    student, teacher = (rng.normal(size=10).astype(np.float32) for _ in range(2))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    limit = (student - teacher) / 10
    distances = [
        np.abs(compiled(soft)(student, teacher, 0, jnp.float32(t))[1] - limit).max()
        for t in (1, 10, 100, 10_000)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 3e-4 * np.abs(limit).max()
