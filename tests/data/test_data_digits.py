"""The embedded set: scikit-learn's digits in memory, without TensorFlow, a home or a folder."""

import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kdjax.data import load, train_batches


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_what_is_in_it():
    digits = load("digits", validation_fraction=0)
    assert (len(digits.train.label), len(digits.test.label)) == (1347, 450)
    assert (digits.image_shape, digits.num_classes) == ((8, 8, 1), 10)
    assert digits.label_names == tuple("0123456789")
    assert digits.train.image.dtype == np.uint8
    assert (digits.train.image.min(), digits.train.image.max()) == (0, 255)


def test_every_example_of_scikit_learn_is_there_once(digits):
    ours = [
        (image.tobytes(), label)
        for part in (digits.train, digits.validation, digits.test)
        for image, label in zip(part.image, part.label.tolist(), strict=True)
    ]
    source = load_digits()
    scaled = np.round(source.images / 16 * 255).astype(np.uint8)
    theirs = zip((image.tobytes() for image in scaled), source.target.tolist(), strict=True)
    assert sorted(ours) == sorted(theirs)


def test_the_order_is_that_of_all_runs_so_far(digits):
    chosen = np.random.default_rng(0).permutation(1797)[-450:]
    np.testing.assert_array_equal(digits.test.label, load_digits().target[chosen])


def test_all_parts_have_every_class(digits):
    for part in (digits.train, digits.validation, digits.test):
        assert np.bincount(part.label, minlength=10).min() > 0.05 * len(part.label)


def test_it_is_resized_and_streams_as_others_are(digits):
    assert load("digits", image_size=16).train.image.shape == (1212, 16, 16, 1)
    streamed = load("digits", streaming=True)
    for workers in (0, 1):
        batches = [
            list(islice(train_batches(x.train._asdict(), seed=0, batch_size=8, workers=workers), 2))
            for x in (digits, streamed)
        ]
        for ours, theirs in zip(*batches, strict=True):
            np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_no_home_no_folder_and_no_tensorflow_is_needed(tmp_path):
    (tmp_path / "file").write_text("")
    code = (
        "import sys; from kdjax.data import load\n"
        "print(len(load('digits', data_dir=sys.argv[1]).test.label), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "new")]
    env = {"HOME": str(tmp_path / "file"), "PATH": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("450 False\n", 0), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
