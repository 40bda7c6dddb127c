"""`terms.of` fills the parameters of a loss by their names, and old names of terms still work."""

import functools
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, terms
from kdjax.objective import combine
from kdjax.terms import _renamed
from kdjax.testing import check_term, term_inputs

INPUTS = term_inputs()
LOGITS = INPUTS.student.logits, INPUTS.teacher.logits
LABELS = INPUTS.batch["label"]
SIDES = {"student": "hidden", "teacher": "hidden"}


def values_of(term, inputs=INPUTS):
    return jax.jit(lambda x: term.apply({}, {}, x)[0])(inputs)


def own_loss(teacher_logits, label_probs, student_hidden, *, mask, scale=2.0):
    """A loss of the user's: another order, a feature of another name, a mask that it must have."""
    probs = jax.nn.one_hot(label_probs, teacher_logits.shape[-1])
    gap = jnp.square(jax.lax.stop_gradient(teacher_logits) - probs).sum(-1)
    return jnp.where(mask, scale * gap * jnp.square(student_hidden).sum(-1), 0)


@pytest.mark.parametrize(
    ("loss", "hyper", "expected"),
    [
        (losses.dkd_loss, {"temperature": 2.0}, lambda f: f(*LOGITS, LABELS, temperature=2.0)),
        (losses.cross_entropy, {}, lambda f: f(LOGITS[0], LABELS)),
        (losses.virtual_teacher_loss, {}, lambda f: f(LOGITS[0], LABELS)),
        (losses.dist_loss, {}, lambda f: f(*LOGITS, mask=INPUTS.mask)),
        (
            losses.skew_kl_divergence,
            {"skew": 0.3, "temperature": 2.0},
            lambda f: f(*(losses.tempered_log_softmax(x, 2.0) for x in LOGITS), skew=0.3),
        ),
        (
            losses.total_variation,
            {},
            lambda f: f(*(losses.tempered_log_softmax(x, 1.0) for x in LOGITS)),
        ),
        (
            functools.partial(losses.kd_loss, soft_weight=0.5),
            {"temperature": 3.0},
            lambda f: f(*LOGITS, LABELS, temperature=3.0),
        ),
        (
            losses.soft_target_loss,
            {"where": jnp.arange(6) < 4},
            lambda f: f(*LOGITS, where=jnp.arange(6) < 4),
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_logits_and_labels_are_filled_by_name(loss, hyper, expected):
    wanted = jax.jit(expected, static_argnums=0)(loss)
    np.testing.assert_allclose(values_of(terms.of(loss, **hyper)), wanted, rtol=1e-6)


def test_features_are_filled_by_path():
    term = terms.of(losses.probabilistic_transfer_loss, **SIDES)
    pair = [x.features["hidden"] for x in (INPUTS.student, INPUTS.teacher)]
    expected = jax.jit(losses.probabilistic_transfer_loss)(*pair, mask=INPUTS.mask)
    np.testing.assert_allclose(values_of(term), expected, rtol=1e-6)
    check_term(term, learns=False, remembers=False)


def test_stages_are_summed_or_taken_at_once_as_the_loss_asks():
    names = ["stage_1", "stage_2"]
    same = INPUTS._replace(teacher=INPUTS.teacher._replace(features=INPUTS.student.features))
    found = [INPUTS.student.features[name] for name in names]
    maps = [x + 1 for x in found]
    other = same._replace(
        teacher=same.teacher._replace(features=dict(zip(names, maps, strict=True)))
    )
    summed = terms.of(losses.attention_transfer_loss, student=names, teacher=names)
    expected = sum(map(jax.jit(losses.attention_transfer_loss), found, maps))
    np.testing.assert_allclose(values_of(summed, other), expected, rtol=1e-6)
    whole = terms.of(losses.flow_loss, student=names, teacher=names)
    flows = [
        x._replace(features={n: f[..., :4] for n, f in x.features.items()})
        for x in (other.student, other.teacher)
    ]
    given = other._replace(student=flows[0], teacher=flows[1])
    expected = jax.jit(losses.flow_loss)(*([x.features[n] for n in names] for x in flows))
    np.testing.assert_allclose(values_of(whole, given), expected, rtol=1e-6)


def test_a_loss_of_the_users_own():
    term = terms.of(own_loss, student="hidden", scale=3.0)
    assert term.couples_batch
    expected = own_loss(
        LOGITS[1], LABELS, INPUTS.student.features["hidden"], mask=INPUTS.mask, scale=3.0
    )
    np.testing.assert_allclose(values_of(term), expected, rtol=1e-6)
    assert not terms.of(own_loss, student="hidden", couples_batch=False).couples_batch


def test_what_takes_a_mask_couples_the_batch():
    assert terms.of(losses.dist_loss).couples_batch
    assert not terms.of(losses.dkd_loss).couples_batch
    masked = INPUTS._replace(mask=jnp.arange(8) < 5)
    values = values_of(terms.of(losses.batch_correlation_loss), masked)
    np.testing.assert_array_equal(values[5:], 0)


@pytest.mark.parametrize(
    ("kind", "loss", "given", "words"),
    [
        (TypeError, losses.dkd_loss, {"alpha": 1.0}, "dkd_loss has no parameter 'alpha'"),
        (ValueError, losses.cosine_loss, {"student": "a"}, "cosine_loss takes teacher_features"),
        (ValueError, losses.hint_loss, {}, "hint_loss takes student_features, a feature"),
        (ValueError, losses.dkd_loss, {"student": "a"}, "dkd_loss takes no feature of the student"),
        (ValueError, losses.self_rank_loss, {}, "self_rank_loss takes weak_logits"),
        (ValueError, losses.overhaul_loss, SIDES, "overhaul_loss takes margin"),
        (ValueError, losses.taid_loss, {}, "taid_loss takes interpolation"),
        (
            ValueError,
            losses.cosine_loss,
            {"student": ["a", "b"], "teacher": "c"},
            r"cosine_loss: teacher_features are \['c'\], expected as many",
        ),
    ],
)
def test_what_cannot_be_filled_is_named_at_construction(kind, loss, given, words):
    with pytest.raises(kind, match=words):
        terms.of(loss, **given)


def test_what_was_not_captured_is_named_at_trace_time():
    term = terms.of(losses.cosine_loss, student="hidden", teacher="nowhere")
    with pytest.raises(ValueError, match="cosine_loss: the teacher captured no feature 'nowhere'"):
        values_of(term)
    with pytest.raises(ValueError, match="needs a teacher's outputs"):
        values_of(terms.of(losses.dkd_loss), INPUTS._replace(teacher=None))


def test_few_frames_lie_between_objective_and_loss():
    """A reader of a stack sees the objective, one line of `terms`, and the loss."""
    stack = []

    def looking_loss(student_logits, teacher_logits):
        stack.extend(frame.filename for frame in traceback.extract_stack())
        return losses.soft_target_loss(student_logits, teacher_logits)

    objective = combine({"soft": terms.of(looking_loss)}, {"soft": 1.0})
    objective.apply({"soft": {}}, {"soft": {}}, INPUTS)
    own = [name for name in stack if "/kdjax/" in name]
    assert [name.rpartition("/kdjax/")[2] for name in own] == ["objective.py", "terms/_of.py"]


def test_normalized_sees_features_of_length_one():
    term = terms.normalized(terms.of(losses.cosine_loss, student="stage_2", teacher="stage_2"))
    pair = [x.features["stage_2"][..., :6].reshape(8, -1) for x in (INPUTS.student, INPUTS.teacher)]
    same = INPUTS._replace(
        teacher=INPUTS.teacher._replace(features={"stage_2": pair[1].reshape(8, 4, 4, 6)})
    )
    units = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in pair]
    expected = jax.jit(losses.cosine_loss)(*units)
    np.testing.assert_allclose(values_of(term, same), expected, rtol=1e-5)


OLD = {
    "attention": ((["stage_1", "stage_2"], ["stage_1", "stage_2"]), {"power": 3}),
    "class_attention": ((), {"resolution": 1}),
    "channel_wise": (("stage_2", "stage_1"), {"temperature": 2.0}),
    "dkd": ((), {"temperature": 2.0}),
    "hard_dark_rank": (("hidden",), {"teacher_features": "hidden", "normalize": True}),
    "reverse_kl": ((), {"temperature": 2.0}),
    "simkd": (("stage_2",), {"student_feature": "stage_1"}),
    "top_k_js": ((), {"num_kept": 2}),
}
WIDE = term_inputs(
    student_features={"stage_1": (8, 8, 4), "stage_2": (4, 4, 4), "hidden": (5,)},
    teacher_features={"stage_1": (8, 8, 4), "stage_2": (4, 4, 4), "hidden": (7,)},
)
FEATURES, MAPS = (x.features for x in (WIDE.student, WIDE.teacher))
EXPECTED = {
    "attention": lambda: sum(
        losses.attention_transfer_loss(FEATURES[n], MAPS[n], power=3)
        for n in ("stage_1", "stage_2")
    ),
    "class_attention": lambda: losses.class_attention_loss(
        FEATURES["stage_1"], MAPS["stage_1"], resolution=1
    ),
    "channel_wise": lambda: losses.channel_wise_loss(
        *losses.match_sizes(FEATURES["stage_2"], MAPS["stage_1"]), temperature=2.0
    ),
    "dkd": lambda: losses.dkd_loss(
        WIDE.student.logits, WIDE.teacher.logits, WIDE.batch["label"], temperature=2.0
    ),
    "hard_dark_rank": lambda: losses.hard_dark_rank_loss(
        *(
            x["hidden"] / jnp.linalg.norm(x["hidden"], axis=1, keepdims=True)
            for x in (FEATURES, MAPS)
        )
    ),
    "reverse_kl": lambda: losses.reverse_kl_divergence(
        *(losses.tempered_log_softmax(x.logits, 2.0) for x in (WIDE.student, WIDE.teacher))
    ),
    "simkd": lambda: losses.projected_feature_loss(FEATURES["stage_1"], MAPS["stage_2"]),
    "top_k_js": lambda: losses.generalized_js_divergence(
        *losses.top_k_log_probs_with_tail(
            *(jax.nn.log_softmax(x.logits) for x in (WIDE.student, WIDE.teacher)), num_kept=2
        )
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_warns_and_works(name):
    args, keywords = OLD[name]
    with pytest.warns(DeprecationWarning, match=rf"kdjax.terms.{name} goes .* terms\.of\("):
        make = getattr(terms, name)
    inputs = WIDE._replace(
        student=WIDE.student._replace(features={**FEATURES, "class_maps": FEATURES["stage_1"]}),
        teacher=WIDE.teacher._replace(features={**MAPS, "class_maps": MAPS["stage_1"]}),
    )
    np.testing.assert_allclose(
        values_of(make(*args, **keywords), inputs), jax.jit(EXPECTED[name])(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", sorted(_renamed._TABLE))
def test_every_old_name_is_of_a_loss(name):
    assert name not in terms.__all__
    with pytest.warns(DeprecationWarning, match="goes with the next release"):
        make = getattr(terms, name)
    paths = dict.fromkeys(_renamed._TABLE[name].paths, "stage_1")
    needed = {"top_k_js": {"num_kept": 2}, "intra_class_variation": {"num_classes": 3}}
    assert make(**paths, **needed.get(name, {})).apply


def test_a_name_that_never_was_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        terms.nothing
