"""Divergences against NumPy references, the laws of a loss, and where they break elsewhere."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_divergences as reference

from kdjax import losses
from kdjax.testing import check_loss

# Programs here run a few times on a few numbers: what counts is how fast they compile.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

CHECKED = [
    (losses.generalized_js_divergence, reference.generalized_js_divergence, {}),
    (losses.skew_kl_divergence, reference.skew_kl_divergence, {}),
    (losses.skew_reverse_kl_divergence, reference.skew_reverse_kl_divergence, {}),
    (losses.symmetric_kl_divergence, reference.symmetric_kl_divergence, {}),
    (losses.total_variation, reference.total_variation, {}),
    # The weights are constants, and so is TAID's target: not the gradient of the value.
    (losses.adaptive_kl_divergence, reference.adaptive_kl_divergence, {"order": 0}),
    (
        functools.partial(losses.taid_loss, interpolation=0.4),
        functools.partial(reference.taid_loss, interpolation=0.4),
        {"order": 0, "zero_at_equality": False},
    ),
    (
        losses.universal_logit_loss,
        reference.universal_logit_loss,
        {"temperature_invariant": False},
    ),
]


@pytest.mark.parametrize(("fn", "expected", "laws"), CHECKED)
def test_laws_of_a_loss(fn, expected, laws):
    check_loss(fn, reference=expected, **laws)


# All of them at once, in one program: name -> (ours, reference), of log-probabilities.
EVERY = {
    "js_0": (
        functools.partial(losses.generalized_js_divergence, beta=0.0),
        functools.partial(reference.generalized_js_divergence, beta=0),
    ),
    "js_0.1": (
        functools.partial(losses.generalized_js_divergence, beta=0.1),
        functools.partial(reference.generalized_js_divergence, beta=0.1),
    ),
    "js_0.5": (losses.generalized_js_divergence, reference.generalized_js_divergence),
    "js_1": (
        functools.partial(losses.generalized_js_divergence, beta=1),
        functools.partial(reference.generalized_js_divergence, beta=1),
    ),
    "skew": (losses.skew_kl_divergence, reference.skew_kl_divergence),
    "skew_0": (
        functools.partial(losses.skew_kl_divergence, skew=0.0),
        functools.partial(reference.skew_kl_divergence, skew=0.0),
    ),
    "skew_1": (
        functools.partial(losses.skew_kl_divergence, skew=1.0),
        functools.partial(reference.skew_kl_divergence, skew=1.0),
    ),
    "skew_reverse": (losses.skew_reverse_kl_divergence, reference.skew_reverse_kl_divergence),
    "symmetric": (losses.symmetric_kl_divergence, reference.symmetric_kl_divergence),
    "variation": (losses.total_variation, reference.total_variation),
    "adaptive": (losses.adaptive_kl_divergence, reference.adaptive_kl_divergence),
}
INF = np.inf
ROWS = {  # of logits
    "generic": ([1.0, 3.0, -2.0, 0.5], [2.0, -1.0, 0.0, 1.0]),
    "both lack a class": ([1.0, -INF, -2.0, 0.5], [2.0, -INF, 0.0, 1.0]),
    "the teacher lacks one": ([1.0, 3.0, -2.0, 0.5], [2.0, -INF, 0.0, 1.0]),
    "the student lacks one": ([1.0, 3.0, -INF, 0.5], [2.0, -1.0, 0.0, 1.0]),
    "equal": ([1.0, -INF, -2.0, 0.5], [1.0, -INF, -2.0, 0.5]),
    "equal, all but certain": ([110.0, 0.0, 0.0, 0.0], [110.0, 0.0, 0.0, 0.0]),
    "no class in common": ([0.0, 0.0, -INF, -INF], [-INF, -INF, 0.0, -INF]),
    "far apart": ([1e4, 0.0, -1e4, 1.0], [-1e4, 0.0, 1e4, 1.0]),
}


@functools.cache
def every_value_and_gradient():
    def both(x, v):
        def one(fn):
            return jax.value_and_grad(lambda s, t: (lambda y: (y.sum(), y))(fn(s, t)), (0, 1), True)

        return {name: one(ours)(x, v) for name, (ours, _) in EVERY.items()}

    return jax.jit(both, compiler_options=QUICK)


def evaluate(students, teachers):
    """By name: the rows' values, and the gradients by student and teacher."""
    answers = every_value_and_gradient()(jnp.float32(students), jnp.float32(teachers))
    return {name: (np.asarray(value[1]), *grads) for name, (value, grads) in answers.items()}


@functools.cache
def on_rows():
    pairs = [[reference.log_softmax(x) for x in sides] for sides in ROWS.values()]
    return np.float32(pairs).swapaxes(0, 1), evaluate(*np.float32(pairs).swapaxes(0, 1))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("row", [row for row in ROWS if row != "far apart"])
def test_classes_that_one_side_lacks(name, row):
    (students, teachers), answers = on_rows()
    i = list(ROWS).index(row)
    value = answers[name][0][i]
    expected = EVERY[name][1](students[i][None], teachers[i][None])[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    if row.startswith("equal"):
        assert value == 0


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_finite_and_absent_classes_have_none(name):
    (students, teachers), answers = on_rows()
    for side, grad in zip((students, teachers), answers[name][1:], strict=True):
        assert np.all(np.isfinite(grad))
        np.testing.assert_array_equal(np.asarray(grad)[np.isneginf(side)], 0)
    assert np.isfinite(answers[name][0][list(ROWS).index("far apart")])


def test_bounds_where_no_class_is_shared():
    answers, i = on_rows()[1], list(ROWS).index("no class in common")
    entropy = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    expected = {
        "js_0": INF,
        "js_0.1": entropy,
        "js_0.5": np.log(2),
        "js_1": INF,
        "skew": np.log(10),
        "skew_reverse": np.log(10),
        "variation": 1.0,
    }
    got = {name: answers[name][0][i] for name in expected}
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-6)


def test_a_student_near_its_teacher_keeps_its_digits():
    """Near the teacher all are sums of squares; the textbook sums in float32 are noise."""
    rng = np.random.default_rng(0)
    teachers = 3 * rng.normal(size=(8, 4))
    students = teachers + 1e-4 * rng.normal(size=(8, 4))
    exact = [reference.log_softmax(x) for x in (students, teachers)]
    q, p = np.float32(exact[0]), np.float32(exact[1])
    answers = evaluate(q, p)
    for name, (_, expected) in EVERY.items():
        want = expected(*exact)
        if name == "skew_1":
            assert not np.any(answers[name][0])
            continue
        np.testing.assert_allclose(answers[name][0], want, rtol=0.05, err_msg=name)
    naive = (np.exp(p) * (p - q)).sum(-1)
    assert np.max(np.abs(naive / reference.skew_kl_divergence(*exact, 0.0) - 1)) > 1


def test_log_probabilities_are_taken_as_given():
    rng = np.random.default_rng(1)
    students, teachers = np.float32(rng.normal(size=(2, 8, 4)))
    answers = evaluate(students, teachers)
    for name, (_, expected) in EVERY.items():
        want = expected(students, teachers)
        np.testing.assert_allclose(answers[name][0], want, rtol=2e-5, atol=1e-5, err_msg=name)


def test_the_ends_of_beta_are_the_divergences_themselves():
    """Between them the value vanishes towards the ends, where it jumps."""
    pair = [reference.log_softmax(x) for x in ([1.0, 0.0], [0.0, 2.0])]
    pair = jnp.float32([pair] * 5).swapaxes(0, 1)
    beta = jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
    fn = jax.jit(lambda b: losses.generalized_js_divergence(*pair, beta=b), compiler_options=QUICK)
    forward, reverse = (
        float(kl(*pair)[0]) for kl in (losses.kl_divergence, losses.reverse_kl_divergence)
    )
    half = reference.generalized_js_divergence(*np.asarray(pair))[0]
    expected = [forward, 1e-6 * forward, half, (1 - beta[3]) * reverse, reverse]
    np.testing.assert_allclose(fn(beta), expected, rtol=1e-4)
    assert reverse == pytest.approx(1.007, abs=1e-3)
    for end, value in ((0, forward), (1, reverse)):
        got = losses.generalized_js_divergence(*pair, beta=end)
        np.testing.assert_allclose(got, value, rtol=1e-6)


def test_hyper_parameters_may_differ_by_example():
    rng = np.random.default_rng(2)
    pair = jnp.float32(reference.log_softmax(rng.normal(size=(2, 3, 5))))
    share = jnp.array([0.1, 0.5, 0.8])
    cases = (
        ("skew", losses.skew_kl_divergence, reference.skew_kl_divergence),
        ("head_mass", losses.adaptive_kl_divergence, reference.adaptive_kl_divergence),
    )
    for name, fn, expected in cases:
        want = [
            expected(s[None], t[None], float(x))[0]
            for s, t, x in zip(*np.asarray(pair), share, strict=True)
        ]
        got = jax.jit(fn, compiler_options=QUICK)(*pair, **{name: share})
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_head_that_has_its_mass_takes_no_further_class():
    pair = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    got = losses.adaptive_kl_divergence(*pair, head_mass=0.5)
    forward, reverse = losses.kl_divergence(*pair), losses.reverse_kl_divergence(*pair)
    np.testing.assert_allclose(got, (forward + reverse) / 2, rtol=1e-6)


@functools.cache
def taid_program():
    def values(x, v, t):
        y = losses.taid_loss(x, v, interpolation=t)
        return y.sum(), y

    return jax.jit(jax.value_and_grad(values, (0, 2), has_aux=True), compiler_options=QUICK)


def taid_answer(t):
    return taid_program()(
        jnp.float32([sides[0] for sides in ROWS.values()]),
        jnp.float32([sides[1] for sides in ROWS.values()]),
        jnp.full(len(ROWS), t, jnp.float32),
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_taid_at_both_ends_and_without_classes(t):
    (_, values), (grad, by_t) = taid_answer(t)
    assert not np.any(by_t)
    assert np.all(np.isfinite(grad))
    for i, (x, v) in enumerate(np.asarray(list(ROWS.values()))):
        lacking = np.isneginf(x) & ~np.isneginf(v)
        if t == 1 and np.any(lacking):
            assert np.isposinf(values[i])
            continue
        with np.errstate(invalid="ignore"):
            mixed = {0.0: x, 1.0: v}.get(t, (1 - t) * x + t * v)
        q = reference.log_softmax(x)
        if np.all(np.isneginf(mixed)):  # no class is in both
            assert values[i] == 0
            continue
        r = np.exp(reference.log_softmax(mixed))
        cross = -(r * np.where(np.isneginf(q), 0, q)).sum()
        np.testing.assert_allclose(values[i], cross, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad[i], np.exp(q) - r, rtol=1e-5, atol=1e-6)
        if t == 0:
            assert not np.any(grad[i])


def test_taid_schedule_follows_the_line_at_least_and_speeds_up_with_progress():
    rng = np.random.default_rng(3)
    losses_seen, progress = 2 + rng.normal(size=30).cumsum() * 0.1, np.linspace(0, 1.2, 30)
    settings = {"start": 0.2, "end": 0.9, "step_size": 0.3, "decay": 0.5}

    @functools.partial(jax.jit, static_argnames="step_size")
    def run(step_size):
        def body(state, now):
            state = losses.taid_schedule_update(state, *now, **{**settings, "step_size": step_size})
            return state, state["interpolation"]

        first = losses.taid_schedule_init(start=0.2)
        return jax.lax.scan(body, first, jnp.float32([losses_seen, progress]).T)

    state, t = run(0.3)
    want = reference.taid_schedule(losses_seen, progress, **settings)
    np.testing.assert_allclose(t, want, rtol=1e-5)
    assert np.all(np.diff(t) >= 0)
    assert int(state["num_updates"]) == 30
    line = np.minimum(0.2 + 0.7 * progress, 0.9)
    np.testing.assert_allclose(run(0.0)[1], line, rtol=1e-6)
    assert np.any(t > line + 0.1)


def test_universal_logits_ignore_what_classes_mean():
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(3, 5)), rng.normal(size=(3, 8))
    fn = jax.jit(losses.universal_logit_loss, compiler_options=QUICK)
    value = fn(jnp.float32(student), jnp.float32(teacher))
    np.testing.assert_allclose(value, reference.universal_logit_loss(student, teacher), rtol=1e-5)
    np.testing.assert_allclose(fn(jnp.float32(student), jnp.float32(teacher[:, ::-1])), value, 1e-5)
    padded = np.pad(student, [(0, 0), (2, 1)], constant_values=-np.inf)
    step = jax.value_and_grad(lambda x: losses.universal_logit_loss(x, jnp.float32(student)).sum())
    same, grad = jax.jit(step, compiler_options=QUICK)(jnp.float32(padded))
    assert float(same) == 0
    assert not np.any(grad)
    cooled = losses.universal_logit_loss(
        jnp.float32(student), jnp.float32(teacher), temperature=2.0, teacher_temperature=0.5
    )
    want = reference.universal_logit_loss(student, teacher, 2.0, 0.5)
    np.testing.assert_allclose(cooled, want, rtol=1e-5)


def test_marked_tokens_come_first_and_keep_their_order():
    mask = jnp.array([[False, True, False, True], [True, False, False, False]])
    x = jnp.arange(16).reshape(2, 4, 2)
    moved, marked = losses.marked_first(x, mask)
    np.testing.assert_array_equal(moved[0, :2], x[0, jnp.array([1, 3])])
    np.testing.assert_array_equal(moved[1, :1], x[1, :1])
    np.testing.assert_array_equal(marked, [[True, True, False, False], [True] + [False] * 3])


@pytest.mark.parametrize("tail", [False, True])
def test_top_k(tail):
    rng = np.random.default_rng(5)
    pair = reference.log_softmax(2 * rng.normal(size=(2, 3, 7)))
    pair[1, 2, 4] = -np.inf
    transform = losses.top_k_log_probs_with_tail if tail else losses.top_k_log_probs
    got = jax.jit(functools.partial(transform, num_kept=3, axis=0))(
        *(jnp.float32(x.T) for x in pair)
    )
    chex.assert_shape(got, (3, 3 + tail))
    for i in range(3):
        want = reference.top_k(pair[0, i], pair[1, i], 3, tail=tail)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-6)


def test_all_classes_kept_leave_an_empty_tail():
    logits = np.random.default_rng(6).normal(size=(2, 5))
    logits[:, 1] = -np.inf
    pair = jnp.float32(reference.log_softmax(logits))

    def value(x, v, min_tail):
        kept = losses.top_k_log_probs_with_tail(x, v, num_kept=4, min_tail=min_tail)
        return losses.generalized_js_divergence(*kept), kept[0]

    step = jax.value_and_grad(value, has_aux=True)
    step = jax.jit(step, static_argnums=2, compiler_options=QUICK)
    (got, kept), grad = step(*pair, 0.0)
    assert np.isneginf(kept[-1])
    assert np.all(np.isfinite(grad))
    want = reference.generalized_js_divergence(*np.asarray(pair))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert float(step(*pair, 0.25)[0][1][-1]) == pytest.approx(np.log(0.25))


X = jnp.zeros((8, 10))
MISUSE = [
    (
        ValueError,
        "generalized_js_divergence: beta is 1.5",
        lambda: losses.generalized_js_divergence(X, X, beta=1.5),
    ),
    (
        TypeError,
        "generalized_js_divergence: beta is '1'",
        lambda: losses.generalized_js_divergence(X, X, beta="1"),
    ),
    (
        ValueError,
        "skew_kl_divergence: skew has shape (3,), expected () or (8,)",
        lambda: losses.skew_kl_divergence(X, X, skew=jnp.zeros(3)),
    ),
    (
        ValueError,
        "skew_reverse_kl_divergence: skew is -0.1",
        lambda: losses.skew_reverse_kl_divergence(X, X, skew=-0.1),
    ),
    (
        ValueError,
        "total_variation: teacher_log_probs has shape (8, 1, 10), expected (8, 10)",
        lambda: losses.total_variation(X, X[:, None]),
    ),
    (
        ValueError,
        "symmetric_kl_divergence: reverse_weight is nan",
        lambda: losses.symmetric_kl_divergence(X, X, reverse_weight=float("nan")),
    ),
    (
        ValueError,
        "adaptive_kl_divergence: head_mass is 2",
        lambda: losses.adaptive_kl_divergence(X, X, head_mass=2),
    ),
    (
        ValueError,
        "taid_loss: interpolation is 1.1",
        lambda: losses.taid_loss(X, X, interpolation=1.1),
    ),
    (
        ValueError,
        "taid_loss: teacher_logits has shape (8, 9), expected (8, 10)",
        lambda: losses.taid_loss(X, X[:, :9], interpolation=0.5),
    ),
    (ValueError, "taid_schedule_init: start is 2", lambda: losses.taid_schedule_init(start=2)),
    (
        ValueError,
        "taid_schedule_update: decay is 2",
        lambda: losses.taid_schedule_update(losses.taid_schedule_init(), 1.0, 0.0, decay=2),
    ),
    (
        ValueError,
        "universal_logit_loss: teacher_logits has shape (7, 12), expected (8, 12)",
        lambda: losses.universal_logit_loss(X, jnp.zeros((7, 12))),
    ),
    (
        ValueError,
        "universal_logit_loss: teacher_temperature is 0",
        lambda: losses.universal_logit_loss(X, X, teacher_temperature=0),
    ),
    (
        ValueError,
        "marked_first: mask has shape (8, 9), expected (8, 10)",
        lambda: losses.marked_first(X, jnp.zeros((8, 9), bool)),
    ),
    (TypeError, "marked_first: mask has dtype float32", lambda: losses.marked_first(X, X)),
    (
        ValueError,
        "top_k_log_probs: num_kept is 11, expected 1 to 10",
        lambda: losses.top_k_log_probs(X, X, num_kept=11),
    ),
    (
        TypeError,
        "top_k_log_probs_with_tail: num_kept is 2.0",
        lambda: losses.top_k_log_probs_with_tail(X, X, num_kept=2.0),
    ),
    (
        ValueError,
        "top_k_log_probs_with_tail: min_tail is -1",
        lambda: losses.top_k_log_probs_with_tail(X, X, num_kept=2, min_tail=-1),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
