"""Arrays, files of arrays and other sources become the same set, or one line says why not."""

import re

import numpy as np
import pytest
from PIL import Image
from sets import encoded, features, prepare, rows

from kdjax import data
from kdjax.runs import experiment, fingerprints, flags, settings

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 8, 6, 3), np.uint8)
LABELS = np.arange(30) % 3
NAMES = np.array(["ant", "bee", "cat"])


def everything(dataset):
    parts = dataset.train, dataset.validation, dataset.test
    pairs = [(x.tobytes(), int(y)) for part in parts for x, y in zip(*part, strict=True)]
    return sorted(pairs)


WHOLE = sorted((x.tobytes(), int(y)) for x, y in zip(PIXELS, LABELS, strict=True))


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS.astype(np.int64),
        (PIXELS / 255).astype(np.float64),
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(np.uint16) * 256 + 77,
        np.moveaxis(PIXELS, -1, 1),
        [*PIXELS],
    ],
    ids=["uint8", "int64", "float64", "float32", "uint16", "channels first", "list"],
)
def test_images_of_any_type_are_the_same_set(images):
    found = data.from_arrays(images, LABELS)
    assert everything(found) == WHOLE
    assert (found.image_shape, found.label_names) == ((8, 6, 3), ("0", "1", "2"))
    assert (len(found.test.label), len(found.validation.label)) == (6, 2)
    np.testing.assert_allclose(found.mean, found.train.image.mean((0, 1, 2)) / 255, rtol=1e-5)
    assert "test from 20% of train, every class in proportion, seed 0" in found.splits


@pytest.mark.parametrize(
    "labels", [NAMES[LABELS], [*NAMES[LABELS]], NAMES[LABELS].astype("S"), NAMES[LABELS][:, None]]
)
def test_labels_may_be_names(labels):
    found = data.from_arrays(PIXELS, labels)
    assert (everything(found), found.label_names) == (WHOLE, ("ant", "bee", "cat"))


def test_splits_and_names_that_are_given_are_kept():
    other = 255 - PIXELS[:6]
    found = data.from_arrays(
        *(PIXELS, LABELS),
        validation=(other[:3], LABELS[:3]),
        test=(other, LABELS[:6]),
        label_names=NAMES,
    )
    np.testing.assert_array_equal(found.train.image, PIXELS)
    np.testing.assert_array_equal(found.test.image, other)
    assert len(found.validation.label) == 3 and found.label_names == ("ant", "bee", "cat")
    assert found.splits == "training from train, validation from validation, test from test"
    gray = data.from_arrays(PIXELS[..., 0], LABELS, image_size=4)
    assert gray.image_shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (PIXELS, LABELS[:9], "30 images, but 9 labels"),
        (PIXELS[:, 0, 0, 0], LABELS, "shape (30,): expected [examples, height, width"),
        (PIXELS[..., :2], LABELS, "with 1, 3 or 4 channels"),
        (PIXELS * 1.0, LABELS, "pixels are float64 from 0 to 255, expected uint8"),
        (PIXELS / 255 - 0.5, LABELS, "pixels are float64 from -0.5 to 0.5"),
        (PIXELS * np.nan, LABELS, "pixels are float64 from nan"),
        (PIXELS.astype(np.uint16), LABELS, "uint16 with nothing above 255"),
        (PIXELS, np.eye(3)[LABELS], "labels have shape (30, 3), expected [examples]"),
        (PIXELS, LABELS / 2, "labels are float64, expected whole numbers or names"),
        (PIXELS, LABELS * 1.0, "give labels.astype(int)"),
        (PIXELS, LABELS * 1000, "labels go up to 2000 in 30 examples"),
        (PIXELS, LABELS - 1, "example 0 of split train has label -1"),
        (PIXELS, LABELS * 0, "1 class, expected two or more"),
        (None, LABELS, "images of shape ()"),
    ],
)
def test_what_is_no_set_is_one_line(images, labels, words):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        data.from_arrays(images, labels)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS / 25_500, "float64 up to 0.01, which is 3 of 255: nearly black"),
        (PIXELS.astype(np.uint16) * 16, "uint16 up to 4080, which is 15 of 255: nearly black"),
    ],
)
def test_images_that_become_nearly_black_are_told(images, words):
    with pytest.warns(UserWarning, match=words):
        data.from_arrays(images, LABELS)


def test_an_empty_class_before_the_others_is_told():
    with pytest.warns(UserWarning, match="labels are from 1 to 3, and there is no example of clas"):
        found = data.from_arrays(PIXELS, LABELS + 1)
    assert found.num_classes == 4


def test_a_class_that_tests_alone_have_is_named():
    with pytest.raises(ValueError, match="no training example is of class dog, which test"):
        data.from_arrays(PIXELS, NAMES[LABELS], test=(255 - PIXELS[:2], ["ant", "dog"]))


@pytest.mark.parametrize("keys", ["images labels", "x_train y_train", "train_images train_labels"])
def test_files_of_arrays(tmp_path, keys):
    images, labels = keys.split()
    np.savez(tmp_path / "set.npz", **{images: PIXELS, labels: LABELS, "label_names": NAMES})
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / f"{images}.npy", PIXELS)
    np.save(tmp_path / "set" / f"{labels}.npy", NAMES[LABELS])
    for path in (tmp_path / "set.npz", tmp_path / "set"):
        found = data.from_folder(path)
        assert (everything(found), found.name) == (WHOLE, "set")
        assert found.label_names == ("ant", "bee", "cat")
    streamed = data.from_folder(tmp_path / "set", streaming=True)
    assert isinstance(streamed.train.image, data.LazyImages)
    place = np.arange(len(streamed.train.label))
    np.testing.assert_array_equal(streamed.train.image[place], found.train.image)
    assert fingerprints.of_data(found) != fingerprints.of_data(
        found._replace(test=found.test._replace(image=found.test.image ^ 1))
    )


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["x_test", "ytest"], "holds x_test, and no labels of test beside it; ytest is of no know"),
        (["y_test"], "holds y_test, and no images of test beside it"),
        (["label"], "holds y and label, both labels of train: leave one out"),
        (["val_x", "images"], "holds x and images, both images of train: leave one out"),
    ],
)
def test_no_array_of_a_file_is_left_out_without_a_word(tmp_path, others, words):
    np.savez(tmp_path / "a.npz", x=PIXELS, y=LABELS, **dict.fromkeys(others, PIXELS))
    with pytest.raises(ValueError, match=words):
        data.from_folder(tmp_path / "a.npz")


def test_files_that_hold_no_set_are_one_line(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", features=PIXELS, ids=LABELS)
    np.savez(tmp_path / "b.npz", images=PIXELS, labels=np.array(["a", 1], object))
    (tmp_path / "c.npz").write_bytes(b"no archive")
    words = "holds arrays features, ids; expected images", "Object arrays", "cannot be read"
    for name, said in zip("abc", words, strict=True):
        path = tmp_path / f"{name}.npz"
        given = settings.RunSettings(data=settings.DataSettings(dir=path))
        with pytest.raises(SystemExit, match="2"), flags.plain_errors(given, resume_with=""):
            experiment.load_dataset(given)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --data.dir {path}: ") and said in line


class Columns:
    """What a set of Hugging Face offers, as far as it is asked."""

    def __init__(self, images, labels):
        kind = type("Image", (), {"decode": True, "__init__": lambda self, decode=True: None})
        label = type("ClassLabel", (), {"names": [*NAMES]})
        self.features = {"picture": kind(), "kind": label()}
        self.images, self.labels, self.decoded = images, labels, True

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        if key == "kind":
            return self.labels.tolist()
        content = encoded(self.images[key]).getvalue()
        image = Image.fromarray(self.images[key]) if self.decoded else {"bytes": content}
        return {"picture": image, "kind": int(self.labels[key])}

    def cast_column(self, name, feature):
        other = Columns(self.images, self.labels)
        other.decoded = False
        return other


@pytest.mark.parametrize(
    "source",
    [
        [(x, y) for x, y in zip(PIXELS, LABELS, strict=True)],
        [(np.moveaxis(x / 255, -1, 0), y) for x, y in zip(PIXELS, LABELS, strict=True)],
        [{"label": y, "img": Image.fromarray(x)} for x, y in zip(PIXELS, LABELS, strict=True)],
        [{"x": encoded(x).getvalue(), "y": NAMES[y]} for x, y in zip(PIXELS, LABELS, strict=True)],
        Columns(PIXELS, LABELS),
        {"train": Columns(PIXELS, LABELS), "unsupervised": []},
    ],
    ids=["tuples", "torch", "pillow", "bytes", "columns", "splits"],
)
def test_any_source_with_a_length_and_an_index(source):
    found = data.from_source(source)
    assert everything(found) == WHOLE
    assert found.label_names in (("0", "1", "2"), ("ant", "bee", "cat"))
    streamed = data.from_source(source, streaming=True)
    batches = [
        next(data.train_batches(x.train._asdict(), seed=0, batch_size=8)) for x in (found, streamed)
    ]
    for name in ("image", "label"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_sources_that_are_none_are_one_line():
    for source, words in (
        (iter([]), "train is a list_iterator, expected a length and an index"),
        ([], "there are no training examples"),
        ([1, 2], "an example is a int, expected a mapping"),
        ([{"a": 1, "b": 2}], "an example has a, b; say which is the image with image_key"),
        ([(PIXELS[0], 0.5)], "labels are float64"),
        ([(PIXELS[0] - 300.0, 0), (PIXELS[1], 1)], "pixels are float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            data.from_source(source)


def test_sets_of_tfds_whose_labels_are_text_or_numbers(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
    for name, kind in kinds.items():
        named = [{**row, "label": str(NAMES[row["label"]])} for row in rows(12)]
        columns = {**features(), "label": kind}
        examples = {"train": named if name == "text" else rows(12), "test": rows(3)}
        if name == "text":
            examples["test"] = [{**row, "label": "bee"} for row in rows(3, seed=1)]
        prepare(tmp_path, examples, columns=columns, name=name.title())
        found = data.load(name, data_dir=tmp_path, validation_fraction=0)
        np.testing.assert_array_equal(found.train.label, np.arange(12) % 3)
        assert found.label_names == (("ant", "bee", "cat") if name == "text" else ("0", "1", "2"))


def test_a_data_set_that_was_saved_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [Image.fromarray(x) for x in PIXELS], "label": NAMES[LABELS].tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    assert everything(data.from_folder(tmp_path / "saved")) == WHOLE


def test_some_classes_alone_are_numbered_as_they_are_named():
    whole = data.load("digits", validation_fraction=0.2)
    some = data.only_classes(whole, ["7", "1", "4"])
    assert (some.num_classes, some.label_names) == (3, ("7", "1", "4"))
    for split in ("train", "validation", "test"):
        own, all_ = getattr(some, split), getattr(whole, split)
        rows = np.flatnonzero(np.isin(all_.label, [7, 1, 4]))
        np.testing.assert_array_equal(own.image, all_.image[rows])
        np.testing.assert_array_equal(np.array([7, 1, 4])[own.label], all_.label[rows])
    np.testing.assert_allclose(some.mean, some.train.image.mean() / 255, rtol=1e-5)
    assert not np.allclose(some.mean, whole.mean, rtol=1e-3)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1", "seven"], "there is no class 'seven'; there are 0, 1"),
        (["1"], "expected two classes or more, each once, got 1"),
        (["1", "2", "1"], "each once, got 1, 2, 1"),
        ([], "got none"),
    ],
)
def test_classes_that_are_not_there_are_named(names, words):
    with pytest.raises(ValueError, match=f"only_classes: .*{words}"):
        data.only_classes(data.load("digits"), names)


def test_classes_of_several_labels_are_refused():
    labels = np.zeros((8, 3), np.int32)
    images = np.random.default_rng(0).integers(0, 255, (8, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="only_classes: expected a class for each example"):
        own = data.from_arrays(images, labels, labels_fn=data.several_labels)
        data.only_classes(own, own.label_names[:2])
