"""Sets that our code has never heard of, prepared here and read from disk by name."""

import io
import json
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sets import draw, encoded, features, prepare, rows

from kdjax.data import LazyImages, eval_batches, load, records, sources, take, train_batches
from kdjax.runs import experiment, flags, settings

SHARED = Path(__file__).parents[2].parent / "shared" / "tfds"
INFO = "dataset_info.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    prepare(root, {"train": rows(20), "test": rows(7, seed=1)})
    return root


def assert_rows(examples, images, classes=3):
    np.testing.assert_array_equal(examples.image, images)
    np.testing.assert_array_equal(examples.label, np.arange(len(images)) % classes)
    assert (examples.image.dtype, examples.label.dtype) == (np.uint8, np.int32)


def test_a_set_as_it_was_written(root):
    toy = load("toy", data_dir=root, validation_fraction=0)
    assert_rows(toy.train, draw(20))
    assert_rows(toy.test, draw(7, seed=1))
    assert len(toy.validation.label) == 0
    assert (toy.image_shape, toy.num_classes, toy.label_names) == ((6, 5, 3), 3, ("0", "1", "2"))
    assert toy.splits == "training and validation from split train, test from split test"


@pytest.mark.parametrize("folder", ["", "toy", "toy/1.0.0"])
@pytest.mark.parametrize("name", ["toy", "toy:1.0.0"])
@pytest.mark.parametrize("relative", [False, True])
def test_the_directory_may_be_the_root_the_set_or_the_version(
    root, folder, name, relative, monkeypatch
):
    monkeypatch.chdir(root / folder)
    found = load(name, data_dir="." if relative else root / folder)
    assert len(found.test.label) == 7


def test_the_directory_of_tfds_is_the_default(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(load("toy").test.label) == 7


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path):
    for version, size in (("9.0.0", 4), ("10.0.0", 5), ("1.0.0", 6)):
        prepare(tmp_path, {"train": rows(9), "test": rows(size)}, version=version)
    for folder in (tmp_path, tmp_path / "toy"):
        assert len(load("toy", data_dir=folder).test.label) == 5
        assert len(load("toy:9.0.0", data_dir=folder).test.label) == 4
    with pytest.raises(FileNotFoundError, match=r"toy:2\.0\.0 is not in"):
        load("toy:2.0.0", data_dir=tmp_path)
    # A version that was named itself is not passed over for another.
    assert len(load("toy", data_dir=tmp_path / "toy" / "1.0.0").test.label) == 6
    with pytest.raises(FileNotFoundError, match=r"toy:9\.0\.0 is not in"):
        load("toy:9.0.0", data_dir=tmp_path / "toy" / "1.0.0")


def test_configurations(tmp_path):
    prepare(tmp_path, {"train": rows(9), "test": rows(4)}, config="small")
    assert len(load("toy", data_dir=tmp_path).test.label) == 4
    prepare(tmp_path, {"train": rows(9), "test": rows(5)}, config="large")
    for folder in ("", "toy", "toy/large", "toy/large/1.0.0"):
        for name in ("toy/large", "toy/large:1.0.0"):
            assert len(load(name, data_dir=tmp_path / folder).test.label) == 5
    with pytest.raises(ValueError, match="name one of toy/large, toy/small"):
        load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("supervised", [None, ("img", "fine_label")])
def test_other_keys(tmp_path, supervised):
    keys = ("img", "fine_label")
    columns = {**features(keys=keys), "id": tfds.features.Text()}
    if supervised:
        columns["coarse_label"] = tfds.features.ClassLabel(num_classes=2)
    examples = [
        {**row, "id": "x", **({"coarse_label": 1} if supervised else {})}
        for row in rows(12, keys=keys)
    ]
    prepare(tmp_path, {"train": examples}, columns=columns, supervised=supervised)
    toy = load("toy", data_dir=tmp_path)
    assert toy.num_classes == 3
    assert len(toy.train.label) + len(toy.validation.label) + len(toy.test.label) == 12


def test_two_labels_need_supervised_keys(tmp_path):
    columns = {**features(), "other": tfds.features.ClassLabel(num_classes=2)}
    examples = [{**row, "other": 0} for row in rows(4)]
    prepare(tmp_path, {"train": examples}, columns=columns, supervised=None)
    message = r"no set of labeled images: .*'label'.* do not choose one of each"
    with pytest.raises(ValueError, match=message):
        load("toy", data_dir=tmp_path)


def test_no_images_at_all(tmp_path):
    columns = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    examples = [{"text": "word", "label": 0}]
    prepare(tmp_path, {"train": examples}, columns=columns, supervised=("text", "label"))
    with pytest.raises(ValueError, match=r"toy is no set of labeled images: its image .* text \(T"):
        load("toy", data_dir=tmp_path)


def test_several_shards(tmp_path):
    folder = prepare(tmp_path, {"train": rows(20), "test": rows(7, seed=1)}, shards=3)
    assert len(list(folder.glob("*train*"))) == 3
    toy = load("toy", data_dir=tmp_path, validation_fraction=0)
    assert_rows(toy.train, draw(20))


def test_without_a_test_split_a_fifth_is_cut_off(tmp_path):
    prepare(tmp_path, {"train": rows(20)})
    toy = load("toy", data_dir=tmp_path, validation_fraction=0.25)
    assert [len(part.label) for part in (toy.train, toy.validation, toy.test)] == [12, 4, 4]
    parts = np.concatenate([toy.train.image, toy.validation.image, toy.test.image])
    assert sorted(x.tobytes() for x in parts) == sorted(x.tobytes() for x in draw(20))
    assert toy.splits.endswith("test from 20% of split train")


def test_a_validation_split_stands_in_for_a_test_split(tmp_path):
    prepare(tmp_path, {"train": rows(20), "validation": rows(6, seed=1)})
    toy = load("toy", data_dir=tmp_path)
    assert_rows(toy.test, draw(6, seed=1))
    assert toy.splits.endswith("test from split validation")


@pytest.mark.parametrize("others", [{}, {"validation": rows(6, seed=1)}])
def test_a_test_split_without_labels_is_passed_over(tmp_path, others):
    unlabelled = [{**row, "label": -1} for row in rows(5)]
    prepare(tmp_path, {"train": rows(20), "test": unlabelled, **others})
    toy = load("toy", data_dir=tmp_path)
    assert len(toy.test.label) == (6 if others else 4)
    assert "test from split test" not in toy.splits


@pytest.mark.parametrize("split", ["test", "full"])
def test_a_single_split_of_any_name_is_trained_on(tmp_path, split):
    prepare(tmp_path, {split: rows(20)})
    assert f"from split {split}, test from 20%" in load("toy", data_dir=tmp_path).splits


def test_no_split_to_train_on(tmp_path):
    prepare(tmp_path, {"test": rows(4), "validation": rows(4)})
    with pytest.raises(ValueError, match="none of which is for training"):
        load("toy", data_dir=tmp_path)


def test_varying_sizes_need_a_size(tmp_path):
    small, large = rows(5, shape=(4, 4, 3)), rows(15, shape=(9, 6, 3))
    prepare(
        tmp_path, {"train": large + small}, columns=features(shape=(None, None, 3), kind="jpeg")
    )
    message = r"toy: images differ in size .*\(9, 6, 3\).*\(4, 4, 3\).*resize them with image_size"
    with pytest.raises(ValueError, match=message):
        load("toy", data_dir=tmp_path)
    toy = load("toy", data_dir=tmp_path, image_size=8)
    assert toy.image_shape == (8, 8, 3)
    assert len(toy.train.image) + len(toy.validation.image) + len(toy.test.image) == 20


@pytest.mark.parametrize("limit", [1, 2**30])
def test_test_images_of_another_size_need_a_size_too(tmp_path, limit):
    splits = {"train": rows(9), "test": rows(3, shape=(4, 4, 3))}
    prepare(tmp_path, splits, columns=features(shape=(None, None, 3)))
    with pytest.raises(ValueError, match="resize them with image_size"):
        load("toy", data_dir=tmp_path, memory_limit=limit)


def test_scripts_name_their_flag_for_the_size(tmp_path, capsys):
    splits = {"train": rows(9), "test": rows(3, shape=(4, 4, 3))}
    prepare(tmp_path, splits, columns=features(shape=(None, None, 3)))
    asked = settings.RunSettings(data=settings.DataSettings(name="toy", dir=tmp_path))
    with pytest.raises(SystemExit, match="2"), flags.plain_errors(resume_with=""):
        experiment.load_dataset(asked)
    assert capsys.readouterr().err.endswith("; resize them with --data.image-size\n")


def test_jpeg_of_unknown_size(tmp_path):
    examples = rows(10, kind="JPEG", shape=(8, 16, 3))
    wanted = [np.asarray(Image.open(row["image"])) for row in examples]
    for row in examples:
        row["image"].seek(0)
    columns = features(shape=(None, None, 3), kind="jpeg")
    prepare(tmp_path, {"train": rows(4, shape=(8, 16, 3)), "test": examples}, columns=columns)
    toy = load("toy", data_dir=tmp_path)
    assert toy.image_shape == (8, 16, 3)
    assert_rows(toy.test, wanted)


def test_grey_and_transparent_files_take_the_channels_of_the_set(tmp_path):
    grey, clear = rows(6, shape=(6, 5, 1)), rows(6, shape=(6, 5, 4))
    prepare(tmp_path, {"train": grey + clear}, columns=features(shape=(None, None, 3)))
    toy = load("toy", data_dir=tmp_path)
    assert toy.image_shape == (6, 5, 3)


@pytest.mark.parametrize(("size", "limit"), [(None, 2**30), (4, 1)])
@pytest.mark.parametrize("declared", [np.uint8, np.uint16])
def test_sixteen_bits_are_scaled(tmp_path, size, limit, declared):
    rng = np.random.default_rng(0)
    wide = [rng.integers(0, 2**16, (4, 4), dtype=np.uint16) for _ in range(6)]

    def png(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        file.seek(0)
        return file

    examples = {
        split: [{"image": png(x), "label": i % 3} for i, x in enumerate(wide)]
        for split in ("train", "test")
    }
    columns = features()
    columns["image"] = tfds.features.Image(shape=(4, 4, 1), dtype=declared, encoding_format="png")
    prepare(tmp_path, examples, columns=columns)
    toy = load("toy", data_dir=tmp_path, image_size=size, memory_limit=limit)
    expected = np.stack([(x >> 8).astype(np.uint8)[..., None] for x in wide])
    np.testing.assert_array_equal(toy.test.image[np.arange(6)], expected)


def test_a_set_of_one_class_is_refused(tmp_path):
    prepare(tmp_path / "a", {"train": rows(8, classes=1)}, columns=features(classes=1))
    with pytest.raises(ValueError, match="toy has 1 class, expected two or more"):
        load("toy", data_dir=tmp_path / "a")
    prepare(tmp_path / "b", {"train": rows(8, classes=1)}, columns=features(classes=3))
    with pytest.raises(ValueError, match="toy: all training examples have label 0"):
        load("toy", data_dir=tmp_path / "b")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_out_of_range_is_named(tmp_path, split):
    examples = {"train": rows(9), "test": rows(6)}
    examples[split][4]["label"] = 4
    folder = prepare(tmp_path, examples, columns=features(classes=5))
    edit(
        folder / "features.json",
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses="3"),
    )
    message = f"toy: example 4 of split {split} has label 4, but there are 3 classes"
    for limit in (1, 2**30):
        with pytest.raises(ValueError, match=message):
            load("toy", data_dir=tmp_path, memory_limit=limit)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_label_is_named(tmp_path, split):
    examples = {"train": rows(9), "test": rows(6)}
    examples[split][2]["label"] = -1
    prepare(tmp_path, examples)
    with pytest.raises(ValueError, match=f"example 2 of split {split} has label -1"):
        load("toy", data_dir=tmp_path)


def test_nothing_but_missing_labels_cannot_be_trained_on(tmp_path):
    prepare(tmp_path, {"train": [{**row, "label": -1} for row in rows(9)]})
    with pytest.raises(ValueError, match="example 0 of split train has label -1"):
        load("toy", data_dir=tmp_path)


def test_tfrecord_files_are_refused_with_the_command(tmp_path):
    folder = prepare(tmp_path, {"train": rows(9)})
    edit(folder / INFO, lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(
        ValueError, match=r"holds tfrecord files.*download_and_prepare\(\)"
    ) as raised:
        load("toy", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("harm", ["info", "features", "shard", "torn"])
def test_damaged_files_are_one_line(tmp_path, harm):
    folder = prepare(tmp_path, {"train": rows(9), "test": rows(5)})
    shard = next(folder.glob("*train*"))
    if harm == "info":
        (folder / INFO).write_text("{")
    elif harm == "features":
        (folder / "features.json").unlink()
    elif harm == "shard":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="toy") as raised:
        load("toy", data_dir=tmp_path)
    assert "\n" not in str(raised.value)


def test_an_unreadable_image_is_one_line(tmp_path):
    examples = rows(9)
    examples[3]["image"] = io.BytesIO(b"\x89PNG\r\n\x1a\n no more than that")
    prepare(tmp_path, {"train": examples})
    with pytest.raises(ValueError, match=r"toy: an image in .*1\.0\.0 cannot be read: "):
        load("toy", data_dir=tmp_path)


def test_a_set_nobody_knows(root):
    with pytest.raises(FileNotFoundError) as raised:
        load("fashion_mnst", data_dir=root)
    message = str(raised.value)
    assert f"fashion_mnst is not in {root} (there: toy)" in message
    assert "did you mean fashion_mnist" in message
    assert "\n" not in message


def test_a_known_set_that_is_not_there_comes_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError) as raised:
        load("fashion_mnist", data_dir=tmp_path / "absent")
    message = str(raised.value)
    assert f"fashion_mnist is not in {tmp_path / 'absent'} (there: nothing)" in message
    assert "pip install 'kdjax[tensorflow]'" in message
    call = f"tfds.builder('fashion_mnist', data_dir='{tmp_path / 'absent'}', "
    assert f"{call}file_format='array_record').download_and_prepare()" in message
    assert "\n" not in message


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_training_and_validation_are_disjoint_and_cover(root, fraction):
    toy = load("toy", data_dir=root, validation_fraction=fraction)
    assert len(toy.validation.label) == round(20 * fraction)
    parts = [{image.tobytes() for image in part.image} for part in (toy.train, toy.validation)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.tobytes() for image in draw(20)}
    again = load("toy", data_dir=root, validation_fraction=fraction)
    np.testing.assert_array_equal(toy.train.image, again.train.image)
    np.testing.assert_array_equal(toy.validation.label, again.validation.label)


@pytest.mark.parametrize("settings", [{"validation_fraction": 1.0}, {"validation_fraction": -0.1}])
def test_a_fraction_outside_its_range_is_refused(root, settings):
    with pytest.raises(ValueError, match=r"validation_fraction is .*, expected \[0, 1\)"):
        load("toy", data_dir=root, **settings)


def test_a_size_of_nothing_is_refused(root):
    with pytest.raises(ValueError, match="image_size is 0, expected 1 or more"):
        load("toy", data_dir=root, image_size=0)


def test_too_few_to_train_on(tmp_path):
    prepare(tmp_path, {"train": rows(1)})
    with pytest.raises(ValueError, match="1 training examples leave none to train on"):
        load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("limit", [1, 2**30])
def test_statistics_are_those_of_the_training_images(root, limit):
    toy = load("toy", data_dir=root, memory_limit=limit)
    pixels = toy.train.image[np.arange(len(toy.train.image))].astype(np.float64) / 255
    np.testing.assert_allclose(toy.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(toy.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert toy.mean.dtype == toy.std.dtype == np.float32


def test_a_channel_that_never_changes_is_not_divided_by_nothing(tmp_path):
    images = draw(9)
    for image in images:
        image[..., 1] = 77
    examples = [{"image": encoded(image), "label": i % 3} for i, image in enumerate(images)]
    prepare(tmp_path, {"train": examples})
    toy = load("toy", data_dir=tmp_path)
    assert toy.std[1] == 1
    assert toy.std[[0, 2]].max() < 0.5


@pytest.fixture(scope="module")
def both(root):
    lazy, memory = (load("toy", data_dir=root, memory_limit=limit) for limit in (1, 2**30))
    assert isinstance(lazy.train.image, LazyImages)
    assert isinstance(memory.train.image, np.ndarray)
    return lazy, memory


def assert_same_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("start", [0, 5])
def test_lazy_images_make_the_same_batches(both, start):
    batches = [
        list(islice(train_batches(x.train._asdict(), seed=1, batch_size=8, start_step=start), 6))
        for x in both
    ]
    assert_same_batches(*batches)
    assert len(batches[0]) == 6


def test_lazy_images_make_the_same_shares(both):
    share = {"seed": 1, "batch_size": 8, "rows": np.arange(4, 8)}
    assert_same_batches(*(list(islice(train_batches(x.train._asdict(), **share), 4)) for x in both))


def test_lazy_images_evaluate_the_same(both):
    for part in ("train", "validation", "test"):
        arrays = [getattr(dataset, part)._asdict() for dataset in both]
        assert_same_batches(*map(partial(eval_batches, batch_size=3), arrays))


def test_taking_leaves_lazy_images_undecoded(both):
    indices = np.array([17, 0, 17])
    lazy, memory = (take(dataset.train, indices) for dataset in both)
    assert isinstance(lazy.image, LazyImages)
    assert lazy.image.shape == memory.image.shape
    np.testing.assert_array_equal(lazy.image[np.arange(3)], memory.image)
    np.testing.assert_array_equal(lazy.label, memory.label)


REAL = {"mnist": ((28, 28, 1), 10, 60_000), "cifar100": ((32, 32, 3), 100, 50_000)}


@pytest.mark.parametrize("name", REAL)
def test_real_sets(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    shape, num_classes, num_train = REAL[name]
    # All of it would take seconds: the pieces of `load`, and a few examples.
    info = sources._find(name, SHARED).info
    assert sources._keys(name, info) == ("image", "label")
    assert sources._choose_splits(name, info, lambda split: True) == ("train", "test")
    assert info.features["label"].num_classes == num_classes
    assert [info.splits[split].num_examples for split in ("train", "test")] == [num_train, 10_000]
    reader = sources._reader(name, sources._find(name, SHARED), None)
    found = records.Records(reader, "train", np.arange(num_train))
    images = LazyImages(found, shape)[np.arange(5)]
    assert images.shape == (5, *shape)
    assert images.std() > 20
