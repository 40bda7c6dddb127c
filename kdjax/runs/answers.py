"""What trained networks say of each test example, for what a mean over all does not tell."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax import data
from kdjax.models import Network
from kdjax.runs import evaluation, report
from kdjax.runs.experiment import Experiment
from kdjax.runs.settings import TaskName
from kdjax.runs.teaching import TeacherResult
from kdjax.types import Array, Batch

Scores = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(logits, labels, teacher_logits) -> how well each example is answered, [examples].

Of pixels it is their classes, [examples, height, width], in place of the logits, which are many.
"""


class Answers(NamedTuple):
    """What networks say of the test set."""

    gain: str
    """What distillation gains over labels alone, with an interval; empty without the latter."""
    judged: dict[str, report.Judged]
    """The teacher and both students of the exported one's seed, where an image has one class."""
    best: np.ndarray
    """Logits of the student that is exported, [examples, ...]; of pixels their classes."""
    teacher: np.ndarray
    """Likewise of the teacher, where the task compares with it; else the labels."""


def of(
    experiment: Experiment,
    teacher: TeacherResult,
    students: Sequence[tuple[str, Network]],
    best: Network,
) -> Answers:
    """Ask all students about the test set once more.

    Args:
        experiment: data and task.
        teacher: with its answers.
        students: what was trained, each with its kind, seed by seed.
        best: the one of them that is exported.

    Returns:
        What they say, by example.
    """
    task, run, test = experiment.task, experiment.run, experiment.dataset.test
    labels = np.asarray(test.label)
    # Only where they are compared with the teacher does a score look at what it said.
    teachers = evaluation.said(run, teacher.test) if task.compares else labels
    what, scale, score_fn = _SCORES[task.name]
    scores: dict[str, list[np.ndarray]] = {}
    judged: dict[str, list[report.Judged]] = {}
    for phase, network in students:
        answer_fn = evaluation.logits_fn(network.model, network.variables)
        kept_fn = _class_of_pixels(answer_fn) if task.name == "pixels" else answer_fn
        logits = evaluation.answers(run, kept_fn, test._asdict())
        if network is best:
            shown, at = logits, len(scores.get(phase, []))
        scores.setdefault(phase, []).append(scale * score_fn(logits, labels, teachers))
        if task.of_classes:
            judged.setdefault(phase, []).append(report.judged(logits, labels))
    gain = ""
    if "scratch" in scores:
        gain = report.difference_note(scores["scratch"], scores["distilled"], what=what)
    pair = {phase: own[at] for phase, own in judged.items()}
    if pair:
        pair = {"teacher": report.judged(teachers, labels), **pair}
    return Answers(gain, pair, shown, teachers)


def _class_of_pixels(answer_fn: Callable[[Batch], Array]) -> Callable[[Batch], Array]:
    return lambda batch: answer_fn(batch).argmax(-1)


def _hits(logits: np.ndarray, labels: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    return report.judged(logits, labels).correct


def _labels_right(logits: np.ndarray, labels: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    return _mean_where(labels != data.NO_LABEL, (logits > 0) == (labels > 0.5))


def _pixels_right(logits: np.ndarray, labels: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    return _mean_where(labels >= 0, logits == labels)


def _explained(logits: np.ndarray, labels: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    """Return squared errors in variances of the test set: their mean is that far below R² = 1."""
    variance = np.maximum(labels.var(0), 1e-12)
    scores: np.ndarray = -np.mean(np.square(logits - labels) / variance, axis=-1)
    return scores


def _cosines(logits: np.ndarray, labels: np.ndarray, teachers: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(logits, axis=-1) * np.linalg.norm(teachers, axis=-1)
    cosines: np.ndarray = np.sum(logits * teachers, axis=-1) / np.maximum(norms, 1e-12)
    return cosines


def _mean_where(counts: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the share that is right of what counts of each example."""
    axes = tuple(range(1, counts.ndim))
    share: np.ndarray = np.sum(right & counts, axis=axes) / np.maximum(1, counts.sum(axis=axes))
    return share


_SCORES: Mapping[TaskName, tuple[str, float, Scores]] = {
    "single-label": ("points of accuracy", 100.0, _hits),
    "binary": ("points of accuracy", 100.0, _hits),
    "multi-label": ("points of labels right", 100.0, _labels_right),
    "pixels": ("points of pixels right, by image", 100.0, _pixels_right),
    "regression": ("in R²", 1.0, _explained),
    "embeddings": ("in the cosine with the teacher", 1.0, _cosines),
}
"""What a task's examples are scored by: what it is called, and in which unit."""
