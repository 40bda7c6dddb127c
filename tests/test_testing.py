"""The harness finds what it is for: a check fails where its law is broken, and nowhere else."""

import functools

import flawed
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from kdjax import losses, terms
from kdjax.testing import check_loss, check_term

soft, kd = losses.soft_target_loss, losses.kd_loss


def laws_broken(error):
    """Return the laws that a message names."""
    lines = str(error.value).splitlines()[1:]
    return {line[2:].split(": ")[0] for line in lines if line.startswith("- ")}


# Good losses; those of kdjax.losses are held to it in tests/losses.


def draw_two_stages(rng):
    maps = [[rng.normal(size=(4, n, 3)).astype(np.float32) for n in (2, 5)] for _ in range(2)]
    return maps[0], maps[1], np.float32(1.5)


GOOD = {
    "bound": (functools.partial(kd, temperature=2.0), {}),
    "label_probs": (flawed.noisy_label_loss, {}),
    "relation": (flawed.relation_loss, {}),
    "several maps": (flawed.two_stage_loss, {"inputs": draw_two_stages, "zero_at_equality": False}),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_losses_pass(name):
    loss, options = GOOD[name]
    check_loss(loss, **options)


# Broken ones, each in one way.


JIT, VMAP = "The same under jit as without", "The same for one example at a time, under vmap"
REFERENCE, GRADIENTS = "Equals the reference", "Gradients agree with finite differences"
LOW = "Computes in float32 what it is given in bfloat16"
AXIS, WHERE = "The classes may be on another axis", "A class that `where` leaves out is gone"
MASK = "Examples that `mask` leaves out neither pair nor count"
ONE, DATA = "A batch of one is finite", "No gradient reaches the teacher"
NEGATIVE, EQUAL = "No value is negative", "The teacher as its own student costs nothing"
SHIFT = "Adding a constant to an example's logits changes nothing"
ORDER = "The order of the classes does not matter"
SCALE = "The gradient keeps its size as the temperature grows"
GONE = "A class at -inf in both is gone; one at -inf in either gives no nan"
FINITE = "Finite at extremes, constants, zeros and equality, gradients too"
BLIND = "Another teacher makes another loss"
MISUSE = "Shapes that would be broadcast are refused"

BROKEN = [
    (flawed.no_t_squared, {SCALE}),
    (flawed.no_t_squared_beside_labels, {SCALE}),
    (flawed.static_temperature, {SCALE}),
    (flawed.leaking_loss, {DATA}),
    (flawed.nan_at_zero_mass, {GONE}),
    (flawed.low_precision, {LOW}),
    (flawed.blind, {BLIND}),
    (flawed.broadcasting, {MISUSE}),
    (flawed.squared_logits, {SHIFT, GONE}),
    (flawed.wrong_gradient, {GRADIENTS}),
    (flawed.negative, {NEGATIVE}),
    (flawed.offset, {EQUAL}),
    (flawed.off_target, {EQUAL}),
    (flawed.first_class_counts_twice, {ORDER}),
    (flawed.axis_ignored, {AXIS}),
    (flawed.where_ignored, {WHERE}),
    (flawed.secretly_coupled, {VMAP}),
    (flawed.mask_ignored, {MASK}),
    (flawed.padding_pairs, {MASK}),
    (flawed.nan_for_one, {ONE}),
    (flawed.overflowing, {FINITE}),
    (flawed.norm_at_zero_loss, {FINITE, EQUAL}),
    (flawed.other_when_compiled, {JIT}),
]


@pytest.mark.parametrize(("loss", "laws"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_a_loss_that_breaks_a_law_is_told_which(loss, laws):
    with pytest.raises(AssertionError, match=f"check_loss: {loss.__name__} fails") as raised:
        check_loss(loss)
    assert laws_broken(raised) == laws, raised.value


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (flawed.averaged, r"returns values of shape \(\), expected \(8,\): one value per example"),
        (flawed.single_only, "returns float32, expected float64"),
        (flawed.eager_only, "raises ConcretizationTypeError"),
        (lambda student_logits, teacher_logits: [student_logits], "returns list"),
        (lambda student_features, t: student_features, "no shape that was tried"),
    ],
)
def test_what_is_no_loss_at_all_is_said_at_once(loss, words):
    with pytest.raises(AssertionError, match=words):
        check_loss(loss)


def test_inputs_are_asked_for_where_names_do_not_say_enough():
    with pytest.raises(TypeError, match=r"what to draw for parameter 'scale' .* pass inputs="):
        check_loss(flawed.two_stage_loss)
    with pytest.raises(TypeError, match=r"needs mix; bind them with functools\.partial"):
        check_loss(lambda student_logits, teacher_logits, *, mix: student_logits)
    with pytest.raises(TypeError, match="no positional parameter"):
        check_loss(lambda *, a=1: a)


def test_a_reference_that_disagrees_is_reported():
    with pytest.raises(AssertionError) as raised:
        check_loss(soft, reference=lambda s, t: 1.001 * reference.soft_target_loss(s, t))
    assert laws_broken(raised) == {REFERENCE}
    with pytest.raises(AssertionError, match=r"the reference returns shape \(\)"):
        check_loss(soft, reference=lambda s, t: reference.soft_target_loss(s, t).mean())


@pytest.mark.parametrize(
    ("loss", "switch"),
    [
        (flawed.no_t_squared, {"temperature_invariant": False}),
        (flawed.leaking_loss, {"teacher_is_data": False}),
        (flawed.negative, {"nonnegative": False}),
        (flawed.offset, {"zero_at_equality": False}),
        (flawed.squared_logits, {"shift_invariant": False, "minus_infinity": False}),
        (flawed.wrong_gradient, {"order": 0}),
        (flawed.first_class_counts_twice, {"permutation_invariant": False}),
        (flawed.secretly_coupled, {"couples_batch": True}),
        (flawed.blind, {"sees_teacher": False}),
        (flawed.broadcasting, {"rejects_broadcasting": False}),
        (flawed.overflowing, {"finite_at_extremes": False}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_law_can_be_switched_off(loss, switch):
    check_loss(loss, **switch)


def test_a_law_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="no law is named shift_invariance"):
        check_loss(soft, shift_invariance=False)


# Terms.


GOOD_TERMS = {
    "kd": (terms.kd(), {"learns": False, "remembers": False}),
    "cross_entropy": (terms.cross_entropy(), {}),
    "hint on vectors": (terms.hint("hidden", "hidden"), {"learns": True}),
    "hint behind BatchNorm": (terms.hint("stage_2", "stage_2", norm=True), {"learns": True}),
    "hint on maps": (terms.hint("stage_2", "stage_2"), {"learns": True, "remembers": False}),
    "relation": (terms.stateless(flawed.relation_term, couples_batch=True), {}),
    "memory": (flawed.running_mean(flawed.masked_mean), {"remembers": True}),
}


@pytest.mark.parametrize("name", GOOD_TERMS)
def test_good_terms_pass(name):
    term, options = GOOD_TERMS[name]
    check_term(term, name=name, **options)


ARRAYS, VALUES = "Variables are arrays", "One float32 value per example, and a state like before"
SAME = "The same under jit as without, and finite"
FLOW = "Gradients are finite, and none reaches the teacher"
TRACE = "Masked examples leave no trace in mean, gradients and state"
ALONE = "No example looks at another (else say couples_batch=True)"
SUBSET = "Masked examples neither pair nor count"
NAN = {SAME, FLOW, TRACE, LOW}


def dead(params, x):
    return losses.hint_loss(0 * params * x, x + 1)


def low(student, teacher):
    return flawed.low_precision(student, jax.lax.stop_gradient(teacher))


BROKEN_TERMS = {
    "numpy": (flawed.learned(lambda key: np.ones((), np.float32)), {}, {ARRAYS}),
    "does not learn": (terms.kd(), {"learns": True}, {ARRAYS}),
    "does not remember": (terms.kd(), {"remembers": True}, {ARRAYS}),
    "one mean": (flawed.on_logits(lambda s, t: soft(s, t).mean()), {}, {VALUES}),
    "bfloat16": (flawed.on_logits(lambda s, t: soft(s, t).astype(jnp.bfloat16)), {}, {VALUES}),
    "state grows": (flawed.running_mean(lambda state, x: jnp.append(state, 0)), {}, {VALUES}),
    "nan": (flawed.on_logits(lambda s, t: soft(s, t) * jnp.nan), {}, NAN),
    "traced": (flawed.on_logits(flawed.other_when_compiled), {}, {SAME}),
    "leak": (flawed.on_logits(flawed.leaking_loss), {}, {FLOW}),
    "no gradient": (flawed.on_logits(lambda s, t: soft(jax.lax.stop_gradient(s), t)), {}, {FLOW}),
    "dead parameter": (flawed.learned(fn=dead), {}, {FLOW}),
    "remembers padding": (flawed.running_mean(flawed.unmasked_sum), {}, {TRACE}),
    "secretly coupled": (
        flawed.on_logits(lambda s, t: soft(s, t) * soft(s, t).mean()), {}, {TRACE, ALONE},
    ),
    "padding pairs": (
        flawed.on_logits(lambda s, t: soft(s, t) * soft(s, t).mean(), couples_batch=True),
        {},
        {TRACE, SUBSET},
    ),
    "padding counts": (
        flawed.on_logits(lambda s, t: soft(s, t) * len(s), couples_batch=True), {}, {SUBSET},
    ),
    "low precision": (flawed.on_logits(low), {}, {LOW}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_TERMS)
def test_a_term_that_breaks_a_requirement_is_told_which(name):
    term, options, laws = BROKEN_TERMS[name]
    with pytest.raises(AssertionError, match=f"check_term: {name} fails") as raised:
        check_term(term, name=name, **options)
    assert laws_broken(raised) == laws, raised.value
