"""What trained networks come to, as their task measures it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax import metrics, models
from kdjax.checkpoint import params_sha256
from kdjax.models import Network
from kdjax.runs import evaluation, stored, tasks
from kdjax.runs.evaluation import Run
from kdjax.runs.tasks import SINGLE_LABEL, Task
from kdjax.runs.teaching import TeacherResult

Summary = dict[str, dict[str, Any]]
"""For each kind of network the number of parameters, and lists with one entry per network."""


def summarize(
    run: Run,
    teacher: TeacherResult,
    students: Sequence[tuple[str, Network]],
    task: Task = SINGLE_LABEL,
) -> Summary:
    """Measure the teacher and its students on the test set.

    Args:
        run: where that takes place.
        teacher: with its answers to validation and test examples.
        students: what was trained, each with its kind (`scratch` or `distilled`).
        task: what they were trained for.

    Returns:
        An entry for `teacher` and for each kind of student.
    """
    summary: Summary = {}
    measured = [("teacher", teacher.network), *students]
    # Networks of one description share a compiled step.
    eval_steps = {
        network.spec: tasks.eval_step(
            task, network.model, run.layout_fn, inputs_fn=stored.inputs_fn(network)
        )
        for _, network in measured
    }
    for phase, network in measured:
        num_params = int(models.num_params(network.variables.params))
        entry = summary.setdefault(phase, {"num_params": num_params})
        for name, value in _measure(run, eval_steps[network.spec], network, teacher, task).items():
            entry.setdefault(name, []).append(value)
    return summary


def best_of(students: Sequence[Network], entry: Mapping[str, Any]) -> Network:
    """Return the student that is best in validation.

    It is the first of them on a tie, or without validation examples.
    """
    (found,) = (values for name, values in entry.items() if name.startswith("validation_"))
    scores = [np.nan if score is None else score for score in found]
    return students[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]


def _measure(
    run: Run, eval_step: Any, network: Network, teacher: TeacherResult, task: Task
) -> dict[str, Any]:
    variables, score = network.variables, task.columns[0]
    test = evaluation.measure(run, eval_step, variables, teacher.test)
    validation, errors = None, {}
    if len(teacher.validation["label"]):
        scores = evaluation.measure(run, eval_step, variables, teacher.validation)
        validation = metrics.value(scores[score])
    if task.name == "single-label":
        correct, count = test["accuracy"]
        errors = {"test_errors": int(count - correct)}
    return {
        **errors,
        **{name: metrics.value(test[name]) for name in task.columns},
        f"validation_{score}": validation,
        "params_sha256": params_sha256(network.variables.params),
    }
