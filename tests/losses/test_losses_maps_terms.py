"""The terms of feature maps: the public harness, what they learn, misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.terms import _layers, _review
from kdjax.testing import check_term, term_inputs

STAGES = ("stage_2", "stage_3")
MARGINS = [jnp.full(width, -0.3) for width in (8, 10)]
TERMS = {
    "attention": (
        terms.of(losses.attention_transfer_loss, student="stage_1", teacher="stage_2"),
        False,
    ),
    "activation_boundary": (terms.activation_boundary("stage_2", "stage_2"), True),
    "overhaul": (terms.overhaul(STAGES[0], STAGES[0], margins=MARGINS[0]), True),
    "vid": (terms.vid(("stage_1", "hidden"), ("stage_2", "hidden")), True),
    "factor_transfer": (terms.factor_transfer("stage_2", "stage_2"), True),
    "review": (terms.review(("stage_3", "hidden"), ("stage_3", "hidden")), True),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms(name):
    term, learns = TERMS[name]
    check_term(term, learns=learns, name=name, mask_is_subset=term.couples_batch, rtol=1e-4)


def test_the_flow_term_needs_stages_of_one_width():
    with pytest.raises(ValueError, match="teacher_features' flow matrix has shape"):
        terms.of(losses.flow_loss, student=STAGES, teacher=STAGES).apply({}, {}, term_inputs())


def test_terms_add_their_stages_up():
    inputs = term_inputs()
    values, _ = terms.of(losses.attention_transfer_loss, student=STAGES, teacher=STAGES).apply(
        {}, {}, inputs
    )
    parts = [
        terms.of(losses.attention_transfer_loss, student=name, teacher=name).apply({}, {}, inputs)[
            0
        ]
        for name in STAGES
    ]
    np.testing.assert_allclose(values, sum(parts), rtol=1e-6)


def test_connected_terms_halve_the_weight_of_every_stage_before_the_last():
    inputs, term = term_inputs(), terms.overhaul(STAGES, STAGES, margins=MARGINS)
    params, state = term.init(jax.random.key(0), inputs)
    values, _ = term.apply(params, state, inputs)
    expected = jnp.zeros(8)
    for i, (name, weight) in enumerate(zip(STAGES, (0.5, 1.0), strict=True)):
        one = terms.overhaul(name, name, margins=MARGINS[i])
        own = {"stage_0": params[f"stage_{i}"]}, {"stage_0": MARGINS[i]}
        expected += weight * one.apply(*own, inputs)[0]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_vid_starts_with_its_variance_and_learns_it():
    inputs = term_inputs()
    term = terms.vid("stage_2", "stage_2", initial_variance=3.0)
    params, _ = jax.jit(term.init)(jax.random.key(0), inputs)
    own = params["stage_0"]
    np.testing.assert_allclose(jax.nn.softplus(own["log_scale"]) + 1e-5, 3.0, rtol=1e-6)
    grads = jax.jit(jax.grad(lambda p: term.apply(p, {}, inputs)[0].mean()))(params)["stage_0"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_paraphrase_learns_of_the_teacher_alone():
    term, inputs = terms.paraphrase("stage_2"), term_inputs()
    check_term(term, learns=True, name="paraphrase", student_has_gradient=False, rtol=1e-4)
    params, _ = term.init(jax.random.key(0), inputs)
    assert params["encoder"]["layer_2"]["kernel"].shape == (3, 3, 4, 4)
    assert params["decoder"]["layer_2"]["kernel"].shape == (3, 3, 8, 8)


def test_factor_transfer_with_a_trained_paraphraser():
    """It is state: constant, and the value is the loss of the factors and nothing else."""
    inputs = term_inputs()
    trained, _ = jax.jit(terms.paraphrase("stage_2").init)(jax.random.key(5), inputs)
    term = terms.factor_transfer("stage_2", "stage_2", paraphraser=trained)
    check_term(term, learns=True, remembers=True, mask_is_subset=True, rtol=1e-4)
    params, state = term.init(jax.random.key(0), inputs)
    assert set(params) == {"translator"}
    value, after = term.apply(params, state, inputs)
    jax.tree.map(np.testing.assert_array_equal, after["paraphraser"], trained)
    learning = terms.factor_transfer("stage_2", "stage_2", reconstruction_weight=0.0)
    own = {"translator": params["translator"], "paraphraser": trained}
    mean = jax.jit(jax.value_and_grad(lambda p: learning.apply(p, {}, inputs)[0].mean()))
    got, grads = mean(own)
    np.testing.assert_allclose(got, value.mean(), rtol=1e-5)
    assert np.any(grads["translator"]["layer_0"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["paraphraser"]))


def test_batch_norm_counts_the_examples_of_the_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3, 4)), jnp.float32)
    mask = np.array([1, 0, 1, 1, 0], bool)
    x = x.at[1].set(jnp.nan)
    got = _layers.batch_norm(_layers.init_norm(4), x, mask)[mask]
    np.testing.assert_allclose(jnp.mean(got, axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.var(got, axis=(0, 1, 2)), 1, rtol=1e-3)
    nobody = _layers.batch_norm(_layers.init_norm(4), x[:1], np.zeros(1, bool))
    assert np.all(np.isfinite(nobody))


def test_review_resizes_to_the_nearest_position_before():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    like = jnp.zeros((1, 4, 2, 1))
    expected = [[0, 1], [0, 1], [3, 4], [3, 4]]
    np.testing.assert_array_equal(_review._resize(x, like)[0, ..., 0], expected)


def test_review_carries_the_deep_stages_to_the_shallow_ones_and_not_back():
    inputs = term_inputs()
    both, deep = terms.review(STAGES, STAGES), terms.review("stage_3", "stage_3")
    params, _ = jax.jit(both.init)(jax.random.key(0), inputs)
    assert "fuse" in params["stage_0"]
    assert "fuse" not in params["stage_1"]

    @jax.jit
    def gradients(params):
        def mean(term, params):
            return term.apply(params, {}, inputs)[0].mean()

        alone = jax.grad(lambda p: mean(deep, {"stage_0": p}))(params["stage_1"])
        return jax.grad(lambda p: mean(both, p))(params), alone

    grads, alone = gradients(params)
    assert np.any(grads["stage_0"]["fuse"]["kernel"])
    kernels = [tree["expand"]["kernel"] for tree in (grads["stage_1"], alone)]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)
    kernels = [tree["reduce"]["kernel"] for tree in (grads["stage_1"], alone)]
    assert np.max(np.abs(kernels[0] - kernels[1])) > 1e-2 * np.max(np.abs(kernels[1]))


def test_review_may_carry_fewer_channels():
    term = terms.review(STAGES, STAGES, width=3)
    params, _ = jax.eval_shape(term.init, jax.random.key(0), term_inputs())
    assert params["stage_0"]["expand"]["kernel"].shape == (3, 3, 3, 8)


MISUSE = [
    (
        ValueError,
        "attention_transfer_loss: teacher_features are ['a'], expected as many as student_features",
        lambda: terms.of(losses.attention_transfer_loss, student=["a", "b"], teacher="a"),
    ),
    (
        ValueError,
        "overhaul: margins are 1",
        lambda: terms.overhaul(["a", "b"], ["c", "d"], margins=[0.0]),
    ),
    (ValueError, "vid: initial_variance is 0", lambda: terms.vid("a", "b", initial_variance=0)),
    (ValueError, "factor_transfer: rate is 0", lambda: terms.factor_transfer("a", "b", rate=0)),
    (
        ValueError,
        "vid: the student captured no feature 'nowhere'",
        lambda: terms.vid("nowhere", "hidden").init(jax.random.key(0), term_inputs()),
    ),
    (
        ValueError,
        "review: a feature has shape (8, 5, 6)",
        lambda: terms.review("tokens", "tokens").init(jax.random.key(0), term_inputs()),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
