"""Chains of students: who teaches whom, and what is written."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts

from kdjax import models
from kdjax.runs import generations
from kdjax.runs.settings import NetworkSettings
from kdjax.runs.teaching import TeacherResult

ROOT = Path(__file__).parents[1]
LABELS = np.arange(20) % 2


def run(*flags):
    return scripts.run("experiments.generations", *flags)


@pytest.mark.slow
def test_assistants_from_the_command_line(tmp_path):
    flags = ["--epochs", "2", "--teacher.epochs", "2", "--num-seeds", "1", "--workdir", tmp_path]
    done = run("--assistants", "32x16", *flags)
    assert done.returncode == 0, done.stderr
    networks = json.loads((tmp_path / "summary.json").read_text())["networks"]
    assert [n["name"] for n in networks] == ["teacher", "32x16", "student", generations.DIRECT]
    sizes = [n["num_params"] for n in networks]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3]
    assert all(n["test_errors"] and 0 <= n["accuracy"][0] <= 100 for n in networks)
    page = (tmp_path / "report.html").read_text()
    assert "32x16" in page and 'class="lede">At the end of the chain, student makes ' in page
    assert "<h2>Results on the test set</h2>" in page
    assert f"student: {tmp_path / 'student'}" in done.stdout
    assert models.load_network(tmp_path / "student").spec.widths == (32,)


def test_wrong_use_is_one_line(tmp_path, capsys):
    for flags, message in (
        (["--generations", "0"], "--generations must be positive"),
        (["--assistants", "lenet"], "--assistants must be widths, such as 64x64, or a network: "),
        (["--method", "nothing"], "('nothing' is none; choose from scratch"),
        (["--method", "simkd"], "--method must be one whose students can teach"),
        (["--assistants", "32", "32"], "--assistants must be different networks"),
        (
            [
                "--method",
                "cwd",
                "--teacher.name",
                "resnet8",
                "--student.name",
                "resnet8",
                "--assistants",
                "32",
                "--workdir",
                tmp_path,
            ],
            "--method cwd needs feature maps",
        ),
    ):
        assert message in scripts.refusal(generations.main, flags, capsys)


def test_networks_by_name():
    assert generations.network_of("128x64") == NetworkSettings("mlp", (128, 64))
    assert generations.network_of("resnet14") == NetworkSettings("resnet14", ())
    with pytest.raises(ValueError, match="--assistants"):
        generations.network_of("0x4")


def result(name, logits):
    network = SimpleNamespace(
        spec=SimpleNamespace(num_classes=2), variables=SimpleNamespace(params={"w": np.zeros(3)})
    )
    network.name = name
    split = {"teacher_logits": logits, "label": LABELS}
    return TeacherResult(network, split, split)


def test_each_learns_from_the_one_before(monkeypatch):
    taught = []

    def student(experiment, teacher, network, phase, seed):
        taught.append((teacher.network.name, phase, seed))
        # Each generation is right about half of what the others are wrong about.
        favoured = len(taught) % 2
        margin = np.where(favoured == LABELS, 3.0, -1.0)
        sign = np.where(LABELS == 1, 1, -1)
        return result(phase, np.stack([0 * margin, sign * margin], axis=-1))

    monkeypatch.setattr(generations, "_student", student)
    monkeypatch.setattr(generations, "_keep_best", lambda *_: None)
    split = SimpleNamespace(label=LABELS)
    experiment = SimpleNamespace(
        run=None,
        settings=SimpleNamespace(seeds=range(1, 3)),
        dataset=SimpleNamespace(validation=split, test=split),
    )
    small, big = NetworkSettings("mlp", (4,)), NetworkSettings("mlp", (8,))
    found, judged = generations.train_chain(
        experiment, result("teacher", np.eye(2)[LABELS]), {"one": small, "two": small}
    )
    assert taught == [
        ("teacher", "one", 3), ("one", "two", 5), ("teacher", "one", 4), ("one", "two", 6),
    ]  # fmt: skip
    assert [entry.name for entry in found] == ["teacher", "one", "two", generations.TOGETHER]
    assert found[0].accuracy == (100.0,) and found[1].accuracy == (50.0, 50.0)
    assert found[-1].accuracy == (100.0, 100.0), "the mean of both is right everywhere"
    assert [*judged] == [entry.name for entry in found] and len(judged["one"]) == 2
    assert "Two. Against one: +0.00 points of accuracy" in generations._gain(judged)
    taught.clear()
    found, judged = generations.train_chain(
        experiment, result("teacher", np.eye(2)[LABELS]), {"big": big, "student": small}
    )
    assert taught[:3] == [
        ("teacher", "big", 3),
        ("big", "student", 5),
        ("teacher", generations.DIRECT, 5),
    ]
    assert [entry.name for entry in found] == ["teacher", "big", "student", generations.DIRECT]
