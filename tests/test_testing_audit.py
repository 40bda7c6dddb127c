"""The audit passes what is right, finds what is wrong and says what does not apply."""

import functools

import flawed
import jax
import jax.numpy as jnp
import pytest
from flawed import on_logits, soft

from kdjax import terms
from kdjax.heads import TopK
from kdjax.objective import combine
from kdjax.testing import audit, term_inputs


def verdicts(terms_by_name, **options):
    """Audit terms on drawn outputs and return `{(term, check): passed}`."""
    objective = combine(terms_by_name, dict.fromkeys(terms_by_name, 1.0))
    batch, student, teacher, _ = term_inputs()
    report = audit(objective, batch, student, teacher, **options)
    assert report.passed == (not report.failures)
    return {(f.term, f.check): f.passed for f in report.findings}, report


def test_audit_passes_what_is_right_and_says_what_does_not_apply():
    good = {
        "ce": terms.cross_entropy(),
        "hint": terms.hint("hidden", "hidden"),
        "kd": terms.kd(temperature=3.0, soft_weight=0.5),
        "relation": terms.stateless(flawed.relation_term, couples_batch=True),
        "soft": terms.soft_targets(temperature=20.0),
    }
    found, report = verdicts(good)
    assert report.passed, str(report)
    applies = {name: {c for (term, c), passed in found.items() if term == name and passed}
               for name in good}  # fmt: skip
    always = {"finite", "mask neutrality", "teacher gradient", "bfloat16"}
    assert applies["ce"] == always | {"shift invariance", "accumulation"}
    assert applies["hint"] == always | {"accumulation"}
    assert applies["kd"] == always | {"shift invariance", "accumulation", "T^2 slope"}
    assert applies["relation"] == always
    assert applies["soft"] == always | {
        "shift invariance", "accumulation", "T^2 slope", "zero at equality",
    }  # fmt: skip
    assert "soft targets at T = 3, times T^2, times 0.5" in str(report)
    assert "soft targets at T = 20, times T^2, times 1" in str(report)


def raised_temperature(fn, temperature):
    return on_logits(functools.partial(fn, temperature=temperature))


def only_eight(student, teacher):
    if len(student) != 8:
        raise ValueError("made for eight examples")
    return soft(student, teacher)


BROKEN_OBJECTIVES = {
    "nan": (on_logits(lambda s, t: soft(s, t) + jnp.log(s.sum() * 0)), "finite"),
    "student alone softened": (on_logits(lambda s, t: soft(s, 4 * t)), "zero at equality"),
    "raw logits": (on_logits(lambda s, t: flawed.squared_logits(s, jax.lax.stop_gradient(t))),
                   "shift invariance"),
    "T^2 missing": (raised_temperature(flawed.no_t_squared, 4.0), "T^2 slope"),
    "T^2 missing, low T": (raised_temperature(flawed.no_t_squared, 0.5), "T^2 slope"),
    "T^2 missing, labels": (
        terms.stateless(lambda x: flawed.no_t_squared_beside_labels(
            x.student.logits, x.teacher.logits, x.batch["label"], temperature=3.0)),
        "T^2 slope",
    ),
    "padding": (flawed.running_mean(flawed.unmasked_sum, soft), "mask neutrality"),
    "leak": (on_logits(flawed.leaking_loss), "teacher gradient"),
    "low": (on_logits(lambda s, t: flawed.low_precision(s, jax.lax.stop_gradient(t))), "bfloat16"),
    "refuses": (on_logits(only_eight), "accumulation"),
    "sum": (on_logits(lambda s, t: soft(s, t) * len(s)), "accumulation"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_OBJECTIVES)
def test_audit_finds_what_is_broken(name):
    term, check = BROKEN_OBJECTIVES[name]
    _, report = verdicts({"it": term})
    assert [f.check for f in report.failures] == [check], str(report)
    assert f"it      {check}" in str(report)
    assert "FAIL" in str(report)
    _, spared = verdicts({"it": term}, exempt={"it": [check]})
    assert spared.passed


def test_audit_takes_a_declared_coupling_for_what_it_is():
    relating = on_logits(only_eight, couples_batch=True)
    # A neighbour, which is evaluated with it, is not to blame.
    _, report = verdicts({"it": relating, "hard": terms.cross_entropy()})
    assert report.passed
    assert "refuses a part of the batch: made for eight examples" in str(report)


def test_audit_respects_the_users_mask_and_needs_no_teacher():
    batch, student, teacher, _ = term_inputs()
    mask = jnp.arange(8) < 5
    student = student._replace(logits=jnp.where(mask[:, None], student.logits, 1e3))
    objective = combine({"soft": terms.soft_targets()}, {"soft": 1.0})
    report = audit(objective, {**batch, "mask": mask}, student, teacher)
    assert report.passed, str(report)
    assert "soft targets at T = 4, times T^2, times 1" in str(report)
    alone = audit(combine({"ce": terms.cross_entropy()}, {"ce": 1.0}), batch, student)
    assert alone.passed, str(alone)
    assert all(f.passed is None for f in alone.findings if f.check == "zero at equality")


def test_audit_explains_an_unknown_exemption():
    with pytest.raises(ValueError, match=r"\['slope'\] for 'kd', expected checks out of"):
        verdicts({"kd": terms.kd()}, exempt={"kd": ["slope"]})
    found, _ = verdicts({"kd": terms.kd()}, exempt={"another": ["finite"]})
    assert found["kd", "finite"]


def test_audit_takes_a_teachers_largest_logits():
    batch, student, teacher, _ = term_inputs()
    values, classes = jax.lax.top_k(jnp.asarray(teacher.logits), 3)
    few = teacher._replace(logits=TopK(values, classes))
    objective = combine({"soft": terms.soft_targets(temperature=3.0)}, {"soft": 1.0})
    report = audit(objective, batch, student, few)
    assert report.passed, str(report)
    assert "T = 3" in str(report)
