"""The terms of channels, class maps, generation, calibration and reused classifiers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.testing import check_term, term_inputs

CLASSIFIER = {"kernel": jax.random.normal(jax.random.key(1), (10, 6)), "bias": jnp.arange(6.0)}


@functools.cache
def inputs(**shapes):
    """Student features by name, and a teacher's of the same shapes or, after a bar, its own."""
    pairs = {name: shape.split("|") for name, shape in shapes.items()}
    student, teacher = (
        {name: tuple(map(int, pair[i].split("x"))) for name, pair in pairs.items()} for i in (0, -1)
    )
    return term_inputs(student_features=student, teacher_features=teacher)


def segmentation():
    x = inputs(map="4x4x5|4x4x7")
    labels = np.random.default_rng(0).integers(-1, 4, (8, 12, 12)).astype(np.int32)
    return x._replace(batch={**x.batch, "label": jnp.asarray(labels)})


# One map each: that stages add up is seen elsewhere.
CHECKS = {
    "channel_wise": (
        terms.of(losses.channel_wise_loss, student="a", teacher="a"),
        functools.partial(inputs, a="4x4x6"),
        {},
    ),
    "inter_channel_correlation": (
        terms.inter_channel_correlation("stage_2", "stage_1"),
        term_inputs,
        {"learns": True},
    ),
    "intra_class_variation": (
        terms.of(losses.intra_class_variation_loss, student="map", teacher="map", num_classes=3),
        segmentation,
        {},
    ),
    "masked_generation": (
        terms.masked_generation("stage_2", "stage_2", mask_ratio=0.0),
        term_inputs,
        {"learns": True, "remembers": True},
    ),
    "semantic_calibration": (
        terms.semantic_calibration(["stage_2", "stage_3"], ["stage_2"]),
        term_inputs,
        {"learns": True, "mask_is_subset": False, "rtol": 1e-4},
    ),
    "prime_aware": (terms.prime_aware("hidden", "hidden"), term_inputs, {"learns": True}),
    "softmax_regression": (
        terms.softmax_regression("stage_3", "stage_3", classifier=CLASSIFIER),
        term_inputs,
        {"learns": True, "remembers": True},
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_conformance(name):
    term, make_inputs, options = CHECKS[name]
    check_term(term, make_inputs(), name=name, **options)


def test_masks_differ_from_batch_to_batch_and_come_back_after_a_restart():
    term, x = terms.masked_generation("stage_2", "stage_2"), term_inputs()
    params, state = term.init(jax.random.key(0), x)
    apply = jax.jit(term.apply)
    first, second_state = apply(params, state, x)
    second, _ = apply(params, second_state, x)
    again, _ = apply(params, {**state, "num_batches": jnp.int32(1)}, x)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(second, again)


def test_masks_are_of_the_kind_that_is_asked_for():
    """The mask's own draw, and a projection where the widths differ."""
    x = term_inputs()
    for mask_fn in (losses.channel_mask, losses.position_mask):
        term = terms.masked_generation("stage_2", "stage_2", mask_ratio=0.3, mask_fn=mask_fn)
        params, state = term.init(jax.random.key(0), x)
        values, _ = term.apply(params, state, x)
        student = x.student.features["stage_2"] @ params["project"]["kernel"]
        key = jax.random.fold_in(state["key"], 0)
        keep = mask_fn(key, student, mask_ratio=0.3)
        expected = losses.masked_generation_loss(
            student, x.teacher.features["stage_2"], keep, params["generator"]
        )
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    same = terms.masked_generation("stage_3", "stage_3")
    equal = inputs(stage_3="2x2x8")
    assert set(same.init(jax.random.key(0), equal).params) == {"generator"}


def test_semantic_calibration_refuses_a_batch_of_another_size():
    term, x = terms.semantic_calibration(["stage_2"], ["stage_3"]), term_inputs()
    params, state = term.init(jax.random.key(0), x)
    few = jax.tree.map(lambda leaf: leaf[:4], x)
    with pytest.raises(ValueError, match="the batch has 4 examples, but the parameters are for 8"):
        term.apply(params, state, few)
    with pytest.raises(ValueError, match="hidden has shape"):
        terms.semantic_calibration(["hidden"], ["stage_3"]).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="expected at least one of each"):
        terms.semantic_calibration([], ["stage_3"])


def test_the_classifier_of_softmax_regression_is_kept_and_never_moves():
    x = term_inputs()
    term = terms.softmax_regression("stage_3", "stage_3", classifier=CLASSIFIER)
    variables = term.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables.state["kernel"], CLASSIFIER["kernel"])
    assert variables.state["kernel"] is not CLASSIFIER["kernel"]

    def total(state):
        return term.apply(variables.params, state, x)[0].sum()

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(total)(variables.state)))


@pytest.mark.parametrize("shapes", ["4x4x5|2x2x6", "2x2x5|4x4x6"])
def test_the_larger_map_is_averaged_before_a_hint(shapes):
    x, term = inputs(a=shapes), terms.hint("a", "a")
    variables = term.init(jax.random.key(0), x)
    got, _ = term.apply(*variables, x)
    student, teacher = (
        np.asarray(side.features["a"], np.float64).reshape(8, 2, -1, 2, n // 2, width).mean((2, 4))
        for side, n, width in zip(
            (x.student, x.teacher), (int(s[0]) for s in shapes.split("|")), (5, 6), strict=True
        )
    )
    mapped = student @ np.asarray(variables.params["kernel"], np.float64)
    np.testing.assert_allclose(got, np.square(mapped - teacher).mean((1, 2, 3)), rtol=1e-4)
