"""The terms of divergences, and TAID, whose state is a schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.testing import check_term, term_inputs

INPUTS = term_inputs(student_features={}, teacher_features={})
T = 2.0


def of_log_probs(fn, **hyper):
    """The loss that a term of temperature T stands for."""

    def values(student, teacher):
        return fn(*(losses.tempered_log_softmax(z, T) for z in (student, teacher)), **hyper)

    return values


def js_of_kept(student_log_probs, teacher_log_probs):
    pair = losses.top_k_log_probs_with_tail(student_log_probs, teacher_log_probs, num_kept=2)
    return losses.generalized_js_divergence(*pair, beta=0.5)


CASES = {
    "adaptive_kl": (
        terms.of(losses.adaptive_kl_divergence, head_mass=0.7, temperature=T),
        of_log_probs(losses.adaptive_kl_divergence, head_mass=0.7),
    ),
    "generalized_js": (
        terms.of(losses.generalized_js_divergence, beta=0.3, temperature=T),
        of_log_probs(losses.generalized_js_divergence, beta=0.3),
    ),
    "reverse_kl": (
        terms.of(losses.reverse_kl_divergence, temperature=T),
        of_log_probs(losses.reverse_kl_divergence),
    ),
    "skew_kl": (
        terms.of(losses.skew_kl_divergence, skew=0.2, temperature=T),
        of_log_probs(losses.skew_kl_divergence, skew=0.2),
    ),
    "skew_reverse_kl": (
        terms.of(losses.skew_reverse_kl_divergence, skew=0.2, temperature=T),
        of_log_probs(losses.skew_reverse_kl_divergence, skew=0.2),
    ),
    "symmetric_kl": (
        terms.of(losses.symmetric_kl_divergence, reverse_weight=0.4, temperature=T),
        of_log_probs(losses.symmetric_kl_divergence, reverse_weight=0.4),
    ),
    "js_of_kept": (terms.of(js_of_kept, temperature=T), of_log_probs(js_of_kept)),
    "total_variation": (
        terms.of(losses.total_variation, temperature=T),
        of_log_probs(losses.total_variation),
    ),
    "universal_logits": (
        terms.of(losses.universal_logit_loss, temperature=T, teacher_temperature=1.0),
        functools.partial(losses.universal_logit_loss, temperature=T, teacher_temperature=1.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_terms_satisfy_what_the_step_asks_of_them(name):
    term, loss = CASES[name]
    if name == "generalized_js":  # the others are lifted by the same function
        check_term(term, INPUTS, learns=False, remembers=False, name=name)
    values, _ = jax.jit(functools.partial(term.apply, {}, {}))(INPUTS)
    expected = jax.jit(loss)(INPUTS.student.logits, INPUTS.teacher.logits)
    np.testing.assert_allclose(values, expected, 1e-6)


def test_a_teacher_of_another_vocabulary():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 11)), jnp.float32)
    inputs = INPUTS._replace(teacher=INPUTS.teacher._replace(logits=logits))
    values, _ = terms.of(losses.universal_logit_loss).apply({}, {}, inputs)
    expected = losses.universal_logit_loss(INPUTS.student.logits, logits)
    np.testing.assert_array_equal(values, expected)


def test_taid_satisfies_what_the_step_asks_of_it():
    check_term(terms.taid(num_steps=10), INPUTS, learns=False, remembers=True, name="taid")


def test_taid_moves_from_the_student_to_the_teacher():
    term = terms.taid(num_steps=4, start=0.5, end=0.9, step_size=0.2, decay=0.9)
    state = term.init(jax.random.key(0), INPUTS).state
    apply = jax.jit(lambda state, inputs: term.apply({}, state, inputs))
    half = INPUTS._replace(mask=jnp.arange(8) < 4)
    seen, expected = [], losses.taid_schedule_init(start=0.5)
    for step in range(5):
        t = state["interpolation"]
        seen.append(float(t))
        values, state = apply(state, half)
        want = losses.taid_loss(INPUTS.student.logits, INPUTS.teacher.logits, interpolation=t)
        np.testing.assert_allclose(values, want, rtol=1e-6)
        expected = losses.taid_schedule_update(
            expected, jnp.mean(want[:4]), step / 4, start=0.5, end=0.9, step_size=0.2, decay=0.9
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state, expected)
    assert seen[0] == seen[1] == 0.5
    assert seen[1] < seen[2] < seen[3] < seen[4]
    assert float(state["interpolation"]) == pytest.approx(0.9)
    unmoved = apply(state, INPUTS._replace(mask=jnp.zeros(8, bool)))[1]
    jax.tree.map(np.testing.assert_array_equal, unmoved, state)


def test_taid_needs_steps():
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        terms.taid(num_steps=0)
