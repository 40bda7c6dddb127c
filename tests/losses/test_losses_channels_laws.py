"""Losses on channels, class maps, pixels and embeddings: laws, references, edges, misuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_channels as reference
from every import quick

from kdjax import losses
from kdjax.testing import check_loss


def normal(*shapes):
    return lambda rng: tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def segmented(rng):
    labels = rng.integers(-1, 3, (8, 8, 8)).astype(np.int32)
    return (*normal((8, 4, 4, 5), (8, 4, 4, 5))(rng), labels)


def generated(rng):
    student, teacher = normal((8, 4, 4, 3), (8, 4, 4, 3))(rng)
    shapes = {"kernel_1": (3, 3, 3, 3), "bias_1": (3,), "kernel_2": (3, 3, 3, 3), "bias_2": (3,)}
    params = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    return student, teacher, rng.random((8, 1, 1, 3)) < 0.7, params


def paired(rng):
    shapes = [[(8, 3, 4), (8, 5)], [(8, 2, 4), (8, 6)]]
    student, teacher = ([list(normal(*row)(rng)) for row in shapes] for _ in range(2))
    return student, teacher, rng.dirichlet(np.ones(2), (8, 2)).astype(np.float32)


PARTLY = {"zero_at_equality": False}
CASES = {
    "channel_wise_loss": ({}, {}),
    "inter_channel_correlation_loss": ({}, {}),
    "affinity_loss": ({}, {}),
    "class_attention_loss": ({}, {"inputs": normal((8, 4, 6, 3), (8, 4, 6, 3))}),
    "intra_class_variation_loss": ({"num_classes": 2}, {"inputs": segmented}),
    "cosine_loss": ({}, {}),
    "projected_feature_loss": ({}, {}),
    "prime_aware_loss": (
        {},
        {"inputs": normal((8, 5), (8, 5), (8, 5)), "nonnegative": False, **PARTLY},
    ),
    "softmax_regression_loss": (
        {"feature_weight": 2.0, "logit_weight": 0.5},
        {"inputs": normal((8, 3, 5), (8, 3, 5), (8, 4), (8, 4)), **PARTLY},
    ),
    "masked_generation_loss": ({}, {"inputs": generated, "rtol": 1e-4, **PARTLY}),
    "semantic_calibration_loss": ({}, {"inputs": paired}),
}


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    hyper, options = CASES[name]
    check_loss(
        functools.partial(getattr(losses, name), **hyper),
        reference=functools.partial(getattr(reference, name), **hyper),
        **options,
    )


def test_maps_of_other_sizes():
    """Windows that overlap, more and fewer positions, other channels, whatever each allows."""
    rng = np.random.default_rng(0)
    student, teacher = normal((3, 5, 7, 4), (3, 6, 3, 4))(rng)
    for options in ({"resolution": 3}, {"resolution": 4, "normalize": False}):
        got = quick(losses.class_attention_loss, **options)(student, teacher)
        expected = reference.class_attention_loss(student, teacher, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = quick(losses.inter_channel_correlation_loss)(student, teacher)
    expected = reference.inter_channel_correlation_loss(student, teacher)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    labels, wide = rng.integers(0, 4, (3, 9, 4)), normal((3, 5, 7, 2))(rng)[0]
    got = quick(losses.intra_class_variation_loss, num_classes=3)(student, wide, labels)
    expected = reference.intra_class_variation_loss(student, wide, labels, num_classes=3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_float32_keeps_its_digits_where_student_and_teacher_nearly_agree():
    rng = np.random.default_rng(1)
    teacher = rng.normal(size=(4, 3, 3, 8)).astype(np.float32)
    student = (teacher * (1 + 1e-3 * rng.normal(size=teacher.shape))).astype(np.float32)
    for name in ("cosine_loss", "affinity_loss", "channel_wise_loss"):
        got = quick(getattr(losses, name))(student, teacher)
        np.testing.assert_allclose(
            got, getattr(reference, name)(student, teacher), rtol=2e-3, err_msg=name
        )


def test_a_dead_channel_has_no_gradient_and_leaves_the_others_alone():
    student, teacher = normal((2, 9, 4), (2, 9, 4))(np.random.default_rng(2))
    student[..., 1] = 0

    def by_student(loss):
        return jax.jit(jax.grad(lambda x: loss(x, teacher).sum()))(student)

    for loss in (losses.affinity_loss, losses.inter_channel_correlation_loss):
        gradient = np.asarray(by_student(loss))
        assert np.max(np.abs(gradient)) < 1e2
        assert np.any(gradient[..., 0])
    assert not np.any(by_student(losses.affinity_loss)[..., 1])
    np.testing.assert_allclose(
        quick(losses.affinity_loss)(student, teacher),
        reference.affinity_loss(student, teacher),
        rtol=1e-5,
    )


def test_features_without_direction():
    zero, one = jnp.zeros((1, 3)), jnp.ones((1, 3))
    pairs = [(zero, one, 1.0), (one, zero, 1.0), (zero, zero, 0.0), (one, -one, 2.0)]
    run = quick(jax.value_and_grad(lambda s, t: losses.cosine_loss(s, t)[0]))
    for student, teacher, expected in pairs:
        value, gradient = run(student, teacher)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_positions_at_minus_infinity_are_gone():
    student, teacher = (
        jnp.asarray(x) for x in normal((2, 5, 3), (2, 5, 3))(np.random.default_rng(3))
    )
    masked = [x.at[:, 2].set(-jnp.inf) for x in (student, teacher)]
    fewer = [jnp.delete(x, 2, axis=1) for x in (student, teacher)]
    value_and_grad = jax.jit(jax.value_and_grad(lambda s, t: losses.channel_wise_loss(s, t).sum()))
    (value, gradient), (expected, kept) = value_and_grad(*masked), value_and_grad(*fewer)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not np.any(gradient[:, 2])
    np.testing.assert_allclose(jnp.delete(gradient, 2, axis=1), kept, rtol=1e-5, atol=1e-7)


def test_temperature_of_each_example_and_shift_of_each_channel():
    student, teacher = normal((3, 5, 2), (3, 5, 2))(np.random.default_rng(4))
    each = jnp.array([1.0, 2.0, 8.0])
    together = quick(losses.channel_wise_loss)(student, teacher, temperature=each)
    rows = [
        reference.channel_wise_loss(student[i : i + 1], teacher[i : i + 1], float(each[i]))[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(together, rows, rtol=1e-5)
    plain = quick(losses.channel_wise_loss)
    shifted = plain(student + np.float32([[[5.0, -3.0]]]), teacher)
    np.testing.assert_allclose(shifted, plain(student, teacher), rtol=1e-4)


@functools.cache
def prime_aware():
    student, teacher = jnp.array([[1.0]]), jnp.array([[3.0]])
    return quick(jax.value_and_grad(lambda s: losses.prime_aware_loss(student, teacher, s)[0]))


@pytest.mark.parametrize("log_variance", [-1e3, -80.0, 0.0, 80.0, 1e3])
def test_uncertainty_at_extremes(log_variance):
    value, gradient = prime_aware()(jnp.array([[log_variance]]))
    with np.errstate(over="ignore"):
        weight = 1 / (1e-6 + np.exp(np.float64(log_variance)))
        expected = 1 - 4 * weight * (1 - 1e-6 * weight)
    np.testing.assert_allclose(value, 4 * weight + log_variance, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], expected, rtol=1e-3, atol=1e-3)


def test_masks_hide_their_share():
    x, key = jnp.zeros((64, 6, 5, 32)), jax.random.key(0)
    shapes = {losses.channel_mask: (64, 1, 1, 32), losses.position_mask: (64, 6, 5, 1)}
    for mask, shape in shapes.items():
        keep = mask(key, x, mask_ratio=0.3)
        assert keep.shape == shape
        assert np.mean(keep) == pytest.approx(0.7, abs=0.05)
        np.testing.assert_array_equal(keep, mask(key, x, mask_ratio=0.3))
        assert np.all(mask(key, x, mask_ratio=0.0))
        assert not np.any(mask(key, x, mask_ratio=1.0))


def test_layer_attention():
    queries, keys = normal((3, 2, 4), (3, 5, 4))(np.random.default_rng(5))
    got = quick(losses.layer_attention)(queries, keys)
    np.testing.assert_allclose(got, reference.layer_attention(queries, keys), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(got, axis=-1), 1, rtol=1e-6)


X, MAP = jnp.zeros((4, 5, 6)), jnp.zeros((4, 2, 2, 6))
LABELS = jnp.zeros((4, 2, 2), jnp.int32)
MISUSE = [
    (
        ValueError,
        "channel_wise_loss: teacher_features has shape (4, 5, 7), expected (4, 5, 6)",
        lambda: losses.channel_wise_loss(X, jnp.zeros((4, 5, 7))),
    ),
    (
        ValueError,
        "channel_wise_loss: temperature is 0",
        lambda: losses.channel_wise_loss(X, X, temperature=0),
    ),
    (
        ValueError,
        "affinity_loss: student_features has shape (4, 6)",
        lambda: losses.affinity_loss(jnp.zeros((4, 6)), jnp.zeros((4, 6))),
    ),
    (
        ValueError,
        "inter_channel_correlation_loss: teacher_features has shape (4, 5, 7)",
        lambda: losses.inter_channel_correlation_loss(X, jnp.zeros((4, 5, 7))),
    ),
    (
        ValueError,
        "class_attention_loss: teacher_features has shape (4, 2, 2, 5)",
        lambda: losses.class_attention_loss(MAP, MAP[..., :5]),
    ),
    (
        TypeError,
        "resolution is 2.0, expected an integer",
        lambda: losses.class_attention_loss(MAP, MAP, resolution=2.0),
    ),
    (
        ValueError,
        "resolution is 0",
        lambda: losses.class_attention_loss(MAP, MAP, resolution=0),
    ),
    (
        ValueError,
        "intra_class_variation_loss: labels has shape (3, 2, 2), expected [4, rows, columns]",
        lambda: losses.intra_class_variation_loss(MAP, MAP, LABELS[:3], num_classes=2),
    ),
    (
        TypeError,
        "labels has dtype float32",
        lambda: losses.intra_class_variation_loss(MAP, MAP, LABELS * 1.0, num_classes=2),
    ),
    (
        ValueError,
        "intra_class_variation_loss: teacher_features has shape (4, 1, 2, 6)",
        lambda: losses.intra_class_variation_loss(MAP, MAP[:, :1], LABELS, num_classes=2),
    ),
    (
        ValueError,
        "prime_aware_loss: log_variances has shape (4, 1, 6), expected (4, 5, 6)",
        lambda: losses.prime_aware_loss(X, X, X[:, :1]),
    ),
    (ValueError, "eps is 0", lambda: losses.prime_aware_loss(X, X, X, eps=0.0)),
    (
        ValueError,
        "softmax_regression_loss: feature_weight is -1",
        lambda: losses.softmax_regression_loss(X, X, X[:, 0], X[:, 0], feature_weight=-1),
    ),
    (
        ValueError,
        "softmax_regression_loss: student_logits has shape (3, 6), expected (4, 6)",
        lambda: losses.softmax_regression_loss(X, X, X[:3, 0], X[:3, 0]),
    ),
    (
        ValueError,
        "channel_mask: mask_ratio is 1.5",
        lambda: losses.channel_mask(jax.random.key(0), MAP, mask_ratio=1.5),
    ),
    (
        ValueError,
        "position_mask: features has shape (4, 5, 6)",
        lambda: losses.position_mask(jax.random.key(0), X, mask_ratio=0.5),
    ),
    (
        ValueError,
        "masked_generation_loss: keep has shape (4, 3, 1, 1)",
        lambda: losses.masked_generation_loss(MAP, MAP, jnp.ones((4, 3, 1, 1)), {}),
    ),
    (
        ValueError,
        "layer_attention: keys has shape (4, 5, 5)",
        lambda: losses.layer_attention(X, X[..., :5]),
    ),
    (
        ValueError,
        "semantic_calibration_loss: weights has shape (4, 2, 1), expected (4, 1, 1)",
        lambda: losses.semantic_calibration_loss([[X]], [[X]], jnp.ones((4, 2, 1))),
    ),
    (
        ValueError,
        "teacher_features[0][0] has shape (4, 5, 5), expected (4, 5, 6)",
        lambda: losses.semantic_calibration_loss([[X]], [[X[..., :5]]], jnp.ones((4, 1, 1))),
    ),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
