"""Whether networks are right as often as they say, and what chance makes of differences."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kdjax import metrics
from kdjax.metrics._intervals import bins_of
from kdjax.runs.report._curves import name_of, title_of
from kdjax.runs.report._drawing import LABEL, Cell, Drawing, legend, plain_figure, softmax
from kdjax.runs.report._page import Section, Table
from kdjax.runs.report._style import MUTED, colors_of

NUM_BINS, LEAST, FEWEST = 15, 5, 10
"""Bins of confidence, how many examples one has at least that is drawn, and from how many up there
are intervals."""


class Judged(NamedTuple):
    """What a network says of examples: how sure it is, and whether it is right, [examples]."""

    confidence: np.ndarray
    correct: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """The share that is right of each example, in per cent."""
        return np.where(self.correct, 100.0, 0.0)


class Bins(NamedTuple):
    """Examples by confidence: how many, how sure, how often right, and what chance allows, %."""

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


def judged(logits: np.ndarray, labels: np.ndarray) -> Judged:
    """Hold a network against labels.

    Args:
        logits: [examples, num_classes], or [examples, 1] of two classes.
        labels: [examples], integer classes.
    """
    probs = softmax(np.asarray(logits, np.float32))
    return Judged(probs.max(-1), probs.argmax(-1) == np.asarray(labels))


def calibration_section(networks: Mapping[str, Judged], *, unit: str = "examples") -> Section:
    """Show in numbers and in a figure whether networks are as often right as they say.

    Args:
        networks: a network of each kind.
        unit: what they are held against.
    """
    caption = (
        f"How often a network is right against how sure it is, in {NUM_BINS} bins of confidence; a "
        f"larger dot has more {unit}. A bar is where 95 % of the draws fall if the network is "
        "calibrated; on the dotted line it is right as often as it says. Bins of fewer than "
        f"{LEAST} {unit} are left out."
    )
    figures = {"reliability": (plot_reliability(networks), caption)}
    tables = [calibration_table(networks, unit=unit)]
    return Section("Are they right as often as they say?", tables, figures)


def calibration_error(own: Judged) -> float:
    """Return the expected calibration error."""
    gaps = own.confidence - own.correct
    return float(np.abs(np.bincount(bins_of(own.confidence, NUM_BINS), gaps)).sum() / len(gaps))


def calibration_table(networks: Mapping[str, Judged], *, unit: str = "examples") -> Table:
    """Tabulate calibration errors beside those that calibrated networks show by chance.

    Args:
        networks: a network of each kind.
        unit: what they are held against.

    Returns:
        A line per network, with a verdict: not distinguishable from calibrated where the error is
        not above the range of 95 % of the draws of `kdjax.metrics.calibrated_range`.
    """
    rows = []
    for phase, own in networks.items():
        error = calibration_error(own)
        low, high = metrics.calibrated_range(own.confidence)
        sure = "overconfident" if own.confidence.mean() > own.correct.mean() else "underconfident"
        verdict = sure if error > high else "not distinguishable from calibrated"
        between = f"{100 * low:.2f} to {100 * high:.2f}"
        rows.append([name_of(phase), f"{100 * error:.2f}", between, verdict])
    count = len(next(iter(networks.values())).confidence)
    note = (
        "The calibration error, beside what 95 % of perfectly calibrated networks as sure as these "
        f"show on {count:,} {unit}: labels were drawn from their own confidences 1,000 times."
    )
    columns = ["", "Error (%)", "By chance (%)", "Verdict"]
    return Table(columns, rows, note=note)


def plot_reliability(networks: Mapping[str, Judged]) -> Drawing:
    """Draw how often networks are right against how sure they are, by bins of confidence.

    Args:
        networks: a network of each kind.

    Returns:
        A dot for each bin, larger where it has more examples; a bar is where 95 % of the draws of
        a calibrated network fall. Bins of fewer than `LEAST` examples are in its numbers alone.
    """
    figure, axes = plain_figure(3.9, grid="y")
    axes.plot([0, 100], [0, 100], ":", color=MUTED, linewidth=1)
    rows: list[Sequence[Cell]] = [["network", *Bins._fields]]
    colors = colors_of(networks)
    for phase, own in networks.items():
        bins, color = _binned(own), colors[phase]
        few = bins.examples < LEAST
        x, y, low, high = (np.where(few, np.nan, values) for values in bins[1:])
        axes.vlines(x, low, high, color=color, alpha=0.35, linewidth=4)
        axes.scatter(x, y, 12 + 100 * bins.examples / len(own.correct), color=color)
        axes.plot([], [], "o", color=color, markersize=5, label=title_of(phase))
        rows += [[phase, *map(float, values)] for values in np.round(np.stack(bins, 1), 4)]
    axes.set(xlim=(0, 102), ylim=(-2, 104))
    axes.set_xlabel("how sure: mean confidence of a bin (%)", **LABEL)
    axes.set_ylabel("how often right (%)", **LABEL)
    legend(figure, axes)
    said = "; ".join(
        f"{title_of(phase)}: {100 * own.confidence.mean():.1f} % sure on average, "
        f"{100 * own.correct.mean():.1f} % right"
        for phase, own in networks.items()
    )
    figure.set_label(f"Accuracy against confidence, in {NUM_BINS} bins. {said}.")
    figure.rows = rows
    return figure


def difference_note(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    *,
    against: str = "labels alone",
    what: str = "points of accuracy",
    unit: str = "test examples",
) -> str:
    """Say how much is gained, with an interval by paired bootstrap.

    Args:
        before: scores of networks by seed, [examples] each, in the unit that is written.
        after: those of others by seed, on the same examples.
        against: what the first have learned from.
        what: the unit of the scores.
        unit: what they are scores of.

    Returns:
        A sentence or two; nothing where there are too few to draw from.
    """
    if len(before[0]) < FEWEST:
        return ""
    gain, low, high = metrics.paired_bootstrap(before, after)
    num_seeds, count = len(before), len(before[0])
    seeds = f" and the {num_seeds} seeds" if num_seeds > 1 else " alone: there is one seed"
    unsure = " Chance alone may make such a difference." if low <= 0 <= high else ""
    digits = 2 if max(abs(low), abs(high)) >= 0.1 else 4
    return (
        f"Against {against}: {gain:+.{digits}f} {what}, 95 % interval {low:+.{digits}f} to "
        f"{high:+.{digits}f}, by paired bootstrap over the {count:,} {unit}{seeds}.{unsure}"
    )


def _binned(own: Judged) -> Bins:
    """Return what is in the bins that are not empty."""
    bins = bins_of(own.confidence, NUM_BINS)
    count = np.bincount(bins, minlength=NUM_BINS)
    filled = count > 0

    def percent(values: np.ndarray) -> np.ndarray:
        means: np.ndarray = 100 * values[..., filled] / count[filled]
        return means

    sure, right = (np.bincount(bins, x, NUM_BINS) for x in own)
    drawn = metrics.calibrated_gaps(own.confidence, num_samples=300)
    gaps = np.quantile(drawn, (0.975, 0.025), axis=0)
    return Bins(count[filled], *map(percent, (sure, right, sure - gaps[0], sure - gaps[1])))
