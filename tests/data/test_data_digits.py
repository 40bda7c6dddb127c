"""The embedded set: scikit-learn's digits as a prepared TFDS set, made without TensorFlow."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kdjax.data import load
from kdjax.data.digits import prepare

INFO = "dataset_info.json"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    prepare(root)
    return root


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_what_is_in_it(prepared):
    digits = load("digits", data_dir=prepared, validation_fraction=0)
    assert (len(digits.train.label), len(digits.test.label)) == (1347, 450)
    assert (digits.image_shape, digits.num_classes) == ((8, 8, 1), 10)
    assert digits.label_names == tuple("0123456789")
    assert digits.train.image.dtype == np.uint8
    assert (digits.train.image.min(), digits.train.image.max()) == (0, 255)


def test_every_example_of_scikit_learn_is_there_once(prepared):
    digits = load("digits", data_dir=prepared)
    ours = [
        (image.tobytes(), label)
        for part in (digits.train, digits.validation, digits.test)
        for image, label in zip(part.image, part.label.tolist(), strict=True)
    ]
    source = load_digits()
    scaled = np.round(source.images / 16 * 255).astype(np.uint8)
    theirs = zip((image.tobytes() for image in scaled), source.target.tolist(), strict=True)
    assert sorted(ours) == sorted(theirs)


def test_both_parts_have_every_class(prepared):
    digits = load("digits", data_dir=prepared)
    for part in (digits.train, digits.validation, digits.test):
        assert np.bincount(part.label, minlength=10).min() > 0.05 * len(part.label)


def test_loading_prepares_it_quietly(tmp_path, capfd):
    load("digits", data_dir=tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "digits" / "1.0.0" / INFO).exists()
    assert capfd.readouterr() == ("", "")


def test_two_processes_prepare_it_at_once_without_tensorflow(tmp_path):
    code = (
        "import sys; from kdjax.data import load\n"
        "print(len(load('digits', data_dir=sys.argv[1]).test.label), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    # Two at once: each must end up with the whole set.
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["450 False\n"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_preparing_again_does_nothing(prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert prepare(prepared) == prepared / "digits" / "1.0.0"
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_it_is_the_same_every_time(prepared, tmp_path):
    prepare(tmp_path)
    again = contents(tmp_path)
    assert again.keys() == contents(prepared).keys()
    for path, content in contents(prepared).items():
        assert path.name == INFO or again[path] == content


@pytest.mark.parametrize("missing", [INFO, "*"])
def test_half_a_set_in_the_way_is_replaced(prepared, tmp_path, missing):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "digits" / "1.0.0").glob(missing):
        path.unlink()
    assert len(load("digits", data_dir=tmp_path).test.label) == 450
    assert contents(tmp_path).keys() == contents(prepared).keys()


def test_a_faster_process_wins(prepared, tmp_path, monkeypatch):
    """The set appears while ours is being made: theirs stays."""
    from kdjax.data.digits import Digits

    make = Digits.download_and_prepare

    def overtaken(self):
        make(self)
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)

    monkeypatch.setattr(Digits, "download_and_prepare", overtaken)
    target = prepare(tmp_path)
    assert contents(target) == contents(prepared / "digits" / "1.0.0")
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_file_in_the_way_is_an_os_error(tmp_path):
    (tmp_path / "digits").write_text("")
    with pytest.raises(OSError, match="digits"):
        load("digits", data_dir=tmp_path)
