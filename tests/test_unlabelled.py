"""A folder of one's own with images without labels: the teacher alone teaches on those."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kdjax import data, losses, objective, terms
from kdjax._steps import hits
from kdjax.runs import data_free, distill, tasks, unlabelled
from kdjax.types import Outputs, TermInputs

SMALL = [
    "--epochs", "2", "--teacher.epochs", "4", "--num-seeds", "1", "--teacher.widths", "16",
    "--student.widths", "8", "--batch-size", "8", "--log-every", "1", "--validation-fraction", "0",
]  # fmt: skip
SMALL = [flag.replace("--validation", "--data.validation") for flag in SMALL]
LABELS = np.array([1, -1, 0, 2, -1, 1])


def inputs_of(logits, mask=None):
    batch, mask = {"label": LABELS}, jnp.ones(6, bool) if mask is None else mask
    teacher = Outputs(jnp.roll(logits, 1, axis=1), {})
    return TermInputs(batch, Outputs(logits, {}), teacher, mask)


@pytest.mark.parametrize("ignored", [{}, {"ignore_label": -1}])
@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 1]])
def test_the_loss_of_labels_is_the_mean_over_those_that_have_one(mask, ignored):
    logits, mask = jax.random.normal(jax.random.key(0), (6, 3)), jnp.array(mask, bool)
    term = unlabelled.of_labeled(terms.of(losses.cross_entropy, **ignored))
    hard = objective.combine({"hard": term}, {"hard": 1.0})

    def loss(logits):
        variables = hard.init(jax.random.key(0), inputs_of(logits, mask))
        return hard.apply(*variables, inputs_of(logits, mask))[0]

    labeled = np.asarray(mask) & (LABELS >= 0)
    expected = losses.cross_entropy(logits[labeled], LABELS[labeled]).mean()
    found, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.all(np.any(gradient != 0, axis=1) == labeled)


def test_who_has_no_class_is_no_neighbor():
    logits = jax.random.normal(jax.random.key(0), (6, 3))
    hard = tasks.of("embeddings", set_of_classes()).hard(0.0)
    found = unlabelled.of_labeled(hard).apply((), (), inputs_of(logits))[0].sum() / 6
    own = TermInputs({"label": LABELS[LABELS >= 0]}, Outputs(logits[LABELS >= 0], {}), None,
                     jnp.ones(4, bool))  # fmt: skip
    np.testing.assert_allclose(found, hard.apply((), (), own)[0].mean(), rtol=1e-5)


def set_of_classes():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    return data.from_arrays(images, np.arange(40) % 3, labels_fn=data.embedding_labels)


def test_accuracy_is_of_those_that_have_a_label():
    logits = jax.nn.one_hot(np.array([1, 0, 0, 1, 0, 1]), 3)
    found = jax.jit(lambda x: hits(inputs_of(x)))(logits)
    assert [float(x) for x in found["accuracy"]] == [3, 4]
    assert float(found["agreement"][1]) == 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for folder in ("set/cat", "set/dog", "more"):
        (root / folder).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(image).save(root / folder / f"{i}.png")
    return root


def run(photos, directory, *flags, script=distill):
    base = ["--data.dir", photos / "set", "--workdir", directory, *flags]
    script.main([*map(str, base)])


@pytest.mark.slow
def test_a_run_on_a_folder_and_more_images(photos, tmp_path, capsys):
    more = ["--data.unlabelled", photos / "more", *SMALL]
    run(photos, tmp_path / "w", *more)
    said = capsys.readouterr().out
    assert "40 images in 2 class folders (cat, dog)" in said and "20 images without labels" in said
    lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    alone = max(row["step"] for row in rows if row["phase"] == "scratch")
    distilled = [r for r in rows if r["phase"] == "distilled" and r["split"] == "train"]
    # 32 labeled ones to train on and 20 more, twice, in batches of 8: for both students.
    assert alone == distilled[-1]["step"] == 13
    assert all(np.isfinite(r["loss/hard"]) and r["accuracy"] is not None for r in distilled)
    page = (tmp_path / "w" / "report.html").read_text()
    assert "20 images without labels" in page and "2 class folders (cat, dog)" in page
    Image.new("RGB", (8, 8)).save(photos / "more" / "19.png")
    with pytest.raises(SystemExit, match="2"):
        run(photos, tmp_path / "w", *more)
    error = capsys.readouterr().err
    assert "other content: the data.unlabelled.images was" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "kd+dkd"], "--method kd+dkd reads labels; leave it out"),
        (["--augment", "mixup"], "--augment mixup needs a label for each; leave it out"),
        (["--balanced-classes"], "class weights need a label for each; leave it out"),
        (["--num-micro-batches", 2], "--num-micro-batches is 2; leave it out"),
        (["--data.unlabelled", "nowhere"], "--data.unlabelled nowhere"),
    ],
)
def test_what_cannot_learn_from_them_is_one_line(photos, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit, match="2"):
        run(photos, tmp_path / "w", "--data.unlabelled", photos / "more", *SMALL, *flags)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_student_of_made_up_images_is_given_none(photos, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(
            *(photos, tmp_path / "w", "--data.unlabelled", photos / "more"),
            *("--batch-size", 8),
            script=data_free,
        )
    assert "students see no images; leave it out" in capsys.readouterr().err
