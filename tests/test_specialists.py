"""Specialists: which classes, which examples, which start, and one answer of all who are asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import specialists
from kdjax.specialists import _clusters

GROUPS = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def grouped_logits(num_examples=600):
    """Logits of a classifier that confuses the classes of a group and no others."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, num_examples)
    logits = rng.normal(size=(num_examples, 10)).astype(np.float32)
    for i, classes in enumerate(GROUPS):
        logits[:, classes] += 5 * (group == i)[:, None]
    return logits


def test_covariance_is_that_of_the_softened_predictions():
    logits = grouped_logits()
    found = specialists.prediction_covariance(logits, temperature=2.0)
    expected = np.cov(softmax(logits.astype(np.float64) / 2).T, bias=True)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_finds_clusters_that_are_there(seed):
    rng = np.random.default_rng(seed)
    centers = 10 * np.eye(5)
    truth = np.repeat(np.arange(5), [3, 10, 20, 5, 12])
    points = centers[truth] + rng.normal(size=(50, 5)) / 10
    key = jax.random.key(seed)
    centroids = specialists.online_kmeans(key, points, num_clusters=5)
    found = np.asarray(specialists.nearest_centroids(points, centroids))
    for i in range(5):
        own = found[truth == i]
        assert len(set(own)) == 1
        np.testing.assert_allclose(centroids[own[0]], centers[i], atol=0.15)
    assert len(set(found)) == 5
    again = specialists.online_kmeans(key, points, num_clusters=5)
    np.testing.assert_array_equal(centroids, again)
    other = specialists.online_kmeans(jax.random.key(seed + 99), points, num_clusters=5)
    assert not np.array_equal(centroids, other)


def test_a_centroid_is_the_mean_of_what_came_to_it():
    points = np.random.default_rng(0).normal(size=(40, 2)) + 3
    key = jax.random.key(0)
    found = specialists.online_kmeans(key, points, num_clusters=1, batch_size=8, num_steps=5)
    keys = jax.random.split(jax.random.split(key)[1], 5)
    drawn = np.concatenate([np.asarray(jax.random.randint(k, (8,), 0, 40)) for k in keys])
    np.testing.assert_allclose(found[0], points[drawn].mean(0), rtol=1e-5)


def test_no_centroid_is_left_without_points():
    points = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)), jnp.float32)
    far = jnp.concatenate([points[:1], jnp.full((5, 2), 1e3) + jnp.arange(5.0)[:, None]])
    fixed = jax.jit(_clusters._without_empty)(points, far)
    assert set(np.asarray(specialists.nearest_centroids(points, far))) == {0}
    assert set(np.asarray(specialists.nearest_centroids(points, fixed))) == set(range(6))
    each = specialists.online_kmeans(jax.random.key(0), points, num_clusters=30)
    assert len(set(np.asarray(specialists.nearest_centroids(points, each)))) == 30


def test_fewer_different_points_than_clusters():
    points = np.repeat(np.eye(3), 4, axis=0)
    centroids = specialists.online_kmeans(jax.random.key(0), points, num_clusters=7)
    assert np.all(np.isfinite(centroids))
    nearest = np.asarray(centroids)[np.asarray(specialists.nearest_centroids(points, centroids))]
    np.testing.assert_array_equal(nearest, points)


def test_classes_that_are_confused_make_a_set():
    sets = specialists.confusable_classes(
        jax.random.key(0), grouped_logits(), num_sets=4, set_size=3, num_tries=3
    )
    assert sets.shape == (4, 3) and sets.dtype == jnp.int32
    found = {frozenset(row) for row in np.asarray(sets).tolist()}
    assert found >= {frozenset(row) for row in GROUPS.tolist()}


def test_a_class_that_belongs_to_two_groups_may_be_in_two_sets():
    sets = specialists.confusable_classes(
        jax.random.key(0), grouped_logits(), num_sets=4, set_size=6, num_tries=3
    )
    assert np.bincount(np.asarray(sets).ravel(), minlength=10).max() > 1
    assert all(len(set(row)) == 6 for row in np.asarray(sets).tolist())


def test_membership_and_labels():
    sets = np.array([[4, 1], [0, 2]])
    expected = [[False, True, False, False, True], [True, False, True, False, False]]
    np.testing.assert_array_equal(specialists.membership(sets, 5), expected)
    labels = specialists.specialist_labels(np.arange(5), sets[0], num_classes=5)
    np.testing.assert_array_equal(labels, [2, 1, 2, 2, 0])
    traced = jax.jit(lambda s, y: specialists.specialist_labels(y, s, num_classes=5))
    np.testing.assert_array_equal(traced(sets[1], np.array([[2, 3], [0, 1]])), [[1, 2], [0, 2]])
    none = np.array([-100, -1, 255, 2])
    np.testing.assert_array_equal(traced(sets[1], none), [-1, -1, -1, 1])
    with pytest.raises(ValueError, match="specialist_labels: labels has -100, expected 0 to 4"):
        specialists.specialist_labels(none, sets[1], num_classes=5)


def test_half_of_a_batch_is_special():
    is_special = np.arange(50) % 5 == 0
    batches = [
        specialists.specialist_indices(3, step, is_special=is_special, batch_size=8)
        for step in range(10)
    ]
    for batch in batches:
        assert is_special[batch[:4]].all() and not is_special[batch[4:]].any()
    # Four epochs of the ten special examples, one of the forty others.
    np.testing.assert_array_equal(np.bincount(np.concatenate(batches))[is_special], 4)
    np.testing.assert_array_equal(np.bincount(np.concatenate(batches))[~is_special], 1)
    again = specialists.specialist_indices(3, 7, is_special=is_special, batch_size=8)
    np.testing.assert_array_equal(again, batches[7])
    other = specialists.specialist_indices(4, 7, is_special=is_special, batch_size=8)
    assert not np.array_equal(again, other)


def test_collapse_sums_the_rest():
    logits = np.random.default_rng(0).normal(size=(4, 3, 7)).astype(np.float32) * 5
    logits[0, 0, 3] = -np.inf
    classes = np.array([6, 0])
    collapse = jax.jit(specialists.collapse)
    found = softmax(np.asarray(collapse(logits, classes), np.float64))
    probs = softmax(logits.astype(np.float64))
    rest = np.delete(probs, classes, axis=-1).sum(-1)
    np.testing.assert_allclose(found[..., :2], probs[..., classes], rtol=1e-5)
    np.testing.assert_allclose(found[..., 2], rest, rtol=1e-5)
    log_probs = collapse(jax.nn.log_softmax(logits), classes)
    np.testing.assert_allclose(jax.nn.logsumexp(log_probs, axis=-1), 0, atol=1e-6)
    assert np.all(np.isfinite(collapse(np.float32([1e4, -1e4, 0.0]), classes[1:])))


def test_head_starts_from_the_generalist():
    rng = np.random.default_rng(0)
    kernel, bias, x = rng.normal(size=(6, 9)), rng.normal(size=9), rng.normal(size=(5, 6))
    classes = np.array([7, 2, 3])
    own_kernel, own_bias = specialists.specialist_head(kernel, bias, classes)
    assert own_kernel.shape == (6, 4) and own_bias.shape == (4,)
    logits = x @ np.asarray(own_kernel) + np.asarray(own_bias)
    whole = specialists.collapse(x @ kernel + bias, classes)
    np.testing.assert_allclose(logits[:, :3], whole[:, :3], atol=1e-5)
    assert np.all(logits[:, 3] <= whole[:, 3])
    others = np.setdiff1d(np.arange(9), classes)
    kernel[:, others], bias[others] = kernel[:, :1], bias[0]
    own_kernel, own_bias = map(np.asarray, specialists.specialist_head(kernel, bias, classes))
    whole = specialists.collapse(x @ kernel + bias, classes)
    np.testing.assert_allclose(x @ own_kernel + own_bias, whole, atol=1e-5)


@pytest.mark.parametrize("sampled", [0.5, 0.2])
def test_the_shift_undoes_what_the_sampling_did(sampled):
    """A world of 6 kinds of images and 5 classes, of which 2 are special, sampled too often."""
    joint = np.random.default_rng(0).dirichlet(np.ones(30)).reshape(6, 5)
    special = joint[:, :2].sum()
    biased = joint.copy()
    biased[:, :2] *= sampled / special
    biased[:, 2:] *= (1 - sampled) / (1 - special)
    np.testing.assert_allclose([biased.sum(), biased[:, :2].sum()], [1, sampled])

    def posterior(joint):
        told = np.concatenate([joint[:, :2], joint[:, 2:].sum(1, keepdims=True)], axis=1)
        return told / told.sum(1, keepdims=True)

    learnt = np.log(posterior(biased))  # what a perfect specialist says
    shift = specialists.dustbin_shift(special, sampled_share=sampled)
    corrected = softmax(np.asarray(specialists.shift_dustbin(learnt, shift), np.float64))
    np.testing.assert_allclose(corrected, posterior(joint), rtol=1e-5)


def test_the_shift_of_the_paper():
    """300 of 15,000 classes, half of the examples: oversampled 49 times against the others."""
    np.testing.assert_allclose(specialists.dustbin_shift(300 / 15_000), np.log(49))
    assert specialists.dustbin_shift(0.5) == 0


def test_active_are_those_with_a_probable_class():
    sets = np.array([[0, 1], [1, 2], [3, 4]])
    logits = np.array([[0, 5, 4, 0, 0, 0.0], [0, 0, 0, 0, 1, 2], [3, 0, 0, 2, 0, 0]])
    one = specialists.active_specialists(logits, sets)
    np.testing.assert_array_equal(one, [[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    two = specialists.active_specialists(logits, sets, num_top=2)
    np.testing.assert_array_equal(two, [[1, 1, 0], [0, 0, 1], [1, 0, 1]])


def make_opinions(batch=24, num_classes=8, seed=0):
    """Return a generalist's logits, those of four specialists, their classes, who is active."""
    rng = np.random.default_rng(seed)
    sets = np.stack([rng.permutation(num_classes)[:3] for _ in range(4)])
    generalist = 2 * rng.normal(size=(batch, num_classes))
    return generalist, 2 * rng.normal(size=(4, batch, 4)), sets, rng.random((batch, 4)) < 0.6


def reference_round(q, generalist, answers, sets, active):
    """Average all opinions, each dustbin spread over its classes as q has it."""
    told, total = softmax(answers), softmax(generalist)
    for m, classes in enumerate(sets):
        share = q.copy()
        share[:, classes] = 0
        share *= told[m][:, -1:] / share.sum(1, keepdims=True)
        share[:, classes] = told[m][:, :-1]
        total += active[:, m : m + 1] * share
    return total / (1 + active.sum(1, keepdims=True))


def reference_combine(*opinions):
    """Expectation maximisation in float64: it has the same optimum and no step size.

    A round multiplies the distance to it by at most (number active) / (number active + 1).
    """
    q = softmax(opinions[0])
    for _ in range(1000):
        q = reference_round(q, *opinions)
    return q


def reference_disagreement(q, generalist, answers, sets, active):
    prior, told = softmax(generalist), softmax(answers)
    total = (prior * np.log(prior / q)).sum(-1)
    for m, classes in enumerate(sets):
        coarse = np.stack([q[:, c] for c in classes], -1)
        coarse = np.concatenate([coarse, 1 - coarse.sum(-1, keepdims=True)], -1)
        total += active[:, m] * (told[m] * np.log(told[m] / coarse)).sum(-1)
    return total


def test_disagreement_is_equation_5():
    generalist, answers, sets, active = make_opinions()
    logits = np.random.default_rng(5).normal(size=generalist.shape)
    each = jax.jit(jax.vmap(specialists.disagreement, in_axes=(0, 0, 1, None, 0)))
    found = each(logits, generalist, answers, sets, active)
    expected = reference_disagreement(softmax(logits), generalist, answers, sets, active)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_combine_reaches_the_optimum():
    opinions = make_opinions()
    found = softmax(np.asarray(specialists.combine(*opinions), np.float64))
    best = reference_combine(*opinions)
    np.testing.assert_allclose(found, best, atol=5e-4)
    excess = reference_disagreement(found, *opinions) - reference_disagreement(best, *opinions)
    assert np.all(excess < 1e-5) and np.all(excess > -1e-9)
    longer = softmax(np.asarray(specialists.combine(*opinions, num_steps=600), np.float64))
    np.testing.assert_allclose(longer, best, atol=1e-5)


def test_combine_with_plain_gradient_descent():
    """Forty steps, each with the gradient written out: what q has less what it should have."""
    generalist, answers, sets, active = make_opinions()
    found = specialists.combine(
        generalist, answers, sets, active, optimizer=optax.sgd(0.3), num_steps=40
    )
    z = generalist.copy()
    for _ in range(40):
        wanted = reference_round(softmax(z), generalist, answers, sets, active)
        z -= 0.3 * (1 + active.sum(1, keepdims=True)) * (softmax(z) - wanted)
    np.testing.assert_allclose(found, z, atol=1e-4)


def test_one_specialist_of_one_class_in_closed_form():
    """The class gets the mean of both opinions, the others keep their proportions."""
    generalist = np.random.default_rng(0).normal(size=(5, 6))
    answers = np.random.default_rng(1).normal(size=(1, 5, 2))
    found = specialists.combine(generalist, answers, np.array([[2]]), np.ones((5, 1), bool))
    prior = softmax(generalist)
    own = (prior[:, 2] + softmax(answers[0])[:, 0]) / 2
    expected = prior * ((1 - own) / (1 - prior[:, 2]))[:, None]
    expected[:, 2] = own
    np.testing.assert_allclose(softmax(np.asarray(found, np.float64)), expected, atol=1e-5)


def test_who_agrees_changes_nothing_and_who_is_inactive_is_not_heard():
    generalist, answers, sets, active = make_opinions()
    agreeing = np.stack([np.asarray(specialists.collapse(generalist, s)) for s in sets])
    found = specialists.combine(generalist, agreeing, sets, active)
    np.testing.assert_allclose(jax.nn.softmax(found), softmax(generalist), atol=1e-5)
    nobody = specialists.combine(generalist, answers, sets, np.zeros_like(active))
    np.testing.assert_array_equal(nobody, generalist.astype(np.float32))
    active[:, 1] = False
    louder = answers.copy()
    louder[1] = 1e4
    np.testing.assert_array_equal(
        specialists.combine(generalist, answers, sets, active),
        specialists.combine(generalist, louder, sets, active),
    )
    louder[1] = np.nan
    np.testing.assert_array_equal(
        specialists.combine(generalist, answers, sets, active),
        specialists.combine(generalist, louder, sets, active),
    )


def test_images_do_not_depend_on_each_other():
    generalist, answers, sets, active = make_opinions()
    whole = specialists.combine(generalist, answers, sets, active)
    part = specialists.combine(generalist[3:5], answers[:, 3:5], sets, active[3:5])
    np.testing.assert_allclose(part, whole[3:5], rtol=1e-4, atol=1e-4)


def test_masked_classes_and_extremes():
    generalist, answers, sets, active = make_opinions()
    generalist[:, 2] = -np.inf
    answers[:, :, :3][np.broadcast_to(sets[:, None] == 2, (4, 24, 3))] = -np.inf
    found = np.asarray(specialists.combine(generalist, answers, sets, active))
    assert np.all(found[:, 2] == -np.inf) and np.all(np.isfinite(np.delete(found, 2, axis=1)))
    present = np.delete(np.arange(8), 2)
    best = reference_combine(generalist, answers, sets, active)
    np.testing.assert_allclose(softmax(found.astype(np.float64)), best, atol=5e-4)
    assert 2 in sets and best[:, present].min() > 0
    sure = 1e4 * np.sign(make_opinions()[0])
    assert np.all(np.isfinite(specialists.combine(sure, 1e3 * answers, sets, active)))


def test_misuse():
    generalist, answers, sets, active = make_opinions()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"set_size is 10, expected 1 to 9"):
        specialists.confusable_classes(key, grouped_logits(), num_sets=2, set_size=10)
    with pytest.raises(ValueError, match="num_clusters is 4, expected 1 to 3"):
        specialists.online_kmeans(key, np.zeros((3, 2)), num_clusters=4)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        specialists.prediction_covariance(generalist, temperature=0)
    with pytest.raises(ValueError, match="expected different classes of 0 to 4"):
        specialists.specialist_labels(np.arange(5), np.array([1, 1]), num_classes=5)
    with pytest.raises(ValueError, match="expected different classes of 0 to 4"):
        specialists.membership(np.array([1, 5]), 5)
    with pytest.raises(ValueError, match="1 to 4 of 5 classes"):
        specialists.membership(np.arange(5), 5)
    with pytest.raises(ValueError, match="batch_size is 7, expected an even number"):
        specialists.specialist_indices(0, 0, is_special=np.arange(9) < 3, batch_size=7)
    with pytest.raises(ValueError, match="is_special marks 0 of 9 examples"):
        specialists.specialist_indices(0, 0, is_special=np.zeros(9, bool), batch_size=4)
    with pytest.raises(ValueError, match=r"special_share is 1, expected a share in \(0, 1\)"):
        specialists.dustbin_shift(1)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        specialists.specialist_head(np.zeros((2, 4)), np.zeros(3), np.array([0]))
    with pytest.raises(ValueError, match="num_top is 9"):
        specialists.active_specialists(generalist, sets, num_top=9)
    with pytest.raises(ValueError, match=r"active has shape \(24, 3\), expected \(24, 4\)"):
        specialists.combine(generalist, answers, sets, active[:, :3])
    with pytest.raises(ValueError, match=r"specialist_logits has shape \(4, 24, 3\)"):
        specialists.combine(generalist, answers[..., :3], sets, active)
