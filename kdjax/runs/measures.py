"""What trained networks come to: errors, accuracy, calibration, agreement with the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax import metrics, models, step
from kdjax.checkpoint import params_sha256
from kdjax.models import Network
from kdjax.runs import evaluation
from kdjax.runs.evaluation import Run
from kdjax.runs.teaching import TeacherResult

Summary = dict[str, dict[str, Any]]
"""For each kind of network the number of parameters, and lists with one entry per network."""


def summarize(run: Run, teacher: TeacherResult, students: Sequence[tuple[str, Network]]) -> Summary:
    """Measure the teacher and its students on the test set.

    Args:
        run: where that takes place.
        teacher: with its answers to validation and test examples.
        students: what was trained, each with its kind (`scratch` or `distilled`).

    Returns:
        An entry for `teacher` and for each kind of student.
    """
    summary: Summary = {}
    measured = [("teacher", teacher.network), *students]
    # Networks of one description share a compiled step.
    eval_steps = {
        network.spec: step.make_eval_step(network.model, layout_fn=run.layout_fn)
        for _, network in measured
    }
    for phase, network in measured:
        num_params = int(models.num_params(network.variables.params))
        entry = summary.setdefault(phase, {"num_params": num_params})
        for name, value in _measure(run, eval_steps[network.spec], network, teacher).items():
            entry.setdefault(name, []).append(value)
    return summary


def best_of(students: Sequence[Network], entry: Mapping[str, Any]) -> Network:
    """Return the student with the best validation accuracy.

    It is the first of them on a tie, or without validation examples.
    """
    scores = [-1 if score is None else score for score in entry["validation_accuracy"]]
    return students[int(np.argmax(scores))]


def _measure(run: Run, eval_step: Any, network: Network, teacher: TeacherResult) -> dict[str, Any]:
    variables = network.variables
    test = evaluation.measure(run, eval_step, variables, teacher.test)
    correct, count = test["accuracy"]
    validation = None
    if len(teacher.validation["label"]):
        scores = evaluation.measure(run, eval_step, variables, teacher.validation)
        validation = metrics.value(scores["accuracy"])
    return {
        "test_errors": int(count - correct),
        **{name: metrics.value(test[name]) for name in ("accuracy", "nll", "ece", "agreement")},
        "validation_accuracy": validation,
        "params_sha256": params_sha256(network.variables.params),
    }
