"""The script of teachers that learn meanwhile: what it writes, and that it goes on."""

import json

import pytest
import scripts


@pytest.mark.slow
def test_every_kind_is_trained_and_measured(tmp_path):
    flags = ["--epochs", "2", "--num-seeds", "2", "--batch-size", "50", "--workdir", tmp_path]
    done = scripts.run("experiments.online", *flags)
    assert done.returncode == 0, done.stderr
    errors = json.loads((tmp_path / "summary.json").read_text())["test_errors"]
    assert list(errors) == ["labels alone", "its own moving average", "a peer"]
    assert all(len(own) == 2 and 0 < min(own) <= max(own) <= 450 for own in errors.values())
    assert "taught by a peer." in (tmp_path / "report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {(row["phase"], row["seed"]) for row in rows if row["split"] == "train"}
    assert logged == {(kind, seed) for kind in errors for seed in (0, 1)}
    again = scripts.run("experiments.online", *flags)
    assert again.returncode == 0, again.stderr
    assert "a peer, seed 1 is trained (read from its checkpoint)" in again.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["test_errors"] == errors
    wrong = scripts.run("experiments.online", "--decay", "2")
    assert wrong.returncode == 2 and "--decay must be in [0, 1], got 2.0" in wrong.stderr
