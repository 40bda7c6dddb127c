"""Losses on the logits of classifiers: the harness, edges, laws and misuse."""

import functools
import inspect

import every
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_classification as reference

from kdjax import losses
from kdjax.heads import TopK
from kdjax.testing import check_loss

# What each loss rightly breaks of the harness. Correlations know -inf as a probability of 0, not as
# a class that is gone; weights that the student has no gradient by escape finite differences.
CORRELATIONS = {"minus_infinity": False, "temperature_invariant": False}
CASES = {
    "dkd_loss": {},
    "nkd_loss": {},
    "wsld_loss": {"order": 0},
    "ttm_loss": {"zero_at_equality": False, "temperature_invariant": False},
    "wttm_loss": {"zero_at_equality": False, "temperature_invariant": False},
    "logit_mse_loss": {"shift_invariant": False},
    "logit_distance_loss": {"shift_invariant": False},
    "hard_target_loss": {"zero_at_equality": False},
    "dist_loss": {**CORRELATIONS, "zero_atol": 1e-4},
    "batch_correlation_loss": {"temperature_invariant": False},
    "class_correlation_loss": CORRELATIONS,
    "multi_level_loss": CORRELATIONS,
    "direction_relation_loss": {"shift_invariant": False},
    "virtual_teacher_loss": {"temperature_invariant": False},
    "self_target_loss": {"order": 0},
    "self_rank_loss": {},
}


@pytest.mark.parametrize("name", CASES)
def test_harness(name):
    check_loss(getattr(losses, name), reference=getattr(reference, name), **CASES[name])


QUICK = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
INF = np.inf


@functools.cache
def compiled(name, **hyper):
    """The loss with the gradient of its sum by the student, compiled once for a shape."""

    def run(student, *rest, **keywords):
        def total(x):
            values = getattr(losses, name)(x, *rest, **hyper, **keywords)
            return values.sum(), values

        grad, values = jax.grad(total, has_aux=True)(student)
        return values, grad

    return jax.jit(run, compiler_options=QUICK)


def rows(*values):
    return jnp.asarray(values, jnp.float32)


def drawn(shape=(8, 6), seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    pair = (scale * rng.normal(size=shape).astype(np.float32) for _ in range(2))
    return *map(jnp.asarray, pair), jnp.asarray(rng.integers(0, shape[-1], shape[:-1]))


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


# Rows, by what is the matter with them; the label is class 0 and there are four classes.
STUDENT = rows(
    [-INF, 1, 2, 0], [-INF, 1, 2, 0], [3, 1, 2, 0], [3, 1, 2, 0], [3, -INF, -INF, -INF],
    [110, 0, 0, 5], [1e4, -1e4, 0, 1], [3, 1, -INF, 0], [3, -INF, -INF, -INF],
)  # fmt: skip
TEACHER = rows(
    [1, 2, 0, 4], [-INF, 2, 0, 4], [-INF, 2, 0, 4], [0, -INF, -INF, -INF], [1, -INF, -INF, -INF],
    [0, 1, 0, 2], [-1e4, 1e4, 1, 0], [1, 2, 3, 4], [1, 2, 3, 4],
)  # fmt: skip
ONLY_STUDENT_LACKS_IT, NEITHER_HAS_IT, ONLY_TEACHER_LACKS_IT, ONE_HOT, ALONE = range(5)
SATURATED, EXTREME, LACKS_ANOTHER, LACKS_ALL_OTHERS = range(5, 9)
FIRST = jnp.zeros(len(STUDENT), jnp.int32)
OTHERS = {"q": reference.probs([1.0, 2, 0]), "p": reference.probs([2.0, 0, 4])}


def test_dkd_at_the_edges():
    target = compiled("dkd_loss", temperature=1.0, nontarget_weight=0)
    value, grad = target(STUDENT, TEACHER, FIRST)
    assert np.all(np.isfinite(grad))
    infinite = [ONLY_STUDENT_LACKS_IT, LACKS_ALL_OTHERS]
    assert np.all(np.isposinf(value[jnp.array(infinite)]))
    q = reference.probs([3.0, 1, 2, 0])[0]
    np.testing.assert_array_equal(value[NEITHER_HAS_IT], 0)
    np.testing.assert_array_equal(value[ALONE], 0)
    np.testing.assert_allclose(value[ONLY_TEACHER_LACKS_IT], -np.log1p(-q), rtol=1e-5)
    np.testing.assert_allclose(value[ONE_HOT], -np.log(q), rtol=1e-5)
    # The peers' logarithm of a sum of probabilities that underflows is infinite here.
    p = reference.probs([0.0, 1, 0, 2])[0]
    right = p * np.log(p) + (1 - p) * (np.log1p(-p) - (np.log(2 + np.exp(5)) - 110))
    np.testing.assert_allclose(value[SATURATED], right, rtol=1e-5)
    others = compiled("dkd_loss", temperature=1.0, target_weight=0)
    value, grad = others(STUDENT, TEACHER, FIRST)
    assert np.all(np.isfinite(grad))
    assert np.all(np.isposinf(value[jnp.array([LACKS_ANOTHER, LACKS_ALL_OTHERS])]))
    right = 8 * kl(OTHERS["p"], OTHERS["q"])
    np.testing.assert_allclose(value[: ONLY_TEACHER_LACKS_IT + 1], right, rtol=1e-5)
    np.testing.assert_array_equal(value[jnp.array([ONE_HOT, ALONE])], 0)
    assert np.all(np.isfinite(value[jnp.array([SATURATED, EXTREME])]))


def test_dkd_removes_the_target_however_sure_the_teacher_is():
    """Peers subtract 1000 from the target's logit, which a teacher of 1000 undoes."""
    student, teacher = rows([1, 2, 0]), rows([1000, 0, 1])
    value, _ = compiled("dkd_loss", temperature=1.0, target_weight=0)(student, teacher, FIRST[:1])
    right = 8 * kl(reference.probs([0.0, 1]), reference.probs([2.0, 0]))
    np.testing.assert_allclose(value, [right], rtol=1e-5)


def test_nkd_and_wsld_at_the_edges():
    value, grad = compiled("nkd_loss", temperature=1.0)(STUDENT, TEACHER, FIRST)
    assert np.all(np.isfinite(grad))
    infinite = jnp.array([ONLY_STUDENT_LACKS_IT, LACKS_ANOTHER, LACKS_ALL_OTHERS])
    assert np.all(np.isposinf(value[infinite]))
    cross = reference.cross(OTHERS["p"], OTHERS["q"])
    np.testing.assert_allclose(value[NEITHER_HAS_IT], 1.5 * cross, rtol=1e-5)
    np.testing.assert_allclose(value[ONLY_TEACHER_LACKS_IT], 1.5 * cross, rtol=1e-5)
    nll = -np.log(reference.probs([3.0, 1, 2, 0])[0])
    np.testing.assert_allclose(value[ONE_HOT], nll, rtol=1e-5)
    value, grad = compiled("wsld_loss", temperature=1.0)(STUDENT, TEACHER, FIRST)
    assert np.all(np.isfinite(grad))
    assert np.all(np.isposinf(value[infinite[:2]]))
    # Neither has the label, as if both had given it the same logit of minus 10^4.
    np.testing.assert_allclose(value[NEITHER_HAS_IT], (1 - np.exp(-1)) * cross, rtol=1e-5)
    np.testing.assert_allclose(value[ONE_HOT], nll, rtol=1e-5)
    # A student that is sure of the label, whatever else it lacks, has nothing to learn.
    np.testing.assert_array_equal(value[jnp.array([ALONE, LACKS_ALL_OTHERS])], 0)
    assert np.all(np.isfinite(value[jnp.array([SATURATED, EXTREME])]))


def test_the_weight_of_wsld_is_constant():
    student, teacher, labels = drawn()
    _, grad = compiled("wsld_loss", temperature=2.0)(student, teacher, labels)
    q, p = (reference.probs(x, 2.0) for x in (student, teacher))
    nll = [-np.log(reference.probs(x)[np.arange(8), labels]) for x in (student, teacher)]
    weight = 1 - np.exp(-nll[0] / nll[1])
    np.testing.assert_allclose(grad, 2 * weight[:, None] * (q - p), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("dkd_loss", {"nontarget_weight": 0}),
        ("dkd_loss", {"target_weight": 0}),
        ("ttm_loss", {"temperature": 1.0}),
        ("batch_correlation_loss", {"temperature": 1.0}),
        ("class_correlation_loss", {"temperature": 1.0}),
        ("dist_loss", {"eps": 0.0}),
    ],
)
def test_digits_are_kept_near_equality(name, hyper):
    """Float32 against float64, where the textbook formulas have no digits left."""
    rng = np.random.default_rng(3)
    teacher = rng.normal(0, 3, (16, 10)).astype(np.float32)
    student = (teacher + rng.normal(0, 1e-3, teacher.shape)).astype(np.float32)
    labels = rng.integers(0, 10, 16).astype(np.int32)
    rest = (teacher, labels) if name == "dkd_loss" else (teacher,)
    value, grad = compiled(name, **hyper)(student, *rest)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in (student, teacher)]
        exact, exact_grad = compiled(name, **hyper)(wide[0], wide[1], *rest[1:])
    assert exact.dtype == np.float64
    np.testing.assert_allclose(value, exact, rtol=1e-3 if name == "dist_loss" else 3e-5)
    np.testing.assert_allclose(grad, exact_grad, atol=1e-3 * np.max(np.abs(exact_grad)))
    same, flat = compiled(name, **hyper)(teacher, *rest)
    np.testing.assert_array_equal(same, 0)
    assert np.max(np.abs(flat)) <= 1e-6 * np.max(np.abs(exact_grad))


def test_minus_infinity_is_the_limit_and_where_removes():
    """In correlations a class of probability 0 still counts; `where` takes it out."""
    student, teacher, _ = drawn()
    keep = jnp.arange(7) != 4
    padded = [jnp.insert(x, 4, 0.0, axis=-1) for x in (student, teacher)]
    for name in ("dist_loss", "class_correlation_loss"):
        absent = [compiled(name)(*(jnp.where(keep, x, a) for x in padded)) for a in (-INF, -1e4)]
        np.testing.assert_allclose(*(value for value, _ in absent), rtol=1e-5)
        np.testing.assert_array_equal(absent[0][1][:, 4], 0)
        value, grad = compiled(name)(*padded, where=keep[None])
        few, few_grad = compiled(name)(student, teacher)
        np.testing.assert_allclose(value, few, rtol=1e-5)
        np.testing.assert_allclose(grad[:, keep], few_grad, rtol=1e-4, atol=1e-6)
        assert np.max(np.abs(absent[0][0] - few)) > 1e-3


def test_correlations_with_infinity_in_one_of_the_two():
    student, teacher, _ = drawn()
    gone = jnp.arange(6) == 2
    for name in ("dist_loss", "class_correlation_loss", "batch_correlation_loss"):
        for pair in ((jnp.where(gone, -INF, student), teacher),
                     (student, jnp.where(gone, -INF, teacher))):  # fmt: skip
            value, grad = compiled(name)(*pair)
            assert np.all(np.isfinite(value))
            assert np.all(np.isfinite(grad))
            limit = (np.where(np.isneginf(x), -1e4, np.asarray(x, float)) for x in pair)
            np.testing.assert_allclose(value, getattr(reference, name)(*limit), rtol=1e-4)


def test_the_gradient_of_soft_targets_where_the_student_lacks_a_class():
    """The value is infinite; the other classes have the gradient of q - p all the same."""
    student, teacher, _ = drawn()
    student = (teacher + 0.1 * student).at[:, 2].set(-INF)
    value, grad = compiled("soft_target_loss", temperature=1.0)(student, teacher)
    assert np.all(np.isposinf(value))
    right = reference.probs(student) - reference.probs(teacher)
    np.testing.assert_allclose(np.delete(grad, 2, 1), np.delete(right, 2, 1), rtol=1e-4, atol=1e-6)


def test_what_does_not_vary_has_no_correlation():
    student, teacher, _ = drawn((4, 3))
    flat, one = jnp.zeros((4, 3)), jnp.ones((4, 1))
    for pair, inter, intra in (
        ((flat, teacher), 1.0, 1.0),
        ((student, flat), 1.0, 1.0),
        ((one * student[:1], teacher), None, 1.0),
    ):
        value, grad = compiled("dist_loss", intra_weight=0)(*pair)
        assert np.all(np.isfinite(grad))
        assert inter is None or np.all(value == inter)
        assert inter is None or not np.any(grad)
        value, grad = compiled("dist_loss", inter_weight=0)(*pair)
        np.testing.assert_array_equal(value, intra)
        np.testing.assert_array_equal(grad, 0)


def test_dist_of_pixels_is_dist_of_rows():
    student, teacher, _ = drawn((3, 4, 6))
    mask = jnp.array([True, False, True])
    value, _ = compiled("dist_loss")(student, teacher, mask=mask)
    kept = [x[mask].reshape(8, 6) for x in (student, teacher)]
    expected = reference.dist_loss(*(np.asarray(x, float) for x in kept))
    np.testing.assert_allclose(value[mask].reshape(8), expected, rtol=1e-5)
    np.testing.assert_array_equal(value[1], 0)


def test_confidences_choose_anchors_and_classes():
    student, teacher, _ = drawn()
    loss = compiled("multi_level_loss", temperatures=(1.0, 3.0), confidence_quantile=0.5)
    expected = reference.multi_level_loss(student, teacher, (1.0, 3.0), confidence_quantile=0.5)
    np.testing.assert_allclose(loss(student, teacher)[0], expected, rtol=1e-5)
    more = [jnp.concatenate([x, 5 * x[:3]]) for x in (student, teacher)]
    value, grad = loss(*more, mask=jnp.arange(11) < 8)
    np.testing.assert_allclose(value[:8], expected, rtol=1e-5)
    np.testing.assert_array_equal(value[8:], 0)
    np.testing.assert_array_equal(grad[8:], 0)


def test_standardized_logits():
    x = np.asarray(drawn()[0], np.float64)
    for scale, shift in ((1, 0), (1e3, 1e4), (1e-2, -5)):
        got = losses.standardize_logits(scale * x + shift)
        np.testing.assert_allclose(got, reference.standardize_logits(x, eps=0), rtol=2e-3)
        assert got.dtype == jnp.float32
    wide = rows([1, 2, -INF, 4], [3, 3, 3, 3], [-INF, -INF, 5, -INF], [-INF] * 4)
    weights = rows([1, 2, 3, 4])

    def total(x):
        scores = losses.standardize_logits(x)
        return jnp.sum(jnp.where(jnp.isneginf(scores), 0, scores * weights)), scores

    grad, scores = jax.grad(total, has_aux=True)(wide)
    assert np.all(np.isfinite(grad))
    expected = reference.standardize_logits(np.array([1.0, 2, 4]))
    np.testing.assert_allclose(scores[0, jnp.array([0, 1, 3])], expected, rtol=1e-5)
    np.testing.assert_array_equal(scores[0, 2], -INF)
    np.testing.assert_array_equal(scores[1], 0)
    np.testing.assert_array_equal(grad[1:], 0)
    np.testing.assert_array_equal(scores[2], [-INF, -INF, 0, -INF])
    keep = jnp.array([True, True, False, True])
    chosen = losses.standardize_logits(rows([1, 2, 9, 4]).T, axis=0, where=keep[:, None])
    np.testing.assert_allclose(chosen.T[0], scores[0], rtol=1e-6)


def test_logits_of_a_class_that_only_one_has_are_infinitely_far():
    student, teacher = rows([1, -INF, 3], [1, 2, 3]), rows([1, 2, 3], [1, -INF, 5])
    for name in ("logit_mse_loss", "logit_distance_loss"):
        value, grad = compiled(name)(student, teacher)
        assert np.all(np.isposinf(value))
        assert np.all(np.isfinite(grad))


def test_smoothed_choice_and_virtual_teacher():
    student, teacher, labels = drawn()
    got, _ = compiled("hard_target_loss", smoothing=0.2)(student, teacher)
    expected = reference.hard_target_loss(student, teacher, smoothing=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got, _ = compiled("virtual_teacher_loss", confidence=1.0)(student, labels)
    np.testing.assert_allclose(got, losses.cross_entropy(student, labels), rtol=1e-5)
    got, grad = compiled("virtual_teacher_loss")(STUDENT, FIRST)
    assert np.all(np.isposinf(got[:2])) and np.all(np.isfinite(grad))
    # A student that is as sure as the teacher has learnt all of it.
    taught = jnp.where(jnp.arange(4) == 0, jnp.log(0.99 * 3 / 0.01) / 20, 0)[None]
    np.testing.assert_allclose(compiled("virtual_teacher_loss")(taught, FIRST[:1])[0], 0, atol=1e-7)


def test_self_ranks():
    student, weak, labels = drawn()
    value, grad = compiled("self_rank_loss")(student, weak, labels)
    np.testing.assert_allclose(value, reference.self_rank_loss(student, weak, labels), rtol=1e-5)
    np.testing.assert_array_equal(grad[np.arange(8), labels], 0)
    by_weak = jax.grad(lambda w: losses.self_rank_loss(student, w, labels).sum())(weak)
    np.testing.assert_array_equal(by_weak, 0)
    padded = [jnp.insert(x, 6, -INF, axis=-1) for x in (student, weak)]
    np.testing.assert_allclose(compiled("self_rank_loss")(*padded, labels)[0], value, rtol=1e-5)


def test_self_targets_have_no_gradient_through_their_weights():
    student, _, labels = drawn()
    _, grad = compiled("self_target_loss")(student, labels)
    q = reference.probs(student)
    at_label = q[np.arange(8), labels]
    weight = 1 + at_label**2 - np.mean(at_label**2)
    expected = weight[:, None] * (q - np.eye(6)[labels])
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_reversed_gradients():
    def f(x, scale):
        return jnp.sum(jnp.sin(losses.reverse_gradient(x, scale)))

    x = jnp.linspace(-1.0, 1.0, 5)
    value, grad = jax.jit(jax.value_and_grad(f))(x, 0.25)
    np.testing.assert_allclose(value, np.sum(np.sin(x)), atol=1e-6)
    np.testing.assert_allclose(grad, -0.25 * np.cos(x), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(f)(x, 0), 0)
    np.testing.assert_array_equal(jax.grad(f, 1)(x, 0.5), 0)
    low = losses.reverse_gradient(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_a_weight_of_zero_leaves_an_infinite_part_out():
    value, _ = compiled("dkd_loss", nontarget_weight=0)(STUDENT, TEACHER, FIRST)
    assert np.isfinite(value[LACKS_ANOTHER])


@pytest.mark.parametrize("name", ["dkd_loss", "nkd_loss", "wsld_loss"])
def test_a_traced_label_that_is_no_class_poisons_its_example(name):
    student, teacher, labels = drawn()
    values, _ = compiled(name)(student, teacher, labels.at[3].set(6))
    assert np.isnan(values[3])
    assert np.all(np.isfinite(np.delete(values, 3)))


X, V, Y = drawn()
MISUSE = [
    (ValueError, "dkd_loss: labels has shape (7,)", lambda: losses.dkd_loss(X, V, Y[:7])),
    (ValueError, "labels has 12, expected 0 to 5", lambda: losses.nkd_loss(X, V, Y * 0 + 12)),
    (TypeError, "wsld_loss: labels has dtype float32", lambda: losses.wsld_loss(X, V, V)),
    (ValueError, "target_weight is -1", lambda: losses.dkd_loss(X, V, Y, target_weight=-1)),
    (
        ValueError,
        "target_weight has shape (3,), expected () or (8,)",
        lambda: losses.dkd_loss(X, V, Y, target_weight=jnp.ones(3)),
    ),
    (ValueError, "temperature is 0", lambda: losses.ttm_loss(X, V, temperature=0)),
    (ValueError, "teacher_logits has shape (8, 5)", lambda: losses.wttm_loss(X, V[:, 1:])),
    (TypeError, "mask has dtype int32", lambda: losses.dist_loss(X, V, mask=Y)),
    (
        ValueError,
        "batch_correlation_loss: mask has shape (7,), expected (8,)",
        lambda: losses.batch_correlation_loss(X, V, mask=jnp.ones(7, bool)),
    ),
    (ValueError, "eps is -1", lambda: losses.dist_loss(X, V, eps=-1)),
    (ValueError, "temperatures is 0", lambda: losses.multi_level_loss(X, V, temperatures=[0.0])),
    (
        ValueError,
        "temperatures has shape (0,)",
        lambda: losses.multi_level_loss(X, V, temperatures=()),
    ),
    (
        ValueError,
        "confidence_quantile is 2",
        lambda: losses.multi_level_loss(X, V, confidence_quantile=2),
    ),
    (
        ValueError,
        "regularization is 0",
        lambda: losses.direction_relation_loss(X, V, regularization=0),
    ),
    (ValueError, "smoothing is 1.5", lambda: losses.hard_target_loss(X, V, smoothing=1.5)),
    (ValueError, "confidence is 0", lambda: losses.virtual_teacher_loss(X, Y, confidence=0)),
    (TypeError, "x has dtype int32", lambda: losses.reverse_gradient(Y)),
    (ValueError, "scale is -1", lambda: losses.reverse_gradient(X, -1)),
    (ValueError, "low is 0", lambda: losses.curriculum_temperature(X, low=0)),
    (ValueError, "num_steps is 0", lambda: losses.curriculum_strength(3, 0)),
    (ValueError, "weak_logits has shape", lambda: losses.self_rank_loss(X, V[:7], Y)),
    (TypeError, "logits has dtype int32", lambda: losses.standardize_logits(Y)),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_smoothed_labels_are_part_of_all_classes_that_are_there(kind):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6, 5))
    x[:3, 4] = -np.inf
    classes = rng.integers(0, 4, 6)
    probs = np.eye(5)[classes] if kind == "classes" else rng.dirichlet(np.ones(4), 6)
    probs = np.pad(probs, ((0, 0), (0, 5 - probs.shape[1])))
    there = np.isfinite(x)
    log_q = x - np.log(np.sum(np.exp(x), -1, keepdims=True))
    label = 0.7 * probs + 0.3 * there / there.sum(-1, keepdims=True)
    want = -np.sum(np.where(there, label * np.where(there, log_q, 0), 0), -1)
    given = classes if kind == "classes" else np.float32(probs)
    values = losses.cross_entropy(np.float32(x), given, label_smoothing=0.3)
    np.testing.assert_allclose(values, want, rtol=2e-6)
    traced = jax.jit(lambda e: losses.cross_entropy(np.float32(x), given, label_smoothing=e))
    np.testing.assert_allclose(traced(0.3), want, rtol=2e-6)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.cross_entropy(np.float32(x), given, label_smoothing=1.5)


def largest(logits, num):
    classes = np.argsort(-logits, axis=-1)[..., :num]
    values, dense = np.take_along_axis(logits, classes, -1), np.full_like(logits, -np.inf)
    np.put_along_axis(dense, classes, values, -1)
    return TopK(values, classes), dense


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("num", [1, 5, 40])
def test_a_teachers_largest_logits_are_all_of_them_with_the_rest_at_minus_infinity(
    num, temperature
):
    r = np.random.default_rng(num)
    student, teacher = (np.float32(r.normal(size=(2, 3, 40)) * 3) for _ in range(2))
    labels = r.integers(0, 40, (2, 3))
    where = r.random((2, 3, 40)) < 0.8
    where[..., 0] = True
    where[0, 0] = np.arange(40) != teacher[0, 0].argmax()
    top, dense = largest(teacher, num)
    none = np.full_like(top.indices[..., :1], -1), np.full_like(top.indices[..., :1], 40)
    padded = TopK(
        np.concatenate([top.logits, *(9 + 0 * x for x in none)], -1).astype(np.float32),
        np.concatenate([top.indices, *none], -1),
    )

    def loss(student, t, given, **keywords):
        return losses.kd_loss(student, given, labels, temperature=t, **keywords)

    def both(given, **keywords):
        values = loss(student, temperature, given, **keywords)

        def total(x, t):
            return jnp.sum(jnp.where(jnp.isfinite(values), loss(x, t, given, **keywords), 0))

        return values, jax.grad(total, argnums=(0, 1))(student, jnp.float32(temperature))

    for keywords in ({}, {"where": where}):
        expected = both(dense, **keywords)
        for given in (top, padded):
            found = both(given, **keywords)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, expected
            )
    soft = losses.soft_target_loss(student, top, temperature=temperature)
    np.testing.assert_allclose(
        soft, losses.soft_target_loss(student, dense, temperature=temperature), rtol=2e-5
    )


def test_a_teachers_largest_logits_keep_digits_and_take_no_room():
    # A student that nearly has the teacher's distribution on the classes that are there, and one
    # that gives the others a billionth of the mass.
    teacher = np.array([[3.0, 1.0, -2.0, 0.5]], np.float32)
    student = np.concatenate([teacher + np.array([1e-4, 0, -1e-4, 0]), [[-20.0, -21.0]]], -1)
    top = TopK(teacher, np.arange(4)[None])
    p = np.exp(teacher.astype(np.float64))
    q, p = np.exp(np.float32(student).astype(np.float64)), p / p.sum()
    q /= q.sum()
    expected = np.sum(p * (np.log(p) - np.log(q[:, :4])))
    found, gradient = jax.value_and_grad(
        lambda x: losses.soft_target_loss(x, top, temperature=1.0).sum()
    )(jnp.float32(student))
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=1e-10)
    q[:, :4] -= p
    np.testing.assert_allclose(gradient, q, rtol=0.05, atol=1e-10)

    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((64, 32000), jnp.float32),
            ((64, 16), jnp.float32),
            ((64, 16), jnp.int32),
        )
    ]
    grad = jax.grad(lambda x, v, i: losses.soft_target_loss(x, TopK(v, i)).mean())
    memory = jax.jit(grad).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 64 * 32000 * 4


def test_a_teachers_largest_logits_at_the_edges():
    x = jnp.array([[1.0, -INF, 0.0], [1.0, 2.0, 0.0], [-INF, -INF, -INF]])
    top = TopK(jnp.array([[1.0], [-INF], [-INF]]), jnp.array([[1], [0], [0]]))
    loss = functools.partial(losses.soft_target_loss, teacher_logits=top)
    np.testing.assert_array_equal(loss(x), [INF, 0, 0])
    assert np.all(np.isfinite(jax.jacrev(loss)(x)))
    with pytest.raises(TypeError, match="dkd_loss: teacher_logits is a TopK, expected an array"):
        losses.dkd_loss(x, top, jnp.zeros(3, int))
    with pytest.raises(
        ValueError, match=r"teacher_logits.logits has shape \(3, 1\), expected \(2,\)"
    ):
        losses.kd_loss(x[:2], top, jnp.zeros(2, int))
    with pytest.raises(TypeError, match=r"teacher_logits.indices has dtype float32, expected int"):
        losses.soft_target_loss(x, TopK(top.logits, top.logits))


@pytest.mark.parametrize("size", [256, 300])
def test_classes_of_the_largest_may_be_integers_of_any_type(size):
    student = jnp.zeros((1, size)).at[0, 7].set(-2.0)
    values, classes = jnp.array([[3.0, 2.0]]), np.array([[7, 200]])
    narrow, wide = (
        losses.soft_target_loss(student, TopK(values, classes.astype(dtype)), temperature=1.0)
        for dtype in (np.uint8, np.int32)
    )
    np.testing.assert_array_equal(narrow, wide)
    assert narrow > 1


IGNORING = [name for name in every.NAMES if "ignore_label" in inspect.signature(
    getattr(losses, name)).parameters and name in every.TAKES_LABELS]  # fmt: skip


@pytest.mark.parametrize("name", IGNORING)
def test_what_is_nan_at_a_label_that_is_ignored_has_no_gradient(name):
    *pair, labels = every.drawn(name, np.random.default_rng(0))
    labels = np.where(np.arange(8) == 2, -100, labels)
    wrong = [np.where(np.arange(8)[:, None] == 2, np.nan, x) for x in pair]

    @jax.jit
    @jax.value_and_grad
    def loss(first, *rest):
        return getattr(losses, name)(first, *rest, labels, ignore_label=-100).sum()

    for got, expected in zip(loss(*wrong), loss(*pair), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_all_of_the_weight_on_the_uniform_leaves_nothing_of_an_infinite_label():
    x, where = jnp.array([1.0, 2.0, 3.0]), np.array([False, True, True])
    value = losses.cross_entropy(x, jnp.array(0), label_smoothing=1.0, where=where)
    uniform = -np.log(np.exp(x[1:]) / np.exp(x[1:]).sum()).mean()
    np.testing.assert_allclose(value, uniform, rtol=1e-6)
