"""Tasks on the command line: labels of every kind, losses and measures that mean something."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses, metrics, models
from kdjax.runs import (
    compare,
    data_free,
    distill,
    fingerprints,
    generations,
    methods,
    tasks,
    teaching,
)
from kdjax.runs.needs import Need
from kdjax.types import FeaturePaths, Outputs, TermInputs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 8, 8, 1), np.uint8)
BRIGHT = IMAGES.reshape(60, -1).mean(1)
SEVERAL = np.stack([BRIGHT > 127, IMAGES[:, 0, 0, 0] > 127], 1).astype(int)
SEVERAL[::9, 1] = -1
NUMBERS = np.stack([BRIGHT, 1e5 + 1e3 * IMAGES[:, 0, 0, 0]], 1)
PIXELS = np.where(IMAGES[..., 0] > 240, 255, IMAGES[..., 0] > 127)
VECTORS = RNG.normal(size=(60, 5))
LABELS = {
    "multi-label": SEVERAL,
    "binary": SEVERAL[:, 0],
    "regression": NUMBERS,
    "embeddings": VECTORS,
    "pixels": PIXELS,
}
SMALL = [
    *("--epochs", "3", "--teacher.epochs", "2", "--num-seeds", "1", "--batch-size", "16"),
    *("--log-every", "1", "--eval-every", "2", "--checkpoint-every", "4"),
]
NARROW = ["--teacher.widths", "8", "--student.widths", "4"]


def set_of(task, labels=None):
    labels = LABELS[task] if labels is None else labels
    return data.from_arrays(IMAGES, labels, labels_fn=tasks.LABELS_FNS[task])


@pytest.fixture
def saved(tmp_path):
    def save(task, **arrays):
        path = tmp_path / f"{task}.npz"
        np.savez(path, **{"images": IMAGES, "labels": LABELS.get(task, SEVERAL[:, 0]), **arrays})
        return path

    return save


def distilled(path, task, directory=None):
    directory = directory or path.with_suffix("")
    distill.main([
        *("--task", task, "--data.dir", str(path), "--workdir", str(directory), *SMALL),
        *(NARROW if task != "pixels" else ["--teacher.widths", "4", "--student.widths", "2"]),
    ])  # fmt: skip
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return json.loads((directory / "summary.json").read_text()), rows, directory


@pytest.mark.parametrize(
    "task", [t if t == "regression" else pytest.param(t, marks=pytest.mark.slow) for t in LABELS]
)
def test_a_task_is_distilled_and_measured(task, saved, capsys):
    path = saved(task)
    summary, rows, directory = distilled(path, task)
    own = tasks.of(task, set_of(task))
    assert list(summary) == ["teacher", "scratch", "distilled"]
    for entry in summary.values():
        assert all(np.isfinite(entry[name]).all() for name in own.columns)
        assert f"validation_{own.columns[0]}" in entry and "test_errors" not in entry
    validated = [row for row in rows if row["split"] == "validation"]
    assert validated and all(np.isfinite(row["loss"]) for row in rows)
    assert all({"loss", own.columns[0]} <= {*row} and "nll" not in row for row in validated)
    if own.hides:
        assert not any(own.hides & {*row} for row in rows)
    assert own.columns[0] == "mean_iou" or "accuracy %" not in capsys.readouterr().out
    page = (directory / "report.html").read_text()
    assert f"Task {task}" in page and "test errors" not in page
    network = models.load_network(directory / "student")
    outputs = np.shape(network(IMAGES[:3]))
    expected = {"binary": (3, 1), "pixels": (3, 8, 8, 2)}.get(task, (3, np.shape(LABELS[task])[-1]))
    assert outputs == expected

    # From its checkpoints it comes to the same bytes, wherever the data has moved.
    assert json.loads((directory / "config.json").read_text())["data"]["name"] == task
    (directory / "finished").unlink()
    (directory / "summary.json").unlink()
    newest = max((directory / "checkpoints" / "distilled-0").iterdir(), key=lambda p: p.name)
    shutil.rmtree(newest)
    moved = path.rename(path.with_name("moved.npz"))
    again, _, _ = distilled(moved, task, directory)
    assert again == summary


@pytest.mark.slow
@pytest.mark.parametrize("task", ["single-label", *LABELS])
def test_answers_too_many_to_be_kept_come_to_the_same(task, saved, monkeypatch):
    path = saved(task)
    kept, _, directory = distilled(path, task)
    monkeypatch.setattr(teaching, "MOST_KEPT", 0)
    asked, _, other = distilled(path, task, path.with_name("asked"))
    assert [*asked] == [*kept]
    for phase, entry in kept.items():
        for name, values in entry.items():
            same = (
                asked[phase][name] == values
                if "sha256" in name
                else np.allclose(asked[phase][name], values, atol=1e-5)
            )
            assert same or phase == "distilled", (phase, name)
    pages = ((d / "report.html").read_text() for d in (directory, other))
    assert len({page.count("<figure") for page in pages}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", [compare, generations, data_free])
def test_no_script_needs_answers_that_are_kept(script, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "MOST_KEPT", 0)
    few = {
        compare: ["--methods", "kd", "--num-best", "1", "--scales", "2"],
        generations: ["--generations", "1"],
        data_free: ["--steps", "3", "--batch-size", "16"],
    }[script]
    flags = ["--data.dir", str(saved("single-label")), "--workdir", str(tmp_path / "w"), *few]
    epochs = [] if script is data_free else ["--epochs", "1"]
    script.main([*flags, *epochs, "--teacher.epochs", "1", "--num-seeds", "1", *NARROW])
    assert (tmp_path / "w" / "report.html").exists()


@pytest.mark.slow
def test_embeddings_need_no_labels_where_a_teacher_is_given(saved, tmp_path, capsys):
    path = saved("embeddings")
    distilled(path, "embeddings")
    bare = tmp_path / "bare.npz"
    np.savez(bare, images=IMAGES)
    teacher = path.with_suffix("") / "teacher"
    flags = [*SMALL, "--student.widths", "4", "--task", "embeddings", "--data.dir", str(bare)]
    distill.main([*flags, "--teacher.checkpoint", str(teacher), "--workdir", str(tmp_path / "w")])
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert list(summary) == ["teacher", "distilled"]
    assert summary["teacher"]["cosine"][0] == pytest.approx(1, abs=1e-5)
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["embedding_size"] == 5
    with pytest.raises(SystemExit):
        distill.main([*flags, "--workdir", str(tmp_path / "none")])
    said = capsys.readouterr().err
    assert "without labels needs a teacher that is given" in said and said.count("\n") == 1


ROWS = RNG.normal(size=(60, 3))


@pytest.mark.parametrize(
    ("task", "arrays", "flags", "words"),
    [
        ("regression", {}, ["--method", "dkd"], "--method dkd learns from one class of each image"),
        ("binary", {"labels": np.arange(60) % 3}, [], "needs two classes, and binary has 3"),
        pytest.param(
            *("binary", {"labels": np.arange(60) % 2 + 1}, []),
            "needs labels of 0 and 1, and binary has 1 and 2",
            marks=pytest.mark.filterwarnings("ignore:.*no example of class 0"),
        ),
        ("pixels", {}, ["--student.name", "mlp"], "--student.name mlp answers an image with (2,)"),
        ("pixels", {}, ["--augment", "crop"], "labels of pixels stay where they are"),
        ("pixels", {}, ["--method", "dist"], "--method dist learns from one class"),
        ("pixels", {}, ["--method", "margin-mse"], "is for --task embeddings, --task is"),
        ("multi-label", {}, ["--augment", "mixup"], "--augment mixup mixes classes"),
        ("multi-label", {}, ["--label-smoothing", "0.1"], "--label-smoothing is of classes"),
        ("multi-label", {}, ["--balanced-classes"], "class weights need one class"),
        ("multi-label", {"labels": NUMBERS}, [], "labels have"),
        ("regression", {}, ["--embedding-size", "3"], "--embedding-size is that of embeddings"),
        ("embeddings", {}, ["--embedding-size", "3"], "those of the labels have 5 numbers"),
        ("single-label", {}, ["--student.name", "unet"], "--student.name unet answers an image"),
        ("single-label", {"labels": NUMBERS}, [], "is another --task meant?"),
        ("regression", {"images": ROWS}, ["--student.name", "resnet8"], "rows of 3 numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_task_is_one_line(task, arrays, flags, words, saved, tmp_path, capsys):
    path, directory = saved(task, **arrays), tmp_path / "w"
    with pytest.raises(SystemExit) as stopped:
        distill.main(["--task", task, "--data.dir", str(path), "--workdir", str(directory), *flags])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and words in said, said
    assert not directory.exists()


def test_digits_are_no_numbers(capsys, tmp_path):
    with pytest.raises(SystemExit):
        distill.main(["--task", "regression", "--workdir", str(tmp_path / "w")])
    assert "--task regression needs numbers [images]" in capsys.readouterr().err


@pytest.mark.parametrize("task", LABELS)
def test_methods_that_fit_have_a_loss(task):
    """Whatever is not refused by its needs computes values for the outputs of the task."""
    own, shape = tasks.of(task, set_of(task)), {"binary": (4, 1), "pixels": (4, 8, 8, 3)}
    logits = jnp.ones(shape.get(task, (4, 5)))
    label = {"pixels": (4, 8, 8), "embeddings": (4, 5), "regression": (4, 5)}.get(task, (4, 5))
    dtype = jnp.float32 if task in ("embeddings", "regression") else jnp.int32
    batch = {"label": jnp.ones(label if task != "binary" else 4, dtype)}
    mask = jnp.ones(label if task == "pixels" else 4, bool)
    inputs = TermInputs(batch, Outputs(logits, {}), Outputs(logits + 1, {}), mask)
    none = FeaturePaths()
    setup = methods.Setup(none, none, {}, 60, 100, task=own)
    fitting = [
        name for name, method in methods.METHODS.items()
        if not method.needs & (Need.FEATURES | Need.MAPS) and methods.is_for(name, own)
    ]  # fmt: skip
    assert {"kd", "logit-mse"} <= {*fitting} and not {"dkd", "dist", "deit-hard"} & {*fitting}
    assert ("ttm" in fitting) == ("affinity" in fitting) == (task == "pixels")
    assert ("margin-mse" in fitting) == (task == "embeddings")
    for name in fitting:
        objective = methods.objective_of(name, setup._replace(task=_units(own, task)))

        def loss(inputs, objective=objective):
            return objective.apply(*objective.init(jax.random.key(0), inputs), inputs)[0]

        assert jax.eval_shape(loss, inputs).shape == (), name


def _units(own, task):
    """Return the task of five numbers in the place of that of two."""
    return own if task != "regression" else tasks.of(task, set_of(task, np.tile(NUMBERS, 3)[:, :5]))


def test_regression_is_measured_in_deviations_and_answered_in_its_unit():
    dataset = set_of("regression")
    own = tasks.of("regression", dataset)
    scale = tasks.scale_of("regression", dataset)
    model = models.scaled(models.mlp(2, widths=()), *scale)
    with pytest.raises(ValueError, match="expected std > 0"):
        models.scaled(model, 0.0, 0.0)
    variables = model.init(jax.random.key(0), IMAGES / 255)
    zero = jax.tree.map(jnp.zeros_like, variables)
    logits = model.apply(*zero, IMAGES[:4] / 255, train=False)[0].logits
    labels = dataset.train.label
    np.testing.assert_allclose(logits[0], labels.mean(0), rtol=1e-5)
    std = labels.std(0)
    batch = {"label": labels[:4]}
    student, teacher = labels[:4] + 2 * std, labels[:4] + np.array([1, 3]) * std
    inputs = TermInputs(batch, Outputs(student), Outputs(teacher), np.ones(4, bool))
    hard = own.hard(0.0).apply({}, {}, inputs)[0]
    np.testing.assert_allclose(hard, 4, rtol=1e-3)
    # Of both numbers together it is worse than the teacher in none: 4 < (1 + 9) / 2.
    np.testing.assert_allclose(own.soft(4.0)["soft"][0].apply({}, {}, inputs)[0], 1, rtol=1e-3)


def test_the_closest_of_the_batch_are_recalled():
    x, classes = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0.05]]), np.array([0, 0, 1, 1])
    mask = np.array([True, True, True, False])
    own = tasks.of("embeddings", set_of("embeddings", SEVERAL[:, 0]))
    batch = {"label": classes, "mask": mask}
    recall = own.measures["recall_at_1"]
    # The fourth does not count, so that the third has nothing of its class.
    assert [float(v) for v in recall(batch, Outputs(jnp.float32(x)))] == [2, 3]
    given = {"label": jnp.float32(x[[0, 2, 1, 3]]), "mask": mask}
    assert [float(v) for v in recall(given, Outputs(jnp.float32(x)))] == [1, 3]
    bare = {"label": jnp.zeros((4, 0)), "teacher_logits": jnp.float32(x), "mask": mask}
    assert [float(v) for v in recall(bare, Outputs(jnp.float32(3 * x)))] == [3, 3]


def test_the_loss_of_neighbors_is_that_of_the_share_of_the_own_class():
    x, label = RNG.normal(size=(5, 3)), np.array([0, 0, 1, 0, 2])
    mask = np.array([True, True, True, True, False])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.exp(unit @ unit.T / 0.1) * mask * (1 - np.eye(5))
    same = label[:, None] == label
    expected = -np.log((weights * same).sum(1)[[0, 1, 3]] / weights.sum(1)[[0, 1, 3]])
    hard = tasks.of("embeddings", set_of("embeddings", SEVERAL[:, 0])).hard(0.0)

    def values(x):
        inputs = TermInputs({"label": label}, Outputs(x), None, jnp.asarray(mask))
        return hard.apply({}, {}, inputs)[0]

    found = values(jnp.float32(x))
    np.testing.assert_allclose(found[jnp.array([0, 1, 3])], expected, rtol=1e-4)
    assert found[2] == 0
    assert np.isfinite(jax.grad(lambda x: values(x).sum())(jnp.float32(x))).all()


def test_the_teachers_nearest_is_nearer_by_as_much():
    z, v = RNG.normal(size=(2, 6, 3))
    mask = np.array([True] * 5 + [False])
    inputs = TermInputs({}, Outputs(jnp.float32(z)), Outputs(jnp.float32(v)), jnp.asarray(mask))
    found, _ = tasks.margins().apply({}, {}, inputs)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, v)]
    own, taught = (x @ x.T for x in unit)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        first = max(others, key=lambda j: taught[i, j])
        gaps = [
            (own[i, first] - own[i, j] - taught[i, first] + taught[i, j]) ** 2
            for j in others if j != first
        ]  # fmt: skip
        np.testing.assert_allclose(found[i], np.mean(gaps), rtol=1e-4)


def test_pixels_vary_within_the_classes_that_count():
    z, v = RNG.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    label, mask = RNG.integers(0, 2, (2, 4, 4)), RNG.random((2, 4, 4)) < 0.7
    outputs = [Outputs(jnp.zeros((2, 4, 4, 2)), {"m": jnp.asarray(x)}) for x in (z, v)]

    def values(label):
        inputs = TermInputs({"label": jnp.asarray(label)}, *outputs, jnp.asarray(mask))
        return tasks.within_classes("m", "m").apply({}, {}, inputs)[0]

    def cosines(x):
        own = np.zeros((4, 4))
        for c in (0, 1):
            chosen = (label[0] == c) & mask[0]
            mean = x[0][chosen].mean(0)
            norms = np.linalg.norm(x[0][chosen], axis=1) * np.linalg.norm(mean)
            own[chosen] = x[0][chosen] @ mean / norms
        return own

    expected = np.mean((cosines(z) - cosines(v)) ** 2)
    np.testing.assert_allclose(values(label)[0], expected, rtol=1e-4)
    np.testing.assert_array_equal(values(label), values(np.where(mask, label, 1 - label)))


def test_pixels_without_a_class_are_left_out():
    arrays = tasks.arrays_of(set_of("pixels").test)
    assert arrays["mask"].shape == arrays["label"].shape and not arrays["mask"].all()
    assert (arrays["label"][~arrays["mask"]] == 0).all()
    (batch,) = data.eval_batches(arrays, batch_size=16)
    assert batch["mask"].shape == (16, 8, 8) and not batch["mask"][12:].any()
    np.testing.assert_array_equal(batch["mask"][:12], arrays["mask"])


def test_labels_that_are_not_known_have_no_gradient():
    def loss(x):
        return losses.binary_cross_entropy(x, jnp.array([[1, -1]]), ignore_label=-1).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.array([[0.5, 0.5]]))
    np.testing.assert_allclose(gradient, [[-1 / (1 + np.exp(0.5)), 0]], rtol=1e-6)


def test_sets_with_other_numbers_have_other_fingerprints():
    one, two = (fingerprints.of_data(set_of("regression", NUMBERS + x)) for x in (0, 0.25))
    assert one != two


def test_rows_of_numbers_stand_for_images():
    found = data.from_arrays(ROWS, NUMBERS, labels_fn=data.number_labels)
    assert found.image_shape == (3,) and found.train.image.dtype == np.float32
    rows = np.concatenate([found.train.image, found.validation.image, found.test.image])
    np.testing.assert_array_equal(np.sort(rows, 0), np.sort(np.float32(ROWS), 0))
    model = models.normalized(models.mlp(1, widths=()), found.mean, found.std)
    variables = model.init(jax.random.key(0), found.train.image)
    kernel = variables.params["head"]["kernel"]
    answers = model.apply(*variables, found.train.image, train=False)[0].logits
    scaled = (found.train.image - found.train.image.mean(0)) / found.train.image.std(0)
    np.testing.assert_allclose(answers, scaled @ kernel, atol=1e-4)
    spec = models.NetworkSpec("mlp", (), 1, (3,), tuple(found.mean), tuple(found.std))
    network = models.Network(spec, models.build(spec), variables)
    np.testing.assert_allclose(network(ROWS[0] / 1e3), network((ROWS / 1e3).tolist())[0], atol=1e-6)
    wrongs = (
        (ROWS * np.nan, "not all finite"),
        (ROWS * 1e300, "float32"),
        (ROWS.astype(str), "rows"),
    )
    for wrong, words in wrongs:
        with pytest.raises(ValueError, match=words):
            data.from_arrays(wrong, NUMBERS, labels_fn=data.number_labels)
    with pytest.raises(ValueError, match="neither stream nor"):
        data.from_arrays(ROWS, SEVERAL[:, 0], streaming=True)


@pytest.mark.parametrize(
    ("labels_fn", "labels", "words"),
    [
        (data.several_labels, 2 * SEVERAL, "labels have 2, expected"),
        (data.several_labels, SEVERAL[:, 0], "have shape (60,)"),
        (
            data.several_labels,
            np.where(SEVERAL > 0, 1, -1),
            "labels are -1 and 1, and -1 stands for",
        ),
        (data.number_labels, 0 * NUMBERS + 3, "labels are all 3 in float32"),
        (data.number_labels, NUMBERS[:, 0] + 1e12, "labels are all 1e+12 in float32"),
        (data.pixel_labels, 0 * PIXELS + 255, "of one class at most"),
        (data.pixel_labels, 255 * (PIXELS > 0), "of one class at most"),
        (data.number_labels, NUMBERS * np.inf, "not all finite"),
        (data.number_labels, NUMBERS.astype(str), "expected numbers"),
        (data.pixel_labels, PIXELS[:, :4], "labels are of (4, 8) pixels, and images of (8, 8)"),
        (data.pixel_labels, PIXELS / 2, "labels are float64, expected whole numbers"),
        (data.pixel_labels, SEVERAL, "expected a class for each pixel"),
        (data.embedding_labels, VECTORS[None], "have shape (1, 60, 5)"),
    ],
)
def test_labels_of_another_kind_are_one_line(labels_fn, labels, words):
    with pytest.raises(ValueError) as raised:
        data.from_arrays(IMAGES, labels, labels_fn=labels_fn)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_unet_answers_every_pixel_of_images_of_any_size():
    model = models.unet(3, widths=(2, 4, 4), features=models.unet(3, widths=(2, 4, 4)).paths.all)
    images = jnp.ones((1, 9, 6, 1))
    variables = model.init(jax.random.key(0), images)
    outputs = model.apply(*variables, images, train=False)[0]
    assert outputs.logits.shape == (1, 9, 6, 3)
    sizes = [outputs.features[stage].shape[1:3] for stage in model.paths.stages]
    assert sizes == [(9, 6), (5, 3), (3, 2), (5, 3), (9, 6)]
    for stage, norm in zip(model.paths.stages, model.paths.norms, strict=True):
        assert {"scale", "bias"} == {*variables.params[stage][norm.split("/")[1]]}
        before = outputs.features[f"{stage}/norm_2"]
        np.testing.assert_array_equal(outputs.features[stage], np.maximum(before, 0))
    with pytest.raises(ValueError, match="unet: widths is"):
        models.unet(3, widths=())


def test_mean_iou_of_a_masked_map_is_that_of_what_counts():
    logits = jax.nn.one_hot(np.array([[[0, 1], [1, 1]]]), 2)
    batch = {"label": np.array([[[0, 0], [1, 0]]]), "mask": np.array([[[1, 0], [1, 1]]], bool)}
    own = tasks.of("pixels", set_of("pixels"))
    found = own.measures["mean_iou"](batch, Outputs(logits))
    assert metrics.value(found) == pytest.approx((1 / 2 + 1 / 2) / 2)
