"""The page of tasks: its code runs as it stands; the script trains, measures and writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import tasks
from kdjax import losses, metrics

TEXT = (Path(__file__).parents[1] / "docs" / "your-task.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=["loop", "regression", "pixels"])
def test_a_block_runs(block):
    namespace = {"__name__": "your_task"}
    exec(compile(block, "your-task.md", "exec"), namespace)
    found = namespace.get("found") or namespace.get("measured")
    if found is None:
        assert float(namespace["loss"]) > 0 and np.all(np.isfinite(namespace["grads"]))
        return
    values = {name: metrics.value(metric) for name, metric in found.items()}
    assert all(np.isfinite(value) for value in values.values()), values
    assert {"r2", "iou"} & set(values)
    assert "r2" not in values or (values["r2"] > 0.5 and "accuracy" not in values)


def test_names_on_the_page_exist():
    rows = re.findall(r"^\| (?!task|---).*", TEXT, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert len(names) > 15
    assert names <= {*losses.__all__, *metrics.__all__}


QUICK = "embedding"


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [t if t == QUICK else pytest.param(t, marks=pytest.mark.slow) for t in tasks.TASKS]
)
def test_a_task_is_trained_and_measured(task, tmp_path, capsys):
    tasks.main(["--task", task, "--num-steps", "3", "--num-seeds", "1", "--workdir", str(tmp_path)])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found) == list(tasks.KINDS)
    assert all(np.isfinite(v) for own in found.values() for one in own for v in one.values())
    assert f"Task: {task}" in (tmp_path / "report.html").read_text()
    assert "distilled" in capsys.readouterr().out


def test_an_unknown_task_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        tasks.main(["--task", "poetry"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "--task" in said and len(said.splitlines()) == 1
