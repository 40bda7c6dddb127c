"""Distillation without data: what the generator is asked for, and that nothing is peeked at."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scripts

from kdjax import models, terms
from kdjax.models import load_network
from kdjax.objective import combine
from kdjax.runs import data_free, generator, resolved, settings
from kdjax.types import Outputs, Variables

ROOT = Path(__file__).parents[1]
SHAPE = (4, 4, 1)


def run(*flags):
    return scripts.run("experiments.data_free", *flags)


@pytest.mark.slow
def test_a_student_of_made_up_images(tmp_path):
    flags = ["--teacher.epochs", "2", "--steps", "20", "--num-seeds", "1", "--log-every", "10"]
    done = run(*flags, "--workdir", tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 <= summary["students"][0]["test_errors"] <= 450
    page = (tmp_path / "report.html").read_text()
    assert "made up" in page and 'class="lede">A student that has seen no image of digits' in page
    assert "students see none of them" in done.stdout
    network = load_network(tmp_path / "student")
    logits = network.model.apply(*network.variables, np.zeros((2, 8, 8, 1), np.uint8), train=False)
    assert logits[0].logits.shape == (2, 10)
    again = run(*flags, "--workdir", tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_teacher_sees_what_distill_shows_it():
    split = SimpleNamespace(label=np.zeros(60_000))
    mnist = SimpleNamespace(image_shape=(28, 28, 1), label_names=tuple("0123456789"), train=split)
    mnist.name, mnist.version, mnist.unlabelled = "mnist", "3", None
    asked = data_free.Settings(data=settings.DataSettings(name="mnist"), workdir=Path("w"))
    assert resolved.resolve(asked, mnist).teacher.augment == ("jitter",)


def test_wrong_use_is_one_line(capsys):
    for flag, words in (
        ("--steps", "from 1 to 2,147,483,647"),
        ("--generator.noise-size", "positive"),
        ("--generator.learning-rate", "positive"),
    ):
        error = scripts.refusal(data_free.main, [flag, "0"], capsys)
        assert f"{flag} must be {words}" in error


def test_the_generators_loss_is_that_of_the_papers():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 6, 5)) * 2
    embedding = rng.normal(size=(6, 3))
    weights = generator.Weights(1.0, 0.5, 2.0, 0.25, 0.75)
    with jax.enable_x64(True):
        arrays = Outputs(jnp.asarray(teacher)), jnp.asarray(embedding), jnp.asarray(student)
        found = generator.generator_loss(*arrays, weights, statistics=0.4)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (teacher, student))
    mean = p.mean(0)
    parts = [
        -np.log(p.max(-1)).mean(),
        -np.abs(embedding).mean(),
        (mean * np.log(mean)).sum(),
        -(p * np.log(p / q)).sum(-1).mean(),
        0.4,
    ]
    np.testing.assert_allclose(found[1:], parts, rtol=1e-9)
    np.testing.assert_allclose(found.total, np.dot(weights, parts), rtol=1e-9)


def test_statistics_are_held_against_those_that_a_teacher_has_kept():
    model = models.convnet(3, widths=(4, 5), features=["stage_1/block_0/conv"])
    images = np.random.default_rng(0).normal(1, 2, (6, 8, 8, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    with generator.watched_norms() as apart:
        outputs, _ = model.apply(*variables, images, train=False)
    assert len(apart) == 2
    seen = np.asarray(outputs.features["stage_1/block_0/conv"], np.float64).reshape(-1, 4)
    # At the start a BatchNorm has kept a mean of 0 and a variance of 1.
    expected = np.linalg.norm(seen.mean(0)) + np.linalg.norm(seen.var(0) - 1)
    np.testing.assert_allclose(apart[0], expected, rtol=1e-5)
    outside = model.apply(*variables, images, train=False)[0]
    assert len(apart) == 2, "nothing is watched any more"
    np.testing.assert_array_equal(outside.logits, outputs.logits)
    with generator.watched_norms() as apart:
        plain = models.mlp(3, widths=(4,))
        plain.apply(*plain.init(jax.random.key(0), images), images, train=False)
    assert not apart


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 6, 3)])
def test_a_generator_of_convolutions_makes_images_of_any_size(shape):
    made = generator.ConvGenerator(shape, 4)
    variables = made.init(jax.random.key(0), np.ones((2, 5), np.float32), train=False)
    noise = jax.random.normal(jax.random.key(1), (7, 5))
    images, _ = made.apply(variables, noise, train=True, mutable="batch_stats")
    assert images.shape == (7, *shape)
    assert 0 <= images.min() < 60 and 195 < images.max() <= 255


@pytest.fixture(scope="module")
def trained():
    """Some steps with a teacher of random weights: start, end, metrics, teacher."""
    student, teacher = (
        models.normalized(models.mlp(3, widths=(8,), features=["drop_0"]), [0.5], [0.25])
        for _ in range(2)
    )
    variables = teacher.init(jax.random.key(7), jnp.zeros((2, *SHAPE)))
    init, step = generator.make_step(
        student,
        teacher,
        "drop_0",
        combine({"soft": terms.soft_targets()}, {"soft": 1.0}),
        (optax.adam(1e-2), optax.adam(1e-2)),
        generator.Generator(SHAPE, (16,)),
        batch_size=32,
        noise_size=5,
        weights=generator.Weights(),
    )
    start = init(jax.random.key(0), variables)
    kept = jax.tree.map(np.array, variables)
    state, losses = jax.tree.map(jnp.copy, start), []
    for _ in range(60):
        state, metrics = step(state, {}, teacher_variables=variables)
        losses.append({name: float(total / count) for name, (total, count) in metrics.items()})
    jax.tree.map(np.testing.assert_array_equal, kept, variables)
    # From the same start, but at another step: other noise.
    later = jax.tree.map(jnp.copy, start).replace(step=jnp.int32(1))
    other = step(later, {}, teacher_variables=variables)[1]["generator/total"][0]
    assert not np.isclose(other / 32, losses[0]["generator/total"], rtol=1e-4)
    return start, state, losses


def test_student_and_generator_both_learn(trained):
    start, state, losses = trained
    assert int(state.step) == int(state.student.step) == 60
    assert losses[-1]["generator/total"] < losses[0]["generator/total"] - 0.1
    assert losses[-1]["generator/balanced"] < -0.9 * np.log(3)
    assert losses[-1]["loss"] < losses[0]["loss"]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start.generator, state.generator)
    assert all(jax.tree.leaves(moved))


def test_images_are_images_and_repeatable(trained):
    _, state, _ = trained
    made = generator.Generator(SHAPE, (16,))
    variables = Variables(state.generator.params, state.generator.state)
    first, second, other = (
        generator.images_of(made, variables, noise_size=5, count=4, seed=seed) for seed in (0, 0, 1)
    )
    assert first.shape == (4, *SHAPE) and first.min() >= 0 and first.max() <= 255
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
