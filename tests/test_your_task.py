"""The page of tasks: its code runs as it stands; the script trains, measures and writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import tasks
from kdjax import data, losses, metrics

TEXT = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=["arrays", "loop", "regression", "pixels"])
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "your_task"}
    exec(compile(block, "your-task.md", "exec"), namespace)
    found = namespace.get("found") or namespace.get("measured")
    if (tmp_path / "mine.npz").exists():
        known = data.from_folder(tmp_path / "mine.npz", labels_fn=data.several_labels)
        assert known.num_classes == 2 and len(known.train.label) == 144
        return
    if found is None:
        assert float(namespace["loss"]) > 0 and np.all(np.isfinite(namespace["grads"]))
        return
    values = {name: metrics.value(metric) for name, metric in found.items()}
    assert all(np.isfinite(value) for value in values.values()), values
    assert {"r2", "iou"} & set(values)
    assert "r2" not in values or (values["r2"] > 0.5 and "accuracy" not in values)


def test_names_on_the_page_exist():
    rows = re.findall(r"^\| (?!task|---|`).*", TEXT, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert len(names) > 15
    assert names <= {*losses.__all__, *metrics.__all__}


@pytest.mark.slow
@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_task_is_trained_and_measured(task, tmp_path, capsys, monkeypatch):
    # The last of a flag counts.
    make, own = tasks.TASKS[task]
    monkeypatch.setitem(tasks.TASKS, task, (make, f"{own} --teacher.epochs 1"))
    flags = ["--epochs", "1", "--num-seeds", "1", "--workdir", str(tmp_path)]
    tasks.main(["--task", task, *flags])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found) == ["teacher", "scratch", "distilled"]
    assert f"Task {task}" in (tmp_path / "report.html").read_text()
    assert f"experiments.distill --task {task}" in capsys.readouterr().out


def test_labels_of_a_digit_are_what_is_true_of_it():
    found, (train, _) = tasks.multi_label(), tasks.digits()
    seven = np.flatnonzero(train["y"] == 7)[0]
    assert found["y_train"][seven].tolist() == [0, 1, 1, 0]
    image, label = tasks.collages(train, 6, 0)
    assert image.shape == label.shape == (6, 16, 16) and {*np.unique(label)} <= {*range(11), 255}
    assert label[:, 0, 0].max() == 0 or image[label == 255].mean() < image[label > 0].mean()


def test_an_unknown_task_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        tasks.main(["--task", "poetry"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "--task" in said and len(said.splitlines()) == 1
