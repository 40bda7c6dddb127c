"""The page that `distill` leaves behind: what was done, what came out, and how it was chosen."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kdjax.distributed import is_leader
from kdjax.models import NetworkSpec
from kdjax.runs import report
from kdjax.runs.answers import Answers
from kdjax.runs.console import say
from kdjax.runs.experiment import Experiment, facts
from kdjax.runs.settings import EMBEDDED
from kdjax.runs.teaching import TeacherResult

Figures = dict[str, tuple[Figure, str]]
"""Figures with their captions, by name."""
# What was looked at on the validation split before the defaults for digits were settled.
DIGITS_CHOICE = (
    "On a validation split of 404 training digits, distillation gained 6.2 points of accuracy with "
    "50 digits for the students, 3.0 with 100, 1.3 with 200 and 0.2, within the spread, with 840: "
    "what a teacher is for shows where labels are few, so the students see 100. There T = 1 gained "
    "0.1 points, T = 2 1.9, T = 4 3.0 and T = 8 3.4, the last two within the spread of each other; "
    "T = 4 is the field's habit. The test digits had no part in it; RESULTS.md has the table."
)


def write(
    experiment: Experiment,
    teacher: TeacherResult,
    summary: dict[str, Any],
    said: Answers,
    command: str,
) -> None:
    """Write `summary.json` and print its table, then draw the plots and `report.html`.

    Of several processes, the first does.
    """
    if is_leader():
        page_fn = functools.partial(_page, experiment, teacher, summary, said, command)
        report.publish(experiment.run.workdir, summary, report.format_table(summary), page_fn)
        say(f"student: {experiment.run.workdir / 'student'}")


def _page(
    experiment: Experiment,
    teacher: TeacherResult,
    summary: dict[str, Any],
    said: Answers,
    command: str,
) -> report.Page:
    settings, dataset, run = experiment.settings, experiment.dataset, experiment.run
    known = {
        "Training time": f"{run.log.total_seconds():.0f} s in the steps of all trainings",
        "Seeds": f"{settings.seed} and up, {settings.num_seeds} of each kind",
    }
    said_of_errors = (
        "On the test set, seed by seed: the same student from labels alone and distilled."
    )
    sections = []
    if said.judged:
        pictures = _pictures(experiment, said.teacher, said.best)
        sections = [report.calibration_section(said.judged), *pictures]
    return report.distillation_page(
        f"Distillation on {dataset.name}",
        summary,
        rows=run.log.rows(),
        figures={"errors": (report.plot_errors(summary, first_seed=settings.seed), said_of_errors)},
        notes=_choices(experiment, teacher.network.spec),
        facts=facts(run, command, **known),
        found=said.gain,
        sections=sections,
    )


def _pictures(
    experiment: Experiment, logits: np.ndarray, student_logits: np.ndarray
) -> list[report.Section]:
    """Show what the teacher knows beyond labels, and where the student has not learned it."""
    dataset, temperature = experiment.dataset, experiment.settings.temperature
    if len(dataset.image_shape) != 3:
        return []
    shown = dataset.test.image, np.asarray(dataset.test.label), logits
    figures: Figures = {
        "dark_knowledge": (
            report.plot_instructive(*shown, dataset.label_names, temperature),
            "Test images beside the teacher's probabilities, at T = 1 and softened at "
            f"T = {temperature:g}: what it deems almost as likely is what labels do not say. The "
            "two columns may differ in scale.",
        ),
        "disagreements": (
            report.plot_disagreements(*shown, student_logits, dataset.label_names),
            "The worst disagreements: the test images where the exported student's probabilities "
            "are farthest from the teacher's, by KL(teacher || student) at T = 1.",
        ),
    }
    return [report.Section("What the teacher knows, and the student does not", (), figures)]


def _choices(experiment: Experiment, teacher: NetworkSpec) -> dict[str, str]:
    """Return what was chosen, and on what grounds, by heading."""
    settings, dataset = experiment.settings, experiment.dataset
    num_train, seen = len(dataset.train.label), settings.data.student_examples
    student, optimizer = settings.student, settings.optimizer
    found = f"{dataset.found}; " if dataset.found else ""
    more = ""
    if dataset.unlabelled is not None:
        more = (
            f" It learns from {len(dataset.unlabelled)} images without labels besides, on which "
            "the teacher alone teaches; the label's term is averaged over the others."
        )
    few = "all" if seen == num_train else f"{seen} of them, balanced over the classes"
    passes = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    views = " and ".join(settings.augment or ("none",))
    given = experiment.given_teacher is not None or experiment.stored_logits is not None
    decay = {"cosine": "warm-up and cosine decay", "steps": "decay in steps"}[optimizer.schedule]
    kd = f", T = {settings.temperature:g}, soft weight {settings.soft_weight:g}"
    notes = {
        "Networks": f"Teacher: {_named(teacher.name, teacher.widths)}. "
        f"Student: {_named(student.name, student.widths)}.",
        "Examples": f"{found}{dataset.splits}: {num_train} training examples. The teacher "
        + ("was given" if given else "learns from all of them")
        + f", both students learn from {few}: what the "
        f"distilled one gains beyond labels comes through the teacher's answers.{more}",
        "Training": f"Task {settings.task}, method {settings.method}"
        f"{kd if settings.method == 'kd' else ''}; "
        f"{passes} in batches of {settings.batch_size}, "
        f"{optimizer.name} at {optimizer.learning_rate:g} with {decay}, augmentation {views}. "
        "Both students of a seed start from the same values and "
        + ("take as many steps." if more else "see the same batches."),
    }
    embedded = dataset.name == EMBEDDED and dataset.version
    return {**notes, "How this was chosen": DIGITS_CHOICE} if embedded else notes


def _named(name: str | None, widths: Sequence[int] | None) -> str:
    return f"{name} {list(widths)}" if widths else str(name)
