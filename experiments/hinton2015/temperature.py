"""Section 3: which temperature for which width of the student.

    python -m experiments.hinton2015.temperature --data.dir DIR

All temperatures and seeds of a width train at once, in one compiled program (`kdjax.many`).
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import hinton2015
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script
from kdjax import runs

if TYPE_CHECKING:
    from experiments.hinton2015.teacher import Trained

WIDTHS, QUICK_WIDTHS = (30, 100, 300, 800), (8, 32)
TEMPERATURES, QUICK_TEMPERATURES = (1, 1.5, 2, 2.5, 4, 8, 12, 20, 40), (1, 4, 20)
# Wide students need fewer passes, and each costs more.
EPOCHS = {30: 20, 100: 10, 300: 6, 800: 4}
QUICK = Recipe(epochs=10, batch_size=64)


def run(study: Study) -> Findings:
    """Train every width at every temperature; plot and judge the paper's two sentences."""
    teacher = hinton2015.teacher.obtain(study)
    widths = study.pick(WIDTHS, QUICK_WIDTHS)
    temperatures = study.pick(TEMPERATURES, QUICK_TEMPERATURES)
    seeds = study.seeds(5)
    errors = {w: errors_of(study, teacher, w, temperatures, seeds) for w in widths}
    line, deviation = runs.report.Line, hinton2015.networks.deviation
    lines = {
        f"{w} units a layer": line(temperatures, e.mean(1), deviation(e)) for w, e in errors.items()
    }

    def figure() -> Any:
        labels: Any = {"xlabel": "temperature", "ylabel": "test errors"}
        return runs.report.plot_lines(lines, **labels, log_x=True, log_y=True)

    caption = (
        "Test errors of distilled students by temperature and width, mean and standard deviation "
        f"over {len(seeds)} seeds."
    )
    columns = ("T", *(f"{w} units" for w in widths))
    rows = tuple(
        (f"{t:g}", *(runs.numbers.mean_and_deviation(e[i].tolist()) for e in errors.values()))
        for i, t in enumerate(temperatures)
    )
    return Findings(
        claims(errors, temperatures),
        tables=[runs.report.Table(columns, rows, "Test errors by temperature and width")],
        figures={"temperature": (figure, caption)},
        notes=NOTES,
    )


NOTES = [
    "The paper gives no figures here, only that with 300 units or more all temperatures above 8 "
    "do about equally, and that with 30 units temperatures from 2.5 to 4 do significantly better "
    "than higher or lower ones. A difference is a Welch t statistic: beyond 3, with five seeds "
    "a side, it is no accident. Students learn from soft targets alone, in 20 passes over the "
    "images with 30 units, 10 with 100, 6 with 300 and 4 with 800."
]


def errors_of(
    study: Study, teacher: Trained, width: int, temperatures: tuple[float, ...], seeds: list[int]
) -> np.ndarray:
    """Train one width at all temperatures and seeds: test errors, [temperatures, seeds]."""
    each, own = zip(*itertools.product(temperatures, seeds), strict=True)
    networks, examples = hinton2015.networks, teacher.answered(study.train._asdict())
    recipe = QUICK if study.quick else Recipe(epochs=EPOCHS[width])
    cohort = networks.Cohort(study, networks.mlp_spec(study, (width, width)), recipe, examples, own)
    trained = networks.distil(cohort, f"temperature/width_{width}", temperature=each)
    counted = networks.test_errors(study, trained)
    return np.array(counted).reshape(len(temperatures), len(seeds))


def claims(errors: dict[int, np.ndarray], temperatures: tuple[float, ...]) -> list[Claim]:
    """Put the paper's two sentences as numbers."""
    found, narrow = [], min(errors)
    high = [i for i, t in enumerate(temperatures) if t >= 8]
    for width, e in errors.items():
        means = e.mean(1)
        best = temperatures[int(means.argmin())]
        what, first = f"best temperature, {width} units", width == narrow
        paper = {True: "2.5 to 4", False: ""}[first]
        found.append(Claim(what, paper, (float(best),), unit="(T)", headline=first))
        if width >= 300:
            spread = float(means[high].max() / means[high].min() - 1) * 100
            what = f"worst over best mean from T = 8 on, {width} units"
            found.append(Claim(what, "about equal", (spread,), unit="% more", headline=True))
    middle = [i for i, t in enumerate(temperatures) if 2.5 <= t <= 4]
    rest = [i for i in range(len(temperatures)) if i not in middle]
    if middle and rest:
        best_rest = min(rest, key=lambda i: errors[narrow][i].mean())
        t = welch(errors[narrow][best_rest], np.concatenate([errors[narrow][i] for i in middle]))
        what = f"t of the best other T over 2.5 to 4, {narrow} units"
        found.append(Claim(what, "significant", (t,), unit="(t)"))
    return found


def welch(first: np.ndarray, second: np.ndarray) -> float:
    """Return Welch's t statistic for the difference of two means."""
    variance = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
    return float((first.mean() - second.mean()) / np.sqrt(max(variance, 1e-12)))


if __name__ == "__main__":
    run_script("temperature", __doc__, run)
