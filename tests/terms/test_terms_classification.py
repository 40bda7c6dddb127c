"""Terms of classifiers' logits: the conformance suite, and what they add to the losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.testing import check_term, term_inputs
from kdjax.types import TermInputs, Variables

# The losses themselves are held to the same laws; of what lifts them, one of each kind.
STATELESS = {
    "dkd": terms.of(losses.dkd_loss, temperature=2.0),
    "batch_correlation": terms.of(losses.batch_correlation_loss),
    "standardized": terms.standardized(terms.soft_targets()),
}


@pytest.mark.parametrize("name", STATELESS)
def test_conformance(name):
    check_term(STATELESS[name], name=name, learns=False, remembers=False)


def under_way(term, step):
    """The term as it is after some steps."""

    def init(key: jax.Array, inputs: TermInputs) -> Variables:
        variables = term.init(key, inputs)
        return variables._replace(state={"step": jnp.full_like(variables.state["step"], step)})

    return term._replace(init=init)


def test_curriculum_temperature():
    term = terms.curriculum_temperature(10)
    check_term(under_way(term, 4), name="curriculum_temperature", learns=True, remembers=True)


def test_uskd():
    check_term(terms.uskd("stage_1"), name="uskd", learns=True, remembers=False)


@functools.cache
def curriculum_step():
    term, inputs = terms.curriculum_temperature(10, low=2.0, span=6.0), term_inputs()

    def loss(params, logits, state):
        outputs = inputs._replace(student=inputs.student._replace(logits=logits))
        values, state = term.apply(params, state, outputs)
        return values.mean(), state

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)), inputs


def fixed(temperature):
    inputs = curriculum_step()[1]
    logits = inputs.student.logits, inputs.teacher.logits
    return losses.soft_target_loss(*logits, temperature=temperature).mean()


def test_the_student_descends_and_the_temperature_climbs():
    step, inputs = curriculum_step()
    params = {"temperature": jnp.float32(0.3)}
    (value, state), (by_parameter, by_logits) = step(
        params, inputs.student.logits, {"step": jnp.int32(10)}
    )
    temperature = 2 + 6 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(value, fixed(temperature), rtol=1e-6)
    assert state["step"] == 11
    slope = jax.grad(lambda p: fixed(2 + 6 * jax.nn.sigmoid(p)))(0.3)
    np.testing.assert_allclose(by_parameter["temperature"], -slope, rtol=1e-5)
    # One step of gradient descent: easier for the student, harder by the temperature.
    (lower, _), _ = step(params, inputs.student.logits - 0.1 * by_logits, {"step": jnp.int32(10)})
    moved = {"temperature": params["temperature"] - 0.1 * by_parameter["temperature"]}
    (higher, _), _ = step(moved, inputs.student.logits, {"step": jnp.int32(10)})
    assert lower < value < higher


def test_the_temperature_does_not_move_at_first():
    step, inputs = curriculum_step()
    grads = [
        step({"temperature": jnp.float32(1)}, inputs.student.logits, {"step": jnp.int32(n)})[1][0]
        for n in (0, 5, 10, 50)
    ]
    first, half, whole, later = (float(g["temperature"]) for g in grads)
    assert first == 0
    assert half == pytest.approx(whole / 2)
    assert later == whole != 0


def test_any_loss_may_have_the_temperature():
    term = terms.curriculum_temperature(
        5,
        loss_fn=lambda x, t: losses.dkd_loss(
            x.student.logits, x.teacher.logits, x.batch["label"], temperature=t
        ),
    )
    inputs = term_inputs()
    values, _ = term.apply(*term.init(jax.random.key(0), inputs), inputs)
    logits = inputs.student.logits, inputs.teacher.logits
    expected = losses.dkd_loss(*logits, inputs.batch["label"], temperature=15.621)
    np.testing.assert_allclose(values, expected, rtol=1e-3)


def test_a_curriculum_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        terms.curriculum_temperature(0)


def test_standardized_sees_no_scale_and_keeps_the_term():
    term, inputs = terms.standardized(terms.of(losses.dist_loss)), term_inputs()
    louder = inputs._replace(teacher=inputs.teacher._replace(logits=7 * inputs.teacher.logits + 3))
    values = [term.apply({}, {}, x)[0] for x in (inputs, louder)]
    np.testing.assert_allclose(*values, rtol=1e-4)
    assert term.couples_batch


def test_a_missing_teacher_is_explained():
    with pytest.raises(ValueError, match="needs a teacher's outputs"):
        terms.of(losses.dkd_loss).apply({}, {}, term_inputs()._replace(teacher=None))
