"""What a training says while it runs: lines of `metrics.jsonl`, and notes on the console."""

import time
from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import metrics
from kdjax.runs.console import say
from kdjax.runs.evaluation import Run

# What the console shows beside the loss: the first that is measured.
_SHARES = (
    ("mean_average_precision", "mAP {:.3f}"),
    ("r_squared", "R² {:.3f}"),
    ("recall_at_1", "finds {:.1%}"),
    ("mean_iou", "IoU {:.3f}"),
    ("accuracy", "{:.1%} right"),
    ("agreement", "agrees on {:.1%}"),
)

ScoreFn = Callable[[Mapping[str, Any]], tuple[Any, Any]]
"""What the best has most of, a metric made of those of validation."""


class TrainingLog:
    """What a training says while it runs, in the log of the run and on the console."""

    def __init__(self, run: Run, phase: str, seed: int | None, label: str, num_steps: int):
        self.run, self.label, self.num_steps = run, label, num_steps
        self.phase, self.seed = phase, seed
        self.notes = {"train": ""}
        # Of a task: what means nothing, and what the best has most of.
        self.hides: Collection[str] = ()
        self.score_fn: ScoreFn = itemgetter("accuracy")
        self.update: Callable[[int, str], None] = lambda step, note: None

    @property
    def owner(self) -> dict[str, Any] | None:
        """What tells the checkpoints of the training from those of others."""
        return self.run.owner(self.phase, self.seed)

    def goes_on(self, start: int) -> None:
        """Drop what was logged behind the step that training goes on from."""
        self.run.log.rewind(self.phase, self.seed, start)
        if start:
            done = "is trained" if start == self.num_steps else f"goes on from step {start}"
            say(f"{self.label:<14} {done} (read from its checkpoint)")
        if start < self.num_steps:
            self.run.begin()
        self.began = time.perf_counter() - self.run.log.seconds(self.phase, self.seed)

    def ended(self, directory: Path) -> None:
        """Raise a ValueError where lines of the training, kept in a directory, are lost."""
        self.run.log.whole(self.phase, self.seed, self.num_steps, kept=directory)

    def write(self, at: int, split: str, measured: Mapping[str, Any]) -> None:
        """Log metrics of a split, and show them."""
        shown = {name: metric for name, metric in measured.items() if name not in self.hides}
        numbers = {name: _number(metric) for name, metric in shown.items()}
        seconds = round(time.perf_counter() - self.began, 3)
        of = {"phase": self.phase, "seed": self.seed, "step": at, "split": split}
        self.run.log.append(**of, **numbers, seconds=seconds)
        shares = [words.format(numbers[name]) for name, words in _SHARES if name in numbers]
        self.notes[split] = ", ".join([f"{split} loss {numbers['loss']:.3f}", *shares[:1]])
        if split == "train" and (skipped := int(np.sum(measured.get("skipped", (0, 0))[0]))):
            say(f"{self.label} skipped {skipped} non-finite steps up to step {at}")
        self.update(at, "  ".join(filter(None, self.notes.values())))


def _number(metric: tuple[Any, Any]) -> float:
    """Turn a metric into a number, those of several members into their mean."""
    total, count = metric
    if np.ndim(count) == 0:
        return metrics.value(metric)
    return float(np.mean([metrics.value(own) for own in zip(total, count, strict=True)]))
