"""Several teachers, and a teacher that sees more than its student."""

import json

import jax
import numpy as np
import pytest
import scripts

from experiments import survey
from kdjax import data, models, runs


def test_projections_are_means_of_rows_and_columns():
    images = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3, 1)
    expected = np.array([[1, 4, 1.5, 2.5, 3.5], [7, 10, 7.5, 8.5, 9.5]]) / 255
    np.testing.assert_allclose(survey.projections(images), expected, rtol=1e-6)


def test_what_networks_say_in_the_mean_is_stored_for_every_split(tmp_path):
    spec = models.NetworkSpec("mlp", (4,), 10, (8, 8, 1), (0.3,), (0.4,))
    model, digits = models.build(spec), data.load("digits")
    images = np.asarray(digits.test.image)
    networks = [
        models.Network(spec, model, model.init(jax.random.key(i), images[:2])) for i in range(2)
    ]
    survey.store(tmp_path / "mean.npz", digits, networks)
    with np.load(tmp_path / "mean.npz") as held:
        assert {k: len(held[k]) for k in held} == {
            split: len(getattr(digits, split).label) for split in survey.SPLITS
        }
        found = np.exp(held["test"] - held["test"].max(-1, keepdims=True))
    found /= found.sum(-1, keepdims=True)
    each = [np.exp(np.asarray(n(images), np.float64)) for n in networks]
    expected = np.mean([p / p.sum(-1, keepdims=True) for p in each], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_wrong_use_is_one_line(capsys):
    error = scripts.refusal(survey.main, ["--kind", "modality"], capsys)
    assert "--kind" in error and "modalities" in error


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rows"), [("modalities", 5), ("several-teachers", 5)])
def test_a_kind_leaves_a_table_and_reads_what_is_there(kind, rows, tmp_path):
    flags = ["--kind", kind, "--epochs", "2", "--teacher-epochs", "2", "--num-seeds", "1"]
    done = scripts.run("experiments.survey", *flags, "--workdir", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["rows"]) == rows
    assert all(0 <= float(row[-1]) <= 100 for row in summary["rows"])
    assert "python -m experiments.distill" in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert runs.workdir.commit() in page and f"jax {jax.__version__}" in page
    again = scripts.run("experiments.survey", *flags, "--workdir", tmp_path)
    assert "steps in" not in again.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == summary["rows"]
