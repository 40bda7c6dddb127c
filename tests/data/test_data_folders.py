"""Folders of images as people have them: read right, or refused in one line that says why."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from kdjax import data
from kdjax.data import folders, images
from kdjax.runs import experiment, fingerprints, flags, settings, teaching

SIZE = (12, 10)


def draw(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path, image=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = draw(hash(path.name) % 2**32) if image is None else image
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **how)


def fill(root, classes=("cat", "dog"), count=10, seed=0):
    for number, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", draw([seed, number, i]))
    return root


def asked(path, capsys, **own):
    """Return what the command line says of a folder: its lines, and those on the error stream."""
    given = settings.RunSettings(data=settings.DataSettings(dir=path, **own))
    try:
        with flags.plain_errors(given, resume_with=""):
            experiment.load_dataset(given)
    except SystemExit as error:
        assert error.code == 2
    said = capsys.readouterr()
    return said.out.splitlines(), said.err.splitlines()


def test_class_folders_are_split_in_proportion_and_it_is_said(tmp_path, capsys):
    fill(tmp_path / "photos", ("ant", "猫", "bee"), 20)
    (tmp_path / "photos" / "ant" / ".DS_Store").write_text("x")
    (tmp_path / "photos" / "ant" / "Thumbs.db").write_text("x")
    (tmp_path / "photos" / ".cache").mkdir()
    (tmp_path / "photos" / "LICENSE.txt").write_text("x")
    found = data.from_folder(tmp_path / "photos")
    assert (found.name, found.label_names, found.num_classes) == ("photos", ("ant", "bee", "猫"), 3)
    assert found.image_shape == (*SIZE, 3)
    counts = [np.bincount(part.label).tolist() for part in (found.test, found.validation)]
    assert counts[0] == [4, 4, 4] and sorted(counts[1]) == [1, 2, 2]
    again, other = (data.from_folder(tmp_path / "photos", split_seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.test.image, found.test.image)
    assert not np.array_equal(other.test.image, found.test.image)
    whole = np.concatenate([x.image for x in (found.train, found.validation, found.test)])
    drawn = [draw([0, c, i]) for c in range(3) for i in range(20)]
    assert sorted(x.tobytes() for x in whole) == sorted(x.tobytes() for x in drawn)
    (line,), errors = asked(tmp_path / "photos", capsys)
    assert "60 images in 3 class folders (ant, bee, 猫); training from all images" in line
    assert "test from 20% of all images, every class in proportion, seed 0" in line and not errors


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing")])
def test_splits_that_are_there_are_taken(tmp_path, names):
    for seed, (name, count) in enumerate(zip(names, (9, 3, 4), strict=True)):
        fill(tmp_path / name, count=count, seed=seed)
    found = data.from_folder(tmp_path)
    assert [len(part.label) for part in (found.train, found.validation, found.test)] == [18, 6, 8]
    assert found.splits == "training from {}, validation from {}, test from {}".format(*names)
    shutil.rmtree(tmp_path / names[2])
    found = data.from_folder(tmp_path)
    assert [len(part.label) for part in (found.train, found.validation, found.test)] == [16, 2, 6]
    assert f"test from {names[1]}" in found.splits


@pytest.mark.parametrize("names", [(".",), ("train", "test")])
def test_embeddings_need_no_class_folders(names, tmp_path, capsys):
    for seed, name in enumerate(names):
        fill(tmp_path / "bare", (name,), 10, seed)
    for streaming in (False, True):
        found = data.from_folder(
            tmp_path / "bare", labels_fn=data.embedding_labels, streaming=streaming
        )
        assert np.asarray(found.train.label).shape == (len(found.train.image), 0)
        assert found.label_names == () and "images without classes" in found.found
        assert len(found.test.label) == (2 if names == (".",) else 10)
    with pytest.raises(ValueError, match="folder of images for each class"):
        data.from_folder(tmp_path / "bare")
    with_classes = data.from_folder(fill(tmp_path / "named"), labels_fn=data.embedding_labels)
    assert with_classes.label_names == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, ("car", "train"))
    assert data.from_folder(tmp_path).label_names == ("car", "train")


def test_every_kind_of_file_shows_what_a_viewer_shows(tmp_path):
    plain = np.full((*SIZE, 3), (200, 120, 40), np.uint8)
    clear = np.dstack([plain, np.zeros(SIZE, np.uint8)])
    wide = np.full(SIZE, 200 * 257, np.uint16)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    top = plain.copy()
    top[:2] = 0
    palette = Image.fromarray(plain).quantize(4)
    frames = [Image.fromarray(np.full(SIZE, value, np.uint8)) for value in (200, 10)]
    files = {
        "a.PNG": (plain, {}, plain[0, 0]),
        "b.jpg": (plain, {"quality": 95}, plain[0, 0]),
        "c.webp": (plain, {"lossless": True}, plain[0, 0]),
        "d.bmp": (plain, {}, plain[0, 0]),
        "e.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}, [200] * 3),
        "f.png": (clear, {}, [255] * 3),
        "g.png": (wide, {}, [200] * 3),
        "h.jpg": (Image.fromarray(plain).convert("CMYK"), {"quality": 95}, plain[0, 0]),
        "i.png": (palette, {}, plain[0, 0]),
        "j.jpeg": (Image.fromarray(plain[..., 0]), {}, [200] * 3),
        "k.jpg": (plain, {"format": "PNG"}, plain[0, 0]),
        "l.png": (top.transpose(1, 0, 2), {"exif": orientation}, None),
    }
    for name, (image, how, _) in files.items():
        save(tmp_path / name, image, **how)
    files_of = folders.Files([str(tmp_path / name) for name in files], np.zeros(12, int))
    view = images.View(3, SIZE, data.stretch, True)
    for row, (name, (_, _, pixel)) in zip(files_of, files.items(), strict=True):
        seen = images.decode(row["image"], view, (0,)).astype(int)
        if pixel is not None:
            np.testing.assert_allclose(
                seen, np.broadcast_to(pixel, seen.shape), atol=6, err_msg=name
            )
    # Turned by a quarter, the dark edge on the left comes to the top.
    np.testing.assert_array_equal(seen, top)


def test_sizes_that_vary_are_one_in_the_end_and_it_is_said(tmp_path, capsys):
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", draw(i, (90 + i, 70)))
    found = data.from_folder(tmp_path)
    assert found.image_shape == (32, 32, 3) and "resized to 32 x 32" in found.found
    (line,), _ = asked(tmp_path, capsys, image_size=16, resize="crop")
    assert "resized to 16 x 16 (--data.image-size chooses another size)" in line
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", draw(i, (9, 8 + i)))
    assert data.from_folder(tmp_path).image_shape == (9, 9, 3)
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", draw(i, (9, 8))[..., 0])
    assert data.from_folder(tmp_path).image_shape == (9, 8, 1)


def test_what_streams_is_the_same_and_is_not_decoded_before(tmp_path, monkeypatch):
    held = data.from_folder(fill(tmp_path / "a"), validation_fraction=0.2)
    monkeypatch.setattr(folders, "_MOST_FILES", 5)
    streamed = data.from_folder(tmp_path / "a", validation_fraction=0.2)
    assert isinstance(streamed.train.image, data.LazyImages)
    for part in ("train", "validation", "test"):
        lazy, memory = getattr(streamed, part), getattr(held, part)
        np.testing.assert_array_equal(lazy.image[np.arange(len(lazy.label))], memory.image)
        np.testing.assert_array_equal(lazy.label, memory.label)
    again = fingerprints.of_data(streamed)
    assert again == fingerprints.of_data(data.from_folder(tmp_path / "a", validation_fraction=0.2))


def broken(root):
    """Return how folders are broken, and what the line about it names."""
    half = io.BytesIO()
    Image.fromarray(draw(3, (40, 40))).save(half, "JPEG")

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return {
        "nowhere": (lambda p: None, "there is nothing at"),
        "empty": (lambda p: p.mkdir(), "has no class folders"),
        "empty class": (lambda p: (fill(p) / "fox").mkdir(), "fox holds no images"),
        "one class": (lambda p: fill(p, ("cat",)), "has one class, cat"),
        "folder too high": (lambda p: fill(p / "in"), "in meant?"),
        "no classes": (lambda p: save(p / "1.png"), "1.png is in no class folder"),
        "text": (lambda p: write(fill(p) / "cat" / "notes.txt", b"x"), "notes.txt is no image"),
        "lie": (lambda p: write(fill(p) / "cat" / "x.png", b"text"), "x.png cannot be read"),
        "torn": (
            lambda p: write(fill(p) / "cat" / "x.jpg", half.getvalue()[:700]),
            "x.jpg cannot be read",
        ),
        "dead link": (lambda p: (fill(p) / "cat" / "x.png").symlink_to(p / "no"), "x.png: No such"),
        "small": (lambda p: save(fill(p) / "cat" / "x.png", draw(0, (1, 1))), "1 x 1 pixels"),
        "no train": (lambda p: (fill(p / "test"), fill(p / "val")), "none is a folder train"),
        "new class": (
            lambda p: (fill(p / "train"), fill(p / "test", ("cat", "fox"), seed=1)),
            "no training example is of class fox",
        ),
        "file": (lambda p: write(p, b"x"), "is a file, expected a folder"),
    }


@pytest.mark.parametrize("how", [*broken(None)])
def test_what_cannot_be_learned_from_is_one_line(how, tmp_path, capsys):
    make, words = broken(tmp_path)[how]
    make(tmp_path / "set")
    _, errors = asked(tmp_path / "set", capsys)
    assert len(errors) == 1 and errors[0].startswith(f"error: --data.dir {tmp_path / 'set'}: ")
    assert words in errors[0]


def test_a_folder_without_permission_is_one_line(tmp_path, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    fill(tmp_path)
    monkeypatch.setattr(folders.os, "scandir", refuse)
    _, (error,) = asked(tmp_path, capsys)
    assert error == f"error: --data.dir {tmp_path}: {tmp_path}: Permission denied"


def test_test_images_that_are_training_images_are_counted(tmp_path, capsys):
    fill(tmp_path / "train")
    fill(tmp_path / "test", seed=1)
    for name in ("cat/1.png", "dog/2.png"):
        shutil.copy(tmp_path / "train" / name, tmp_path / "test" / name)
    with pytest.warns(UserWarning, match="2 of 20 test images are training images too"):
        _, errors = asked(tmp_path, capsys)
    assert not errors


def test_a_changed_folder_has_another_fingerprint_and_a_moved_one_has_not(tmp_path):
    first = fingerprints.of_data(data.from_folder(fill(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprints.of_data(data.from_folder(tmp_path / "b")) == first
    image = np.asarray(Image.open(tmp_path / "b" / "cat" / "4.png")).copy()
    image[3, 3, 0] ^= 1
    save(tmp_path / "b" / "cat" / "4.png", image)
    assert fingerprints.of_data(data.from_folder(tmp_path / "b")) != first
    more = data.with_unlabelled(data.from_folder(tmp_path / "a"), tmp_path / "b")
    assert fingerprints.of_data(more) != first


@pytest.mark.parametrize("streaming", [(False, False), (True, True), (False, True)])
def test_images_without_labels_stand_behind_the_others(tmp_path, streaming):
    dataset = data.from_folder(fill(tmp_path / "a"), streaming=streaming[0])
    save(tmp_path / "more" / "x.png", draw(8, (30, 30)))
    save(tmp_path / "more" / "deep" / "y.png", draw(9))
    more = data.with_unlabelled(dataset, tmp_path / "more", streaming=streaming[1])
    joined = data.with_all(more.train, more.unlabelled)
    assert len(joined.label) == len(dataset.train.label) + 2
    np.testing.assert_array_equal(np.asarray(joined.label)[-2:], -1)
    assert data.is_lazy(joined._asdict()) == any(streaming)
    batch = data.train_batch(joined._asdict(), 0, seed=0, batch_size=16, rows=np.arange(16))
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        place = int(index) - len(dataset.train.label)
        own = dataset.train.image[np.array([index])][0] if place < 0 else None
        if place < 0:
            np.testing.assert_array_equal(image, own)
            assert label == dataset.train.label[index]
        else:
            assert label == -1
    if place == 0:
        np.testing.assert_array_equal(image, draw(9))


def test_an_embedded_name_for_a_folder_changes_nothing(tmp_path):
    dataset = data.from_folder(fill(tmp_path / "digits", count=80), validation_fraction=0)
    asked = settings.DataSettings(dir=tmp_path / "digits")
    resolved = teaching.balanced_subset(dataset.train.label, 10)
    assert (asked.title, len(resolved)) == ("digits", 10)
