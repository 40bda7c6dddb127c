"""Section 6: soft targets in place of most of the data.

    python -m experiments.hinton2015.regulariser --data.dir DIR

A net that sees 3 % of the training images overfits on their labels; with the soft targets of a
teacher that saw them all it recovers most of what it lacks, and need not be stopped early.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kdjax
from experiments import hinton2015
from experiments.hinton2015 import mnist
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script
from kdjax import runs

if TYPE_CHECKING:
    from experiments.hinton2015.networks import Cohort
    from experiments.hinton2015.teacher import Trained
    from kdjax.runs.evaluation import Arrays
    from kdjax.types import Variables

FRACTION, TEMPERATURE = 0.03, 20.0
KINDS = [(shifted, kind) for shifted in (False, True) for kind in ("hard", "soft")]
FEW = Recipe(epochs=250, batch_size=128)
QUICK = Recipe(epochs=20, batch_size=64)
NOTES = [
    "The share recovered is (errors of hard targets on 3 % - errors of soft targets on 3 %) / "
    "(errors of hard targets on 3 % - errors of hard targets on all), images with hard targets as "
    "they are. Rows with shifted images take all copies that are moved by up to two pixels; the "
    "teacher answers every copy. All nets on 3 % take the same number of steps.",
    "Early stopping takes the step with the fewest errors on 5,000 training images that are not "
    "among the 3 %; nets on soft targets are measured at their last step too, which is the row of "
    "the claim.",
]


class Curve(NamedTuple):
    """Errors of the members while they train, [points, members]."""

    steps: list[int]
    test: np.ndarray
    held_out: np.ndarray

    def at_end(self) -> tuple[float, ...]:
        """Return the test errors of the last step."""
        return tuple(float(e) for e in self.test[-1])

    def stopped_early(self) -> tuple[float, ...]:
        """Return each member's test errors where it erred least on the held-out images."""
        best = self.held_out.argmin(0)
        return tuple(float(self.test[i, m]) for m, i in enumerate(best))


Curves = Mapping[tuple[str, bool], Curve]
"""By kind of targets and whether the images are shifted."""


def run(study: Study) -> Findings:
    """Train on 3 % with hard and with soft targets, as they are and shifted, and on all images."""
    teacher, few = hinton2015.teacher.obtain(study), pick_few(study)
    curves = {(kind, view): train_few(study, teacher, few, kind, view) for view, kind in KINDS}
    full = hinton2015.networks.test_errors(study, mnist.labels_alone(study))
    return tabulate(curves, full, notes=NOTES, bar=85.0)


def pick_few(study: Study) -> np.ndarray:
    """Choose 3 % of the training examples, balanced over the classes: their indices."""
    return runs.teaching.balanced_subset(
        study.train.label, max(20, round(FRACTION * len(study.train.label)))
    )


def tabulate(
    curves: Curves, full: tuple[float, ...], *, notes: Sequence[str], bar: float | None = None
) -> Findings:
    """Put what nets on few images came to beside nets on all of them.

    Args:
        curves: by kind of targets and whether the images are shifted.
        full: test errors of nets that learned from the labels of all images.
        notes: what a reader has to know.
        bar: the share that soft targets on shifted images should recover, in %.

    Returns:
        Claims, a table and the learning curves.
    """
    formatted, views = runs.numbers.mean_and_deviation, ("as they are", "shifted")
    rows = []
    for (kind, shifted), curve in curves.items():
        errors = formatted(curve.at_end()), formatted(curve.stopped_early())
        rows.append((f"3 %, {kind} targets", views[shifted], *errors))
    rows.append(("all, hard targets", views[False], formatted(full), ""))
    hard = curves["hard", False].at_end()
    claims = []
    for shifted, view in zip((False, True), views, strict=True):
        what = f"share recovered, soft targets on images {view}"
        share = recovered(hard, curves["soft", shifted].at_end(), full)
        limit = {"bar": bar, "at_least": True} if shifted and bar else {"headline": True}
        claims.append(Claim(what, "86 %", share, unit="%", **limit))
    share = recovered(hard, curves["hard", True].at_end(), full)
    what = "share recovered, hard targets on images shifted"
    claims.append(Claim(what, "", share, unit="%", headline=True))
    columns = ("training", "images", "test errors at the end", "stopped early")
    figures = {"curves": (lambda: figure(curves), CAPTION)}
    return Findings(claims, [runs.report.Table(columns, rows)], figures, notes)


CAPTION = (
    "Test errors while nets train on 3 % of the images: mean and standard deviation over seeds."
)


def train_few(study: Study, teacher: Trained, few: np.ndarray, kind: str, shifted: bool) -> Curve:
    """Train on the few examples, measured ten times on the way."""
    name = f"regulariser/{kind}{'_shifted' if shifted else ''}"
    answered = teacher.answered(study.train._asdict())
    examples: Arrays = {key: x[few] for key, x in answered.items()}
    recipe = study.pick(FEW, QUICK)
    if shifted:
        examples = teacher.answered_shifts(examples, max_shift=study.pick(2, 1))
        copies = len(examples["label"]) / len(few)
        recipe = dataclasses.replace(recipe, epochs=recipe.epochs / copies)
    temperature = TEMPERATURE if kind == "soft" else None
    return learn(mnist.students(study, recipe, examples), name, few, temperature)


def learn(cohort: Cohort, name: str, few: np.ndarray, temperature: float | None) -> Curve:
    """Train nets, from soft targets where there is a temperature, and keep their errors."""
    networks, path = hinton2015.networks, cohort.study.root / name / "curve.json"
    every = cohort.recipe.num_steps(len(cohort.examples["label"])) // 10
    watching: Any = {"watch_fn": watch(cohort, few, path), "watch_every": every}
    if temperature is None:
        networks.train(cohort, name, **watching)
    else:
        networks.distil(cohort, name, temperature=temperature, **watching)
    return read_curve(path)


def watch(cohort: Cohort, few: np.ndarray, path: Path) -> Callable[[int, Variables], None]:
    """Make a function that counts errors on the test set and on images that are held out.

    It keeps them in a file, from which an interrupted training goes on.
    """
    study, model = cohort.study, kdjax.models.build(cohort.spec)
    rest = np.setdiff1d(np.arange(len(study.train.label)), few)[:5000]
    held_out = kdjax.data.take(study.train, rest)

    def watch_fn(at: int, variables: Variables) -> None:
        now = hinton2015.networks.Networks(model, variables)
        count, parts = hinton2015.networks.errors, (study.test, held_out)
        test, held = (count(now.logits(study.run, x.image), x.label) for x in parts)
        old = runs.workdir.read_json(path) or {}
        measured = {**old, str(at): {"test": test, "held_out": held}}
        runs.workdir.write_json(path, runs.workdir.sealed(measured))

    return watch_fn


def read_curve(path: Path) -> Curve:
    """Read what `watch` has kept.

    Raises:
        FileNotFoundError: if it is gone.
    """
    rows = runs.workdir.read_json(path)
    if rows is None:
        raise FileNotFoundError(f"{path} is missing: remove {path.parent} to train again")
    with runs.workdir.reading(path):
        steps = sorted(int(name) for name in rows if name.isdecimal())
        test, held = (np.array([rows[str(s)][k] for s in steps]) for k in ("test", "held_out"))
        return Curve(steps, test, held)


def recovered(
    hard: tuple[float, ...], soft: tuple[float, ...], full: tuple[float, ...]
) -> tuple[float, ...]:
    """Return the share of the way from few labels to all that soft targets go, by seed, in %."""
    reference, start = float(np.mean(full)), float(np.mean(hard))
    return tuple(100 * (start - e) / (start - reference) for e in soft)


def figure(curves: Curves) -> Any:
    """Draw the four learning curves."""
    lines, deviation = {}, hinton2015.networks.deviation
    for (kind, shifted), (steps, test, _) in curves.items():
        line = runs.report.Line(steps, test.mean(1), deviation(test), dashed=shifted)
        lines[f"{kind} targets{', shifted' if shifted else ''}"] = line
    return runs.report.plot_lines(lines, xlabel="steps", ylabel="test errors", log_y=True)


if __name__ == "__main__":
    run_script("regulariser", __doc__, run)
