"""The lines of `metrics.jsonl`, and the curves in them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

PHASES = {
    "teacher": "Teacher",
    "scratch": "Student, labels alone",
    "distilled": "Student, distilled",
}
"""The kinds of trainings of a distillation, and what they are called; other names are shown."""
SHORT = {"teacher": "Teacher", "scratch": "Labels alone", "distilled": "Distilled"}
Row = Mapping[str, Any]
SPLITS = {"train": ("training", "--"), "validation": ("validation", "-")}
"""What is drawn of a training: each split, its name and its style."""
Curve = tuple[np.ndarray, np.ndarray]


def curves(rows: Iterable[Row], phase: str, split: str, name: str) -> dict[int, Curve]:
    """Collect a metric of a training as `{seed: (steps, values)}`, steps ascending."""
    points: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.get("phase") == phase and row.get("split") == split and row.get(name) is not None:
            points[row["seed"]][row["step"]] = float(row[name])
    return {
        seed: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for seed, values in sorted(points.items())
    }


def phases_of(rows: Iterable[Row]) -> list[str]:
    """Return what was trained, those of a distillation in the order of `PHASES`."""
    found = dict.fromkeys(row["phase"] for row in rows if row.get("split") in SPLITS)
    return [phase for phase in PHASES if phase in found] + [x for x in found if x not in PHASES]


def title_of(phase: str) -> str:
    """Return what a training is called in figures and tables."""
    title = PHASES.get(phase, phase.replace("_", " "))
    return title[:1].upper() + title[1:]


def name_of(phase: str) -> str:
    """Return what a network is called in tables, shortly."""
    return SHORT.get(phase) or title_of(phase)


def mean_curve(by_seed: Mapping[int, Curve]) -> Curve:
    """Average over seeds, at the steps that all of them have."""
    points = [dict(zip(*curve, strict=True)) for curve in by_seed.values()]
    shared = sorted(set.intersection(*map(set, points))) if points else []
    means = [float(np.mean([values[step] for values in points])) for step in shared]
    return np.array(shared), np.array(means)


def training_loss(rows: Iterable[Row]) -> str:
    """Return the loss to compare trainings by: that of the labels, if all rows have it."""
    train = [row for row in rows if row.get("split") == "train"]
    return "loss/hard" if train and all("loss/hard" in row for row in train) else "loss"
