"""Views: each image gets a change of its own, and nothing but that change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import all_shifts, augment, flip, jitter, pad_and_crop, translate, warp
from kdjax.sharding import batch_sharding, make_mesh

KEY = jax.random.key(0)
VIEWS = {
    "flip": flip,
    "jitter": partial(jitter, max_shift=2),
    "pad_and_crop": partial(pad_and_crop, padding=3),
    "both": lambda key, images: flip(key, pad_and_crop(key, images)),
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


def make_images(num_images=64, height=6, width=8, channels=3, dtype=np.uint8):
    rng = np.random.default_rng(0)
    shape = (num_images, height, width, channels)
    return jnp.asarray(rng.integers(1, 255, shape), dtype)


def shifted(image, down, right):
    """Shift by index arithmetic, black outside."""
    height, width, _ = image.shape
    moved = np.roll(image, (down, right), axis=(0, 1))
    rows, columns = np.arange(height) - down, np.arange(width) - right
    moved[(rows < 0) | (rows >= height)] = 0
    moved[:, (columns < 0) | (columns >= width)] = 0
    return moved


def assert_shifts(function, margin, num_images):
    images = np.asarray(make_images(num_images))
    changed = np.asarray(function(KEY, jnp.asarray(images)))
    steps = range(-margin, margin + 1)
    found = set()
    for image, moved in zip(images, changed, strict=True):
        matches = [
            (y, x) for y in steps for x in steps if np.array_equal(shifted(image, y, x), moved)
        ]
        assert len(matches) == 1
        found.update(matches)
    return found


@every_view
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_shape_and_type_stay(view, dtype):
    images = make_images(4, dtype=dtype)
    changed = view(KEY, images)
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)


@every_view
def test_the_key_decides(view):
    images = make_images()
    once, again, other = view(KEY, images), view(KEY, images), view(jax.random.key(1), images)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    np.testing.assert_array_equal(jax.jit(view)(KEY, images), once)


@every_view
def test_every_example_is_drawn_its_own_change(view):
    same = jnp.broadcast_to(make_images(1), (64, 6, 8, 3))
    assert len({np.asarray(image).tobytes() for image in view(KEY, same)}) > 1


@every_view
def test_eight_devices_do_what_one_does(view):
    images = make_images()
    split = batch_sharding(make_mesh())
    sharded = jax.jit(view, out_shardings=split)(KEY, jax.device_put(images, split))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, view(KEY, images))


def test_flip_mirrors_half():
    images = np.asarray(make_images(400))
    changed = np.asarray(flip(KEY, images))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(images, changed, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(images, changed, strict=True)]
    assert np.all(np.logical_xor(mirrored, kept))
    assert 150 < sum(mirrored) < 250


def test_jitter_shifts_by_every_amount_up_to_the_largest():
    assert len(assert_shifts(partial(jitter, max_shift=1), 1, 100)) == 9
    assert len(assert_shifts(jitter, 2, 250)) == 25


def test_crop_windows_lie_anywhere_in_the_padded_image():
    assert len(assert_shifts(partial(pad_and_crop, padding=1), 1, 100)) == 9
    assert {abs(y) for y, _ in assert_shifts(pad_and_crop, 4, 150)} == set(range(5))


@pytest.mark.parametrize(
    "function", [partial(jitter, max_shift=0), partial(pad_and_crop, padding=0)]
)
def test_no_shift_is_the_image(function):
    images = make_images()
    np.testing.assert_array_equal(function(KEY, images), images)


@pytest.mark.parametrize("margin", [-1, 6, 100])
def test_a_shift_beyond_the_image_is_refused(margin):
    message = rf"jitter: max_shift is {margin}, images are \(6, 8\)"
    with pytest.raises(ValueError, match=message):
        jitter(KEY, make_images(2), max_shift=margin)
    with pytest.raises(ValueError, match=rf"pad_and_crop: padding is {margin}, images are"):
        pad_and_crop(KEY, make_images(2), padding=margin)


def test_augment_changes_the_image_alone():
    batch = {"image": make_images(), "label": jnp.arange(64), "teacher_logits": jnp.ones((64, 3))}
    changed = augment(pad_and_crop, flip)(KEY, batch)
    assert changed.keys() == batch.keys()
    assert changed["label"] is batch["label"]
    assert changed["teacher_logits"] is batch["teacher_logits"]
    assert not np.array_equal(changed["image"], batch["image"])


def test_augment_applies_its_functions_in_order_each_with_its_own_key():
    keys = []

    def record(key, images):
        keys.append(jax.random.key_data(key).tolist())
        return 2 * images + len(keys)

    found = augment(record, record)(KEY, {"image": jnp.ones((1, 1, 1, 1))})
    assert found["image"].item() == 2 * (2 * 1 + 1) + 2
    assert keys[0] != keys[1]


def test_augment_with_nothing_is_the_batch():
    batch = {"image": make_images(2)}
    assert augment()(KEY, batch)["image"] is batch["image"]


def test_all_shifts_are_those_that_jitter_draws():
    images = np.asarray(make_images(1))
    copies = all_shifts(images, max_shift=1)
    assert copies.shape == (9, *images.shape) and copies.dtype == images.dtype
    np.testing.assert_array_equal(copies[4], images)
    expected = {x.tobytes() for x in copies}
    drawn = jitter(KEY, jnp.asarray(np.repeat(images, 200, axis=0)), max_shift=1)
    assert {np.asarray(x)[None].tobytes() for x in drawn} == expected
    with pytest.raises(ValueError, match=r"all_shifts: max_shift is -1"):
        all_shifts(images, max_shift=-1)


def test_translate_moves_the_centre_of_mass_by_real_numbers_and_loses_no_light():
    images = np.zeros((400, 16, 16, 1), np.uint8)
    images[:, 7, 8] = 200
    moved = np.asarray(translate(KEY, jnp.asarray(images), max_shift=1.5))
    assert moved.dtype == np.float32 and moved.shape == images.shape
    np.testing.assert_allclose(moved.sum((1, 2, 3)), 200, rtol=1e-5)
    rows = (moved.sum((2, 3)) * np.arange(16)).sum(1) / 200 - 7
    columns = (moved.sum((1, 3)) * np.arange(16)).sum(1) / 200 - 8
    for shifts in (rows, columns):
        assert np.abs(shifts).max() <= 1.5 + 1e-4
        assert shifts.min() < -1.4 and shifts.max() > 1.4
        assert abs(shifts.mean()) < 0.15
        assert len(np.unique(shifts.round(3))) > 100
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_translate_by_nothing_is_the_identity_and_explains_misuse():
    images = make_images(3)
    np.testing.assert_array_equal(translate(KEY, images, max_shift=0), images.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"translate: max_shift is -0.5, images are \(6, 8\)"):
        translate(KEY, images, max_shift=-0.5)


def ramps(height=9, width=12):
    """Images whose two channels say which row and column a pixel is from, two wide of the edge."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.tile(np.stack([rows, columns], -1)[None].astype(np.float32), (50, 1, 1, 1))


def test_warp_moves_every_pixel_by_less_than_it_may_and_neighbours_alike():
    images = ramps()
    moved = np.asarray(warp(KEY, jnp.asarray(images), max_shift=1.5, num_points=3))
    assert moved.dtype == np.float32 and moved.shape == images.shape
    # Away from the edges, where black enters, a pixel says where it was taken from.
    inner = (moved - images)[:, 2:-2, 2:-2]
    assert np.abs(inner).max() <= 1.5 + 1e-4 and np.abs(inner).max() > 1
    assert abs(inner.mean()) < 0.15
    assert np.abs(np.diff(inner, axis=1)).max() <= 3 / 4 + 1e-4, "linear between the points"
    assert np.abs(inner - inner.mean((1, 2), keepdims=True)).max() > 0.3, "parts move apart"
    assert len(np.unique(inner[:, 0, 0, 0].round(4))) == len(images), "each image by its own field"


def test_warp_of_two_points_bends_nothing():
    images = ramps()
    moved = np.asarray(warp(KEY, jnp.asarray(images), max_shift=1.0, num_points=2))
    inner = (moved - images)[:, 2:-2, 2:-2]
    np.testing.assert_allclose(np.diff(inner, 2, axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(np.diff(inner, 2, axis=2), 0, atol=1e-4)


def test_warp_by_nothing_is_the_identity_and_explains_misuse():
    images = make_images(3)
    same = warp(KEY, images, max_shift=0)
    np.testing.assert_allclose(same, images.astype(jnp.float32), rtol=1e-6)
    with pytest.raises(ValueError, match=r"warp: max_shift is 6, images are \(6, 8\)"):
        warp(KEY, images, max_shift=6)
    with pytest.raises(ValueError, match="warp: num_points is 1, expected 2 or more"):
        warp(KEY, images, num_points=1)


def test_every_image_of_an_example_gets_the_same_view():
    images = make_images(64)
    view = augment(flip, partial(jitter, max_shift=1))
    batch = {"image": images, "teacher_image": images + 1, "label": jnp.arange(64)}
    seen = view(KEY, batch)
    np.testing.assert_array_equal(seen["image"], view(KEY, {"image": images})["image"])
    inside = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(seen["teacher_image"][inside], (seen["image"] + 1)[inside])
    large = {**batch, "teacher_image": jnp.repeat(jnp.repeat(images, 2, 1), 2, 2)}
    both = augment(flip)(KEY, large)
    np.testing.assert_array_equal(both["teacher_image"][:, ::2, ::2], both["image"])
    with pytest.raises(ValueError, match=r"augment: teacher_image has shape \(64, 12, 16, 3\), im"):
        view(KEY, large)


@pytest.mark.parametrize("name", ["label", "mask"])
def test_what_belongs_to_pixels_is_not_left_behind(name):
    batch = {"image": make_images(4), name: jnp.ones((4, 6, 8), bool)}
    with pytest.raises(ValueError, match=rf"augment: {name} has shape \(4, 6, 8\), one for each p"):
        augment(flip)(KEY, batch)
