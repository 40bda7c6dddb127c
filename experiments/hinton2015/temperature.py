"""Section 3: which temperature for which width of the student.

    python -m experiments.hinton2015.temperature --data.dir DIR

All temperatures and seeds of a width train at once, in one compiled program (`kdjax.many`).
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import hinton2015
from experiments.hinton2015 import mnist
from experiments.hinton2015.study import (
    Claim,
    Findings,
    Recipe,
    Study,
    StudySettings,
    interval,
    run_script,
)
from kdjax import runs
from kdjax.runs.flags import flag
from kdjax.runs.settings import POSITIVE

if TYPE_CHECKING:
    from experiments.hinton2015.teacher import Trained
    from kdjax.runs.report import Table

WIDTHS, QUICK_WIDTHS = (30, 100, 300, 800), (8, 32)
TEMPERATURES, QUICK_TEMPERATURES = (1, 2.5, 4, 8, 20, 40), (1, 4, 8, 20)
QUICK = Recipe(epochs=10, batch_size=64)
NARROW, GOOD = 30, (2.5, 4.0)
"""A student of so few units, and the paper's best temperatures of it, ends included."""
WIDE, HIGH = 300, 8.0
"""From so many units on all temperatures above this are equal."""


@dataclasses.dataclass(frozen=True)
class Settings(StudySettings):
    """What this script asks besides."""

    widths: tuple[int, ...] = flag(
        f"Units a layer, of one student or several. Default: {' '.join(map(str, WIDTHS))}.",
        POSITIVE,
        default=(),
    )
    temperatures: tuple[float, ...] = flag(
        f"Temperatures, one or several. Default: {' '.join(map(str, TEMPERATURES))}.",
        POSITIVE,
        default=(),
    )


def run(study: Study) -> Findings:
    """Train every width at every temperature; plot and judge the paper's two sentences."""
    assert isinstance(study.settings, Settings)
    teacher = hinton2015.teacher.obtain(study)
    widths = study.settings.widths or study.pick(WIDTHS, QUICK_WIDTHS)
    usual = study.pick(TEMPERATURES, QUICK_TEMPERATURES)
    temperatures = tuple(sorted({*study.settings.temperatures})) or usual
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
    table = runs.report.Table(columns, rows, "Test errors by temperature and width")
    found = claims(errors, temperatures)
    return Findings(
        found,
        tables=[table, *intervals(found)],
        figures={"temperature": (figure, caption)},
        notes=NOTES,
    )


NOTES = [
    "The paper gives no figures here, only that with 300 units or more all temperatures above 8 "
    "do about equally, and that with 30 units temperatures from 2.5 to 4 do significantly better "
    "than higher or lower ones. A difference is taken seed by seed; its interval is Student's, "
    "for the mean over seeds. Students learn from soft targets alone, in as many passes over the "
    "images, and as small batches, as those of section 3's table."
]


def errors_of(
    study: Study, teacher: Trained, width: int, temperatures: tuple[float, ...], seeds: list[int]
) -> np.ndarray:
    """Train one width at all temperatures and seeds: test errors, [temperatures, seeds]."""
    each, own = zip(*itertools.product(temperatures, seeds), strict=True)
    networks, examples = hinton2015.networks, teacher.answered(study.train._asdict())
    recipe = study.pick(mnist.STUDENT, QUICK)
    cohort = networks.Cohort(study, networks.mlp_spec(study, (width, width)), recipe, examples, own)
    trained = networks.distil(cohort, f"temperature/width_{width}", temperature=each)
    counted = networks.test_errors(study, trained)
    return np.array(counted).reshape(len(temperatures), len(seeds))


def claims(errors: dict[int, np.ndarray], temperatures: tuple[float, ...]) -> list[Claim]:
    """Put the best temperatures, and the paper's two sentences as differences in errors."""
    found = []
    for width, e in errors.items():
        best = float(temperatures[int(e.mean(1).argmin())])
        paper = "2.5 to 4" if width <= NARROW else ""
        found.append(Claim(f"best temperature, {width} units", paper, (best,), unit="(T)"))
        at = dict(zip(temperatures, e, strict=True))
        found += differences(width, at) if width <= NARROW else []
        found += differences_above(width, at) if width >= WIDE else []
    return found


def differences(width: int, at: dict[float, np.ndarray]) -> list[Claim]:
    """Compare errors with those at the paper's best temperatures, seed by seed, in %."""
    good = [t for t in at if GOOD[0] <= t <= GOOD[1]]
    if not good:
        return []
    what, mean = f"over 2.5 to 4, {width} units", np.mean([at[t] for t in good], axis=0)
    return [_over(f"T = {t:g} {what}", "more", at[t], mean) for t in at if t not in good]


def differences_above(width: int, at: dict[float, np.ndarray]) -> list[Claim]:
    """Compare errors at high temperatures with those at 8, seed by seed, in %."""
    what, above = f"over T = 8, {width} units", [t for t in at if t > HIGH and HIGH in at]
    return [_over(f"T = {t:g} {what}", "about equal", at[t], at[HIGH]) for t in above]


def _over(what: str, paper: str, errors: np.ndarray, others: np.ndarray) -> Claim:
    changes = 100 * (errors / others - 1)
    return Claim(what, paper, tuple(changes.tolist()), unit="% more", headline=True)


def intervals(found: list[Claim]) -> list[Table]:
    """Lay out what differences there are, with the 95 % intervals of their means over seeds."""
    rows = []
    for claim in found:
        if len(claim.ours) > 1:
            rows.append((claim.what, f"{np.mean(claim.ours):+.1f} %", interval(claim.ours)))
    return [runs.report.Table(("errors at", "more", "95 %"), rows, "Differences")] if rows else []


if __name__ == "__main__":
    run_script("temperature", __doc__, run, settings_type=Settings)
