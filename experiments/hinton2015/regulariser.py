"""Section 6: soft targets in place of most of the data.

    python -m experiments.hinton2015.regulariser --data.dir DIR

A net that sees 3 % of the training images overfits on their labels; with the soft targets of a
teacher that saw them all it recovers most of what it lacks, and need not be stopped early.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from experiments.distillation import balanced_subset
from experiments.hinton2015 import group, teacher
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.lab import Claim, Findings, Lab, Table
from kdjax import report
from kdjax.types import Variables

FRACTION, TEMPERATURE = 0.03, 20.0
FULL = group.Recipe(epochs=30)
FEW = group.Recipe(epochs=500, batch_size=128)
QUICK = group.Recipe(epochs=20, batch_size=64)
NOTES = [
    "The share recovered is (errors of hard targets on 3 % - errors of soft targets on 3 %) / "
    "(errors of hard targets on 3 % - errors of hard targets on all). Rows with jitter shift "
    "images by up to two pixels, and the teacher answers the shifted image.",
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
    """Train on 3 % with hard and with soft targets and on all with hard ones; jitter off and on."""
    big = teacher.obtain(lab)
    count = max(20, round(FRACTION * len(lab.train.label)))
    few = balanced_subset(lab.train.label, count)
    curves = {}
    for jittered in (False, True):
        for kind in ("hard", "soft"):
            curves[kind, jittered] = train_few(lab, big, few, kind, jittered)
    full = {jittered: train_full(lab, jittered) for jittered in (False, True)}
    rows, claims = [], []
    for jittered in (False, True):
        view = "jittered" if jittered else "as they are"
        hard, soft = curves["hard", jittered], curves["soft", jittered]
        for name, curve in (("hard", hard), ("soft", soft)):
            ends = labs.spread(curve.at_end()), labs.spread(curve.stopped_early())
            rows.append((f"3 %, {name} targets", view, *ends))
        rows.append(("all, hard targets", view, labs.spread(full[jittered]), ""))
        share = recovered(hard.at_end(), soft.at_end(), full[jittered])
        claims.append(Claim(f"share recovered, images {view}", "86 %", share, unit="%"))
    share = recovered(curves["hard", False].at_end(), curves["soft", True].at_end(), full[False])
    what = "share recovered, soft targets on jittered images, labels as they are"
    claims.append(Claim(what, "86 %", share, unit="%", bar=85.0, at_least=True))
    columns = ("training", "images", "test errors at the end", "stopped early")
    return Findings(
        claims,
        tables=[Table(columns, tuple(rows))],
        figures={"curves": (figure(curves), CAPTION)},
        notes=NOTES,
    )


CAPTION = (
    "Test errors while nets train on 3 % of the images; the mean over seeds. Hard targets gain "
    "nothing from the later steps, soft targets do."
)


def train_few(lab: Lab, big: teacher.Trained, few: np.ndarray, kind: str, jittered: bool) -> Curve:
    """Train on the few examples, measured ten times on the way."""
    seeds, name = lab.seeds(5), f"regulariser/{kind}{'_jittered' if jittered else ''}"
    examples = {key: x[few] for key, x in lab.train._asdict().items()}
    rest = np.setdiff1d(np.arange(len(lab.train.label)), few)[:5000]
    held_out = lab.train.image[rest], lab.train.label[rest]
    recipe = with_jitter(lab.pick(FEW, QUICK), jittered and not lab.quick)
    measured: dict[int, Any] = {}
    spec = spec_of(lab)

    def watch(at: int, variables: Variables) -> None:
        now = group.Group(model, variables)
        test, held = (
            group.errors(group.all_logits(now, images), labels)
            for images, labels in ((lab.test.image, lab.test.label), held_out)
        )
        measured[at] = {"test": test, "held_out": held}

    model = group.networks.build(spec)
    soft: dict[str, Any] = {
        "settings": group.constant(len(seeds), temperature=TEMPERATURE, soft_weight=1.0),
        "objective_fn": group.soft_and_hard,
        "teacher": big.frozen(),
    }
    trained = group.train_group(
        lab,
        name,
        spec,
        recipe,
        examples,
        seeds=seeds,
        watch_fn=watch,
        watch_every=recipe.num_steps(len(few)) // 10,
        **(soft if kind == "soft" else {}),
    )
    return read_curve(lab, name, measured, trained)


def read_curve(lab: Lab, name: str, measured: dict[int, Any], trained: group.Group) -> Curve:
    """Keep what was measured beside the networks, and read it where they were trained before."""
    from experiments import workdir

    path = lab.root / name / "curve.json"
    if measured:
        old = workdir.read_json(path) or {}
        workdir.write_json(path, {**old, **{str(at): row for at, row in measured.items()}})
    rows = workdir.read_json(path)
    steps = sorted(map(int, rows))
    test, held = (np.array([rows[str(s)][k] for s in steps]) for k in ("test", "held_out"))
    return Curve(steps, test, held)


def train_full(lab: Lab, jittered: bool) -> tuple[float, ...]:
    """Train on all labels; return test errors."""
    trained = group.train_group(
        lab,
        f"regulariser/full{'_jittered' if jittered else ''}",
        spec_of(lab),
        with_jitter(lab.pick(FULL, QUICK), jittered and not lab.quick),
        lab.train._asdict(),
        seeds=lab.seeds(5)[:3],
    )
    return group.errors(group.test_logits(lab, trained), lab.test.label)


def spec_of(lab: Lab) -> Any:
    """Describe the net of all rows: the student of section 3."""
    return group.mlp_spec(lab, lab.pick((800, 800), (32, 32)))


def with_jitter(recipe: group.Recipe, jittered: bool) -> group.Recipe:
    """Return the recipe, on shifted images if asked."""
    return dataclasses.replace(recipe, augment=("jitter",)) if jittered else recipe


def recovered(
    hard: tuple[float, ...], soft: tuple[float, ...], full: tuple[float, ...]
) -> tuple[float, ...]:
    """Return the share of the way from few labels to all that soft targets go, by seed, in %."""
    reference, start = float(np.mean(full)), float(np.mean(hard))
    return tuple(100 * (start - e) / (start - reference) for e in soft)


def figure(curves: dict[tuple[str, bool], Curve]) -> Any:
    """Draw the four learning curves."""
    lines = {
        f"{kind} targets{', jittered' if jittered else ''}": report.Line(
            curve.steps, curve.test.mean(1), group.deviation(curve.test), dashed=jittered
        )
        for (kind, jittered), curve in curves.items()
    }
    return report.plot_lines(lines, xlabel="steps", ylabel="test errors", log_y=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main("regulariser", __doc__ or "", run, args)


if __name__ == "__main__":
    main()
