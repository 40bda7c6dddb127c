"""Optimizers and views are what the flags say, by the formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.runs import recipes
from kdjax.runs.settings import OptimizerSettings

STEPS = 100


def taken(settings, *, num_steps=STEPS, batch_size=128, norm_limit=None, taking=STEPS):
    """Return the parameters after every step on fixed gradients, [steps, 3, 2]."""
    optimizer = recipes.make_optimizer(
        settings, batch_size=batch_size, num_steps=num_steps, norm_limit=norm_limit
    )
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(taking, 3, 2)), jnp.float32)

    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update({"kernel": grad}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["kernel"]

    start = {"kernel": jnp.ones((3, 2))}
    _, found = jax.lax.scan(step, (start, optimizer.init(start)), grads)
    return np.asarray(found), np.asarray(grads, np.float64)


def rate_of_steps(step, peak):
    """Divide by ten after 62.5, 75 and 87.5 % of the steps."""
    return peak * 0.1 ** sum(step >= drop for drop in (62, 75, 88))


def rate_of_cosine(step, peak):
    """Rise over 2 % of the steps, then fall as a cosine to zero."""
    warm_up = 2
    if step < warm_up:
        return peak * step / warm_up
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warm_up) / (STEPS - warm_up)))


@pytest.mark.parametrize("nesterov", [None, True, False])
@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_sgd_has_momentum_decay_and_its_schedule(schedule, nesterov):
    settings = OptimizerSettings("sgd", 0.1, 0.01, schedule, nesterov)
    found, grads = taken(settings)
    rate = {"steps": rate_of_steps, "cosine": rate_of_cosine}[schedule]
    weights, momentum = np.ones((3, 2)), np.zeros((3, 2))
    for step, grad in enumerate(grads):
        decayed = grad + 0.01 * weights
        momentum = 0.9 * momentum + decayed
        move = momentum if nesterov is False else decayed + 0.9 * momentum
        weights = weights - rate(step, 0.1) * move
        np.testing.assert_allclose(found[step], weights, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_adamw_decays_apart_from_the_gradient(schedule):
    found, grads = taken(OptimizerSettings("adamw", 0.01, 0.1, schedule))
    rate = {"steps": rate_of_steps, "cosine": rate_of_cosine}[schedule]
    weights, mean, square = np.ones((3, 2)), np.zeros((3, 2)), np.zeros((3, 2))
    for step, grad in enumerate(grads):
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
        whole = [x / (1 - beta ** (step + 1)) for x, beta in ((mean, 0.9), (square, 0.999))]
        move = whole[0] / (np.sqrt(whole[1]) + 1e-8) + 0.1 * weights
        weights = weights - rate(step, 0.01) * move
        np.testing.assert_allclose(found[step], weights, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "usual"), [("adamw", 1e-3), ("sgd", 0.05)])
def test_the_usual_rate_grows_with_batches_above_128(name, usual):
    for batch_size, rate in ((32, usual), (128, usual), (512, 4 * usual)):
        asked = OptimizerSettings(name, schedule="steps")
        explicit = OptimizerSettings(name, rate, schedule="steps")
        found, _ = taken(asked, batch_size=batch_size, taking=3)
        np.testing.assert_array_equal(found, taken(explicit, taking=3)[0])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_limit_of_norms_holds_after_every_step(name):
    free, _ = taken(OptimizerSettings(name, 0.05), taking=20)
    held, _ = taken(OptimizerSettings(name, 0.05), norm_limit=1.2, taking=20)
    norms = np.linalg.norm(held, axis=1)
    assert np.mean(np.linalg.norm(free, axis=1) > 1.3) > 0.5
    # It starts above, and later the gradient may shorten it.
    np.testing.assert_allclose(norms[0], 1.2, rtol=1e-5)
    assert np.all(norms < 1.2 * (1 + 1e-5)) and np.mean(np.isclose(norms, 1.2)) > 0.3


def views(*augment, **sizes):
    images = jnp.arange(32 * 64, dtype=jnp.float32).reshape(32, 8, 8, 1) + 1
    view_fn = recipes.make_views(augment, **{"crop_padding": 1, "jitter_pixels": 1, **sizes})
    return np.asarray(images), np.asarray(view_fn(jax.random.key(0), {"image": images})["image"])


def shifts(images, seen, largest):
    """Return by how much each image was moved, None where by no whole number of pixels."""
    padded = np.pad(images, ((0, 0), *[(largest, largest)] * 2, (0, 0)))
    offsets = [(i, j) for i in range(2 * largest + 1) for j in range(2 * largest + 1)]
    cuts = {(i, j): padded[:, i : i + 8, j : j + 8] for i, j in offsets}
    return [
        next((o for o, cut in cuts.items() if np.array_equal(cut[n], seen[n])), None)
        for n in range(len(images))
    ]


@pytest.mark.parametrize(("name", "size"), [("crop", "crop_padding"), ("jitter", "jitter_pixels")])
@pytest.mark.parametrize("largest", [1, 3])
def test_images_move_by_as_many_pixels_as_are_asked_for(name, size, largest):
    found = shifts(*views(name, **{size: largest}), largest)
    assert None not in found
    rows, columns = (np.array(found)[:, axis] for axis in (0, 1))
    for moved in (rows, columns):
        assert {*moved} == set(range(2 * largest + 1))
    assert not np.array_equal(rows, columns)


def test_flips_mirror_and_no_view_is_none():
    images, seen = views("flip")
    mirrored = [np.array_equal(b, a[:, ::-1]) for a, b in zip(images, seen, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(images, seen, strict=True)]
    assert any(mirrored) and any(kept) and all(np.logical_or(mirrored, kept))
    assert recipes.make_views((), crop_padding=1, jitter_pixels=1) is None
    assert recipes.make_views(("none",), crop_padding=1, jitter_pixels=1) is None


@pytest.mark.parametrize("name", ["translate", "warp"])
def test_views_of_parts_of_pixels_move_at_all_and_no_further(name):
    images, seen = views(name, jitter_pixels=2)
    assert np.all(np.any(images != seen, axis=(1, 2, 3)))
    assert shifts(images, seen, 2).count(None) > 24
    center = np.zeros((32, 9, 9, 1), np.float32)
    center[:, 4, 4] = 1
    view_fn = recipes.make_views((name,), crop_padding=1, jitter_pixels=2)
    moved = np.asarray(view_fn(jax.random.key(1), {"image": jnp.asarray(center)})["image"])
    assert np.any(moved[:, 2:4] > 0) and not np.any(moved[:, 0]) and not np.any(moved[:, 8])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_scales_and_tokens_are_spared_unless_all_decay(name):
    params = {
        "kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2),
        "tokens": {"position": jnp.ones((1, 3, 2)), "class_token": jnp.ones((1, 1, 2))},
    }  # fmt: skip
    for mask, decaying in (("kernels", {"['kernel']"}), ("all", None)):
        settings = OptimizerSettings(name, 0.1, 0.1, "steps", weight_decay_mask=mask)
        optimizer = recipes.make_optimizer(settings, batch_size=1, num_steps=10, norm_limit=None)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved = {
            jax.tree_util.keystr(path)
            for path, x in jax.tree.leaves_with_path(updates)
            if np.any(np.asarray(x))
        }
        every = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
        assert moved == (every if decaying is None else decaying)


def test_a_long_gradient_is_scaled_back_and_a_short_one_left():
    settings = OptimizerSettings("sgd", 1.0, schedule="steps", momentum=0.0, nesterov=False)
    free, grads = taken(settings, taking=1)
    norm = np.linalg.norm(grads[0])
    for limit, scale in ((norm / 2, 0.5), (2 * norm, 1.0)):
        clipped, _ = taken(dataclasses.replace(settings, clip_norm=float(limit)), taking=1)
        np.testing.assert_allclose(clipped - 1, scale * (free - 1), rtol=1e-5)


def test_momentum_is_what_the_flag_says():
    settings = OptimizerSettings("sgd", 0.1, schedule="steps", nesterov=False, momentum=0.5)
    found, grads = taken(settings, taking=2)
    np.testing.assert_allclose(found[1], 1 - 0.1 * (1.5 * grads[0] + grads[1]), rtol=1e-5)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_grows_over_the_steps_of_the_warm_up(schedule, warmup):
    settings = OptimizerSettings(
        "sgd", 0.1, 0.0, schedule, nesterov=False, momentum=0.0, warmup_steps=warmup
    )
    found, grads = taken(settings, taking=20)
    moves = np.diff(np.concatenate([np.ones((1, 3, 2)), found]), axis=0)
    rates = np.mean(-moves / grads, axis=(1, 2))
    np.testing.assert_allclose(rates[:warmup], 0.1 * np.arange(warmup) / 10, atol=2e-4)
    assert rates[warmup] == pytest.approx(0.1, rel=1e-2)


def test_what_mixes_comes_after_what_moves_and_classes_are_weighed():
    mixing = recipes.Mixing(4, 1.0, 1.0, True)
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    view_fn = recipes.make_views(
        ("mixup", "flip"),
        crop_padding=1,
        jitter_pixels=1,
        mixing=mixing,
        class_weights=weights,
    )
    label = jnp.arange(8) % 4
    images = jnp.ones((8, 4, 4, 1)) * jnp.arange(8.0)[:, None, None, None]
    seen = view_fn(jax.random.key(0), {"image": images, "label": label})
    np.testing.assert_allclose(seen["label"].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(seen["mask"], seen["label"] @ weights, rtol=1e-5)
    assert np.any(np.asarray(seen["image"])[:, 0, 0, 0] % 1 > 0.01)
    assert recipes.changes_images(("mixup",)) and not recipes.changes_images(("none",))
