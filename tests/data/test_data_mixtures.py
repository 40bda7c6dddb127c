"""Images that are mixed: what is seen is what the labels say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data

CLASSES, SIZE = 4, 16
LABELS = np.array([0, 1, 2, 3, 1, 2], np.int32)


def batch(**more):
    """Images of which every pixel is the example's number."""
    own = np.arange(1.0, len(LABELS) + 1, dtype=np.float32)
    images = np.broadcast_to(own[:, None, None, None], (len(LABELS), SIZE, SIZE, 1))
    return {"image": jnp.asarray(images), "label": jnp.asarray(LABELS), **more}


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("make", [data.mixup, data.cutmix])
def test_labels_have_the_shares_that_are_seen(make, per_example):
    view = jax.jit(make(num_classes=CLASSES, per_example=per_example))
    given, shares = batch(), []
    for seed in range(5):
        seen = view(jax.random.key(seed), given)
        own = np.arange(1.0, len(LABELS) + 1)
        partner = np.roll(own, 1)
        share = (np.mean(seen["image"], axis=(1, 2, 3)) - partner) / (own - partner)
        want = np.zeros((len(LABELS), CLASSES))
        for i, s in enumerate(share):
            want[i, LABELS[i]] += s
            want[i, LABELS[i - 1]] += 1 - s
        np.testing.assert_allclose(seen["label"], want, atol=1e-4)
        shares.append(share)
    assert np.std(shares, axis=0).min() > 0.02
    assert (np.ptp(shares, axis=1).max() > 1e-4) == per_example or make is data.cutmix


def test_cutmix_shows_a_rectangle_of_the_other_image():
    seen = data.cutmix(num_classes=CLASSES)(jax.random.key(3), batch())
    other = np.asarray(seen["image"])[1, ..., 0] == 1
    rows, columns = other.any(1), other.any(0)
    assert 0 < other.sum() < other.size
    np.testing.assert_array_equal(other, rows[:, None] & columns[None])
    assert seen["image"].dtype == jnp.float32


def test_rectangles_have_the_area_that_is_drawn():
    """A side of sqrt(u) of the image's, cut off at its edges: u - u^1.5 / 2 + u^2 / 16."""
    images = jnp.arange(400.0)[:, None, None, None] * jnp.ones((1, SIZE, SIZE, 1))
    given = {"image": images, "label": jnp.arange(400) % CLASSES}
    view = data.cutmix(num_classes=CLASSES, per_example=True)
    seen = [view(jax.random.key(seed), given)["image"] != images for seed in range(3)]
    assert np.mean(seen) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)


def test_what_does_not_count_is_mixed_into_nothing():
    mask = jnp.array([1, 1, 0, 1, 1, 1], bool)
    for make in (data.mixup, data.cutmix):
        seen = make(num_classes=CLASSES)(jax.random.key(0), batch(mask=mask))
        for i in (2, 3):  # itself, and the one that it would be mixed into
            np.testing.assert_array_equal(seen["image"][i], i + 1)
            np.testing.assert_array_equal(seen["label"][i], np.eye(CLASSES)[LABELS[i]])
        np.testing.assert_array_equal(seen["mask"] > 0, mask)
        assert np.any(np.asarray(seen["image"][1]) != 2)


def test_other_images_of_the_examples_are_mixed_alike():
    given = batch()
    larger = jnp.repeat(jnp.repeat(given["image"], 2, axis=1), 2, axis=2)
    seen = data.cutmix(num_classes=CLASSES)(jax.random.key(3), {**given, "teacher_image": larger})
    np.testing.assert_allclose(
        np.mean(seen["teacher_image"], axis=(1, 2, 3)), np.mean(seen["image"], axis=(1, 2, 3)),
        atol=0.3,
    )  # fmt: skip


def test_one_of_takes_each_of_its_views():
    views = data.mixup(num_classes=CLASSES), data.cutmix(num_classes=CLASSES)
    view = jax.jit(data.one_of(*views, per_example=True))
    is_blend = []
    for seed in range(20):
        images = np.asarray(view(jax.random.key(seed), batch())["image"])
        is_blend += [bool(np.any(x % 1 > 1e-4)) for x in images]
    assert 0.3 < np.mean(is_blend) < 0.7


def test_mixtures_refuse_what_is_no_class():
    with pytest.raises(ValueError, match=r"mixup: batch.*label.*expected classes"):
        data.mixup(num_classes=CLASSES)(jax.random.key(0), batch(label=jnp.zeros((6, SIZE, SIZE))))
    with pytest.raises(ValueError, match="cutmix: alpha is 0"):
        data.cutmix(num_classes=2, alpha=0)
    with pytest.raises(ValueError, match="mixup: num_classes is 1"):
        data.mixup(num_classes=1)


def test_classes_weigh_what_is_given():
    weigh = data.class_weighted(np.array([1.0, 2.0, 0.0, 4.0]))
    np.testing.assert_array_equal(weigh(None, batch())["mask"], [1, 2, 0, 4, 2, 0])
    masked = weigh(None, batch(mask=jnp.array([1, 0, 1, 1, 1, 1], bool)))
    np.testing.assert_array_equal(masked["mask"], [1, 0, 0, 4, 2, 0])
    probs = jnp.array([[0.5, 0.5, 0, 0]] * 6)
    np.testing.assert_array_equal(weigh(None, batch(label=probs))["mask"], [1.5] * 6)


def test_balanced_weights_make_classes_count_the_same():
    labels = np.array([0, 0, 0, 2])
    weights = data.balanced_weights(labels, 3)
    np.testing.assert_allclose(weights, [2 / 3, 0, 2])
    assert weights[labels].mean() == pytest.approx(1)


def test_erased_rectangles_have_the_mean_color_and_a_size_in_range():
    images = jax.random.randint(jax.random.key(0), (200, SIZE, SIZE, 3), 0, 256).astype(jnp.uint8)
    seen = jax.jit(data.erase)(jax.random.key(1), images)
    assert seen.dtype == jnp.uint8
    changed = np.any(np.asarray(seen != images), axis=-1)
    erased = changed.any((1, 2))
    assert 0.35 < erased.mean() < 0.65
    areas = changed.mean((1, 2))[erased]
    assert areas.max() < 0.45 and areas.min() > 0
    assert areas.mean() == pytest.approx(0.175, abs=0.04)
    i = np.flatnonzero(erased)[0]
    color = np.asarray(images[i], np.float32).mean((0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(np.unique(np.asarray(seen[i])[changed[i]], axis=0), [color])
    with pytest.raises(ValueError, match="erase: share is 2"):
        data.erase(jax.random.key(1), images, share=2)


def test_the_weight_of_an_example_is_that_of_its_parts():
    """As many examples as tokens: nothing but the axes tells them apart."""
    label = np.zeros((4, 4), int)
    label[0] = 1
    batch = {"label": label, "mask": np.array([1, 0, 1, 1.0], np.float32)}
    found = data.class_weighted(np.array([1.0, 3.0]))(None, batch)["mask"]
    np.testing.assert_array_equal(found, np.array([[3], [0], [1], [1]]) * np.ones((4, 4)))


def test_what_is_no_class_has_no_weight():
    found = data.balanced_weights(np.array([0, 0, 1, 255, -1]), 2)
    np.testing.assert_allclose(found, [0.75, 1.5])
    np.testing.assert_array_equal(data.balanced_weights([-1, 2], 2), [0, 0])
    weigh, label = data.class_weighted(np.array([1.0, 0.0, 9.0])), np.array([0, 255, 2], np.uint8)
    np.testing.assert_array_equal(weigh(None, {"label": label})["mask"], [1, 0, 9])
    np.testing.assert_array_equal(weigh(None, {"label": np.array([-1, 7])})["mask"], [0, 0])


@pytest.mark.parametrize("make", [data.mixup, data.cutmix])
def test_labels_that_are_no_classes_are_refused_or_nan(make):
    view, images = make(num_classes=3), np.ones((3, 8, 8, 1), np.uint8)
    batch = {"image": images, "label": np.array([0, 3, 1])}
    with pytest.raises(ValueError, match="has 3, expected 0 to 2"):
        view(jax.random.key(0), batch)
    found = jax.jit(view)(jax.random.key(0), batch)["label"]
    assert np.isnan(found[1]).all() and np.isnan(found[2]).all() and np.isfinite(found[0]).all()
    masked = {**batch, "mask": np.array([True, False, True])}
    assert np.isfinite(view(jax.random.key(0), masked)["label"]).all()


def test_a_square_is_erased_of_an_image_that_is_none():
    images = np.zeros((4, 64, 32, 1), np.float32)
    images[:, ::2] = 1
    erased = data.erase(
        *(jax.random.key(0), images), share=1.0, area=(0.125, 0.125), proportions=(1.0, 1.0)
    )
    gone = np.asarray(erased != images)[..., 0]
    heights, widths = gone.any(2).sum(1), gone.any(1).sum(1)
    np.testing.assert_allclose(heights, 16, atol=1)
    np.testing.assert_allclose(widths, 16, atol=1)


def test_views_keep_their_type_where_numbers_are_wide():
    images = np.ones((2, 8, 6, 1), np.float32)
    batch = {"image": images, "label": np.array([0, 1])}
    with jax.enable_x64(True):
        assert data.translate(jax.random.key(0), images).dtype == np.float32
        assert data.warp(jax.random.key(0), images).dtype == np.float32
        found = data.mixup(num_classes=2)(jax.random.key(0), batch)
    assert found["image"].dtype == found["label"].dtype == np.float32
