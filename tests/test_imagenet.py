"""The preset for ImageNet: what it settles, and two steps of it on small made-up photographs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sets import encoded, features, prepare

from kdjax import models
from kdjax.models import Network, build
from kdjax.runs import distill, experiment, flags, networks, presets, teaching, training
from kdjax.runs.settings import DataSettings, MeshSettings, NetworkSettings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write a set that has ImageNet's name, splits and features, and little else."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)

    def split(size, labels):
        sizes = [(40, 56), (56, 40), (48, 48)]
        pixels = [rng.integers(0, 256, (*sizes[i % 3], 3), np.uint8) for i in range(size)]
        return [{"image": encoded(x, "JPEG"), "label": labels(i)} for i, x in enumerate(pixels)]

    splits = {
        "train": split(16, lambda i: i % 5),
        "validation": split(8, lambda i: i % 5),
        "test": split(4, lambda i: -1),
    }
    columns = features(shape=(None, None, 3), kind="jpeg", classes=5)
    prepare(root, splits, columns=columns, name="Imagenet2012", version="5.1.0")
    return root


def test_the_setting_is_the_fields():
    found = presets.applied(distill.Settings(preset="imagenet"))
    assert (found.teacher.name, found.student.name) == ("resnet34", "resnet18")
    assert (found.data.name, found.data.image_size, found.data.resize) == (
        "imagenet2012",
        224,
        "crop",
    )
    assert found.data.streaming and found.precision == "bfloat16"
    optimizer = found.optimizer
    assert (optimizer.name, optimizer.schedule) == ("sgd", "cosine")
    np.testing.assert_allclose([optimizer.learning_rate, optimizer.weight_decay], [0.4, 1e-4])
    assert (found.batch_size, found.epochs, found.augment) == (1024, 100, ("resized-crop", "flip"))
    flags.check(found)


def test_the_rate_follows_the_batch_and_given_settings_stay():
    given = distill.Settings(preset="imagenet", batch_size=256, epochs=3, augment=("flip",))
    found = presets.applied(given)
    assert (found.optimizer.learning_rate, found.epochs, found.augment) == (0.1, 3, ("flip",))
    vit = presets.applied(dataclasses.replace(given, student=NetworkSettings("vit_s")))
    assert vit.optimizer.name == "adamw"
    np.testing.assert_allclose(vit.optimizer.learning_rate, 2.5e-4)
    assert presets.applied(distill.Settings(batch_size=7)) == distill.Settings(batch_size=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "num_params"),
    [
        ("resnet18", 11_179_077),
        ("vit_mu", 37_733),
        pytest.param("vit_s", 21_593_861, marks=pytest.mark.long),
    ],
)
def test_two_steps_on_photographs(root, tmp_path, student, num_params):
    settings = presets.applied(
        distill.Settings(
            preset="imagenet",
            data=DataSettings(dir=root, image_size=32),
            student=NetworkSettings(student, patch_size=None if student == "resnet18" else 16),
            mesh=MeshSettings(data=1),
            batch_size=8,
            epochs=1,
            log_every=1,
            workdir=tmp_path / "run",
        )
    )
    dataset = experiment.load_dataset(settings)
    assert [len(part.label) for part in (dataset.train, dataset.validation, dataset.test)] == [
        *(16, 0, 8)
    ]
    with experiment.open_experiment(settings, dataset, lambda: False) as opened:
        spec = networks.spec_of(opened.settings, dataset, opened.settings.teacher)
        model = build(spec)
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
        teacher = teaching.TeacherResult(Network(spec, model, variables), {}, {})
        plan = teaching.plan_method(
            opened, teacher, "kd", teaching.student_examples(opened), phase="distilled"
        )
        assert plan.num_steps == 2
        params = training.train(opened.run, plan, seed=0).params
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert np.all(np.isfinite([[row["loss/soft"], row["loss/hard"]] for row in rows]))
    assert models.num_params(params) == num_params


def test_photographs_are_seen_whole_in_evaluation_and_in_part_in_training(root):
    dataset = experiment.load_dataset(
        presets.applied(distill.Settings(preset="imagenet", data=DataSettings(dir=root)))
    )
    assert dataset.image_shape == (224, 224, 3)
    image = dataset.test.image[np.array([0])][0]
    assert Image.fromarray(image).size == (224, 224)
