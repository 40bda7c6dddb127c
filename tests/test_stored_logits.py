"""What a teacher said of the images, in a file, teaches as the teacher does."""

import json

import numpy as np
import pytest

from kdjax import data, models
from kdjax.runs import distill

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 4, 4, 1), np.uint8)
LABELS = np.arange(60) % 3
SPLITS = ("train", "validation", "test")
FLAGS = [
    *("--epochs", "3", "--num-seeds", "1", "--batch-size", "16", "--teacher.widths", "8"),
    *("--student.widths", "4", "--data.student-examples", "30"),
]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    return path


def distilled(path, directory, *flags):
    given = ["--data.dir", str(path), "--workdir", str(directory)]
    distill.main([*FLAGS, *given, *map(str, flags)])
    return json.loads((directory / "summary.json").read_text())


def answers(dataset, answer_fn):
    return {split: answer_fn(getattr(dataset, split).image) for split in SPLITS}


def test_what_a_teacher_said_teaches_as_it_does(saved, tmp_path, capsys):
    there = distilled(saved, tmp_path / "there")
    teacher = models.load_network(tmp_path / "there" / "teacher")
    np.savez(tmp_path / "said.npz", **answers(data.from_folder(saved), teacher))
    away = distilled(saved, tmp_path / "away", "--stored-logits", tmp_path / "said.npz")
    assert away["teacher"]["num_params"] == 0 and not (tmp_path / "away" / "teacher").exists()
    for phase in there:
        for name in ("accuracy", "nll", "agreement"):
            assert away[phase][name] == pytest.approx(there[phase][name], rel=1e-4), phase
    assert there["scratch"]["params_sha256"] == away["scratch"]["params_sha256"]
    assert "what it said is read from" in capsys.readouterr().out
    assert "The teacher was given" in (tmp_path / "away" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({"test": np.zeros((5, 3))}, [], "test is float64 of shape (5, 3), expected floats of"),
        ({"train": np.full((43, 3), np.nan)}, [], "none of them nan"),
        ({}, ["--method", "rkd"], "--method rkd looks into the teacher"),
        ({}, ["--augment", "crop"], "--augment crop makes others of them"),
        ({}, ["--teacher.checkpoint", "x"], "--teacher.checkpoint or .module is another teacher"),
        ({"train": None}, [], "said.npz holds validation, test, expected arrays train,"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(change, flags, words, saved, tmp_path, capsys):
    said = {**answers(data.from_folder(saved), lambda x: np.zeros((len(x), 3))), **change}
    path = tmp_path / "said.npz"
    np.savez(path, **{name: x for name, x in said.items() if x is not None})
    with pytest.raises(SystemExit) as stopped:
        distilled(saved, tmp_path / "w", "--stored-logits", path, *flags)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and words in error, error
    assert not (tmp_path / "w").exists()


def test_what_is_no_file_of_arrays_is_one_line(saved, tmp_path, capsys):
    path = tmp_path / "said.npz"
    path.write_text("x")
    for wrong, words in ((path, "is no .npz file"), (tmp_path / "gone.npz", "No such file")):
        with pytest.raises(SystemExit):
            distilled(saved, tmp_path / "w", "--stored-logits", wrong)
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error and str(wrong) in error
