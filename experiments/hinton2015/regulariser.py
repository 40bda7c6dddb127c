"""Section 6: soft targets in place of most of the data.

    python -m experiments.hinton2015.regulariser --data.dir DIR

A net that sees 3 % of the training images overfits on their labels; with the soft targets of a
teacher that saw them all it recovers most of what it lacks, and need not be stopped early.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.hinton2015 import group, mnist, teacher
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.lab import Claim, Findings, Lab, Table
from kdjax import models, report, teachers
from kdjax.models import NetworkSpec
from kdjax.runs import workdir
from kdjax.runs.plans import balanced_subset
from kdjax.types import Model, Variables

FRACTION, TEMPERATURE = 0.03, 20.0
FEW = group.Recipe(epochs=250, batch_size=128)
QUICK = group.Recipe(epochs=20, batch_size=64)
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


def run(lab: Lab) -> Findings:
    """Train on 3 % with hard and with soft targets, as they are and shifted, and on all images."""
    big = teacher.obtain(lab)
    few = pick_few(lab)
    curves = {
        (kind, shifted): train_few(lab, big, few, kind, shifted)
        for shifted in (False, True)
        for kind in ("hard", "soft")
    }
    full = group.errors(group.test_logits(lab, mnist.labels_alone(lab)), lab.test.label)
    return tabulate(curves, full, notes=NOTES, bar=85.0)


def pick_few(lab: Lab) -> np.ndarray:
    """Choose 3 % of the training examples, balanced over the classes: their indices."""
    return balanced_subset(lab.train.label, max(20, round(FRACTION * len(lab.train.label))))


def tabulate(
    curves: Mapping[tuple[str, bool], Curve],
    full: tuple[float, ...],
    *,
    notes: Sequence[str],
    bar: float | None = None,
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
    rows = [
        (
            f"3 %, {kind} targets",
            "shifted" if shifted else "as they are",
            labs.spread(curve.at_end()),
            labs.spread(curve.stopped_early()),
        )
        for (kind, shifted), curve in curves.items()
    ]
    rows.append(("all, hard targets", "as they are", labs.spread(full), ""))
    hard = curves["hard", False].at_end()
    claims = [
        Claim(
            f"share recovered, soft targets on images {view}",
            "86 %",
            recovered(hard, curves["soft", shifted].at_end(), full),
            unit="%",
            bar=bar if shifted else None,
            at_least=True,
        )
        for shifted, view in ((False, "as they are"), (True, "shifted"))
    ]
    columns = ("training", "images", "test errors at the end", "stopped early")
    return Findings(
        claims,
        tables=[Table(columns, tuple(rows))],
        figures={"curves": (figure(curves), CAPTION)},
        notes=notes,
    )


CAPTION = (
    "Test errors while nets train on 3 % of the images; the mean over seeds. Hard targets gain "
    "nothing from the later steps, soft targets do."
)


def train_few(lab: Lab, big: teacher.Trained, few: np.ndarray, kind: str, shifted: bool) -> Curve:
    """Train on the few examples, measured ten times on the way."""
    name = f"regulariser/{kind}{'_shifted' if shifted else ''}"
    examples: group.Arrays = {key: x[few] for key, x in big.answered(lab.train._asdict()).items()}
    recipe = lab.pick(FEW, QUICK)
    if shifted:
        examples = big.answered_shifts(examples, max_shift=lab.pick(2, 1))
        copies = len(examples["label"]) / len(few)
        recipe = dataclasses.replace(recipe, epochs=recipe.epochs / copies)
    temperature = TEMPERATURE if kind == "soft" else None
    seeds = lab.seeds(5)
    return learn(lab, name, mnist.spec_of(lab), recipe, examples, few, seeds, temperature)


def learn(
    lab: Lab,
    name: str,
    spec: NetworkSpec,
    recipe: group.Recipe,
    examples: group.Arrays,
    few: np.ndarray,
    seeds: Sequence[int],
    temperature: float | None,
) -> Curve:
    """Train nets, from soft targets where there is a temperature, and keep their errors."""
    soft: dict[str, Any] = {
        "settings": group.constant(len(seeds), temperature=temperature or 1.0, soft_weight=1.0),
        "objective_fn": group.soft_and_hard,
        "teacher": teachers.stored(),
    }
    path = lab.root / name / "curve.json"
    group.train_group(
        lab,
        name,
        spec,
        recipe,
        examples,
        seeds=seeds,
        watch_fn=watch(lab, models.build(spec), few, path),
        watch_every=recipe.num_steps(len(examples["label"])) // 10,
        **(soft if temperature else {}),
    )
    return read_curve(path)


def watch(lab: Lab, model: Model, few: np.ndarray, path: Path) -> Callable[[int, Variables], None]:
    """Make a function that counts errors on the test set and on images that are held out.

    It keeps them in a file, from which an interrupted training goes on.
    """
    rest = np.setdiff1d(np.arange(len(lab.train.label)), few)[:5000]
    held_out = lab.train.image[rest], lab.train.label[rest]

    def watch_fn(at: int, variables: Variables) -> None:
        now = group.Group(model, variables)
        test, held = (
            group.errors(group.all_logits(now, images), labels)
            for images, labels in ((lab.test.image, lab.test.label), held_out)
        )
        old = workdir.read_json(path) or {}
        workdir.write_json(path, {**old, str(at): {"test": test, "held_out": held}})

    return watch_fn


def read_curve(path: Path) -> Curve:
    """Read what `watch` has kept.

    Raises:
        FileNotFoundError: if it is gone.
    """
    rows = workdir.read_json(path)
    if rows is None:
        raise FileNotFoundError(f"{path} is missing: remove {path.parent} to train again")
    steps = sorted(map(int, rows))
    test, held = (np.array([rows[str(s)][k] for s in steps]) for k in ("test", "held_out"))
    return Curve(steps, test, held)


def recovered(
    hard: tuple[float, ...], soft: tuple[float, ...], full: tuple[float, ...]
) -> tuple[float, ...]:
    """Return the share of the way from few labels to all that soft targets go, by seed, in %."""
    reference, start = float(np.mean(full)), float(np.mean(hard))
    return tuple(100 * (start - e) / (start - reference) for e in soft)


def figure(curves: Mapping[tuple[str, bool], Curve]) -> Any:
    """Draw the four learning curves."""
    lines = {
        f"{kind} targets{', shifted' if shifted else ''}": report.Line(
            curve.steps, curve.test.mean(1), group.deviation(curve.test), dashed=shifted
        )
        for (kind, shifted), curve in curves.items()
    }
    return report.plot_lines(lines, xlabel="steps", ylabel="test errors", log_y=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main("regulariser", __doc__ or "", run, args)


if __name__ == "__main__":
    main()
