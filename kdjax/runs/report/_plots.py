"""The plots of trainings, as figures of their own: without pyplot and its global state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kdjax.runs.numbers import numbers
from kdjax.runs.report._columns import ACCURACY, Column, Summary, columns_of, measured_in
from kdjax.runs.report._curves import (
    PHASES,
    SPLITS,
    Row,
    curves,
    mean_curve,
    phases_of,
    title_of,
    training_loss,
)
from kdjax.runs.report._drawing import (
    LABEL,
    WIDTH,
    Cell,
    Drawing,
    legend,
    logarithmic,
    plain,
    plain_figure,
    tabulated,
)
from kdjax.runs.report._style import MUTED, PHASE_COLORS, RULE, colors_of


def plot_curves(rows: Sequence[Row]) -> Drawing:
    """Draw loss and accuracy, or what else is measured, of every training against its steps.

    Loss is that of the labels (cross-entropy), which the trainings share, where the rows have it.

    Args:
        rows: the lines of `metrics.jsonl`, with phase, seed, step, split and metrics.

    Returns:
        Loss above what is measured, a color for each training; dashed lines are the training
        batches, solid ones the validation examples, thin ones single seeds, bold ones their mean.
    """
    phases, column = phases_of(rows), measured_in(rows)
    figure = Drawing(figsize=(WIDTH, 4.6), layout="constrained")
    figure.set_label(_describe_curves(rows, phases, column))
    figure.rows = _tabulated(rows, column)
    top, bottom = figure.subplots(2, 1, sharex=True)
    loss = training_loss(rows)
    for phase, color in colors_of(phases).items():
        _draw_curves(top, rows, phase, {"train": loss, "validation": "loss"}, color)
        measured = {"train": column.key, "validation": column.key}
        _draw_curves(bottom, rows, phase, measured, color, column.scale)
        top.plot([], [], color=color, linewidth=1.8, label=title_of(phase))
    for axes in (top, bottom):
        plain(axes, grid="y")
    bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    bottom.set_xlabel("steps", **LABEL)
    _scale_loss(top)
    names = ("cross-entropy (nats)", "loss (nats)")
    if column is ACCURACY:
        _scale_accuracy(bottom)
    else:
        names = ("loss of the labels", "loss")
    top.set_ylabel(names[loss != "loss/hard"], **LABEL)
    bottom.set_ylabel(column.named, **LABEL)
    for split, (name, style) in SPLITS.items():
        if any(row.get("split") == split for row in rows):
            top.plot([], [], style, color=MUTED, linewidth=1.8, label=name)
    if phases:
        legend(figure, top)
    return figure


def plot_errors(summary: Summary, *, first_seed: int = 0) -> Drawing:
    """Draw the test errors, or what else counts, of both students by seed, and the teacher's.

    Args:
        summary: as `format_table` takes it.
        first_seed: the seed that the others count up from.

    Returns:
        A line per seed from the student of labels alone to the distilled one.
    """
    column = columns_of(summary)[0]
    found = {
        phase: np.multiply(column.scale, numbers(x[column.key])) for phase, x in summary.items()
    }
    distilled = found["distilled"]
    scratch = found.get("scratch", distilled[:0])
    num_seeds = max(len(scratch), len(distilled))
    figure, axes = plain_figure(1.5 + 0.3 * num_seeds, grid="x")
    for seed, (before, after) in enumerate(zip(scratch, distilled, strict=False)):
        axes.plot([before, after], [seed, seed], color=RULE, linewidth=3)
    for phase, errors, marker in (("scratch", scratch, "o"), ("distilled", distilled, "D")):
        color, title = PHASE_COLORS[phase], PHASES[phase]
        if len(errors):
            axes.plot(errors, range(len(errors)), marker, color=color, markersize=7, label=title)
    teacher = float(np.mean(found["teacher"]))
    axes.axvline(teacher, color=PHASE_COLORS["teacher"], linestyle="--", label="Teacher")
    names = [f"seed {first_seed + i}" for i in range(num_seeds)]
    axes.set_yticks(range(num_seeds), names)
    axes.set_ylim(num_seeds - 0.4, -0.6)
    counts = column.key == "test_errors"
    if counts:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=counts))
    axes.set_xlabel("test errors (images)" if counts else column.named, **LABEL)
    legend(figure, axes)
    pairs = "; ".join(f"{b:g} and {a:g}" for b, a in zip(scratch, distilled, strict=False))
    figure.set_label(
        f"{column.title} from labels alone and distilled, by seed: {pairs}. Teacher: {teacher:g}."
    )
    by_seed = {"scratch": scratch, "distilled": distilled}
    figure.rows = tabulated(
        {"seed": names} | {k: v.tolist() for k, v in by_seed.items() if len(v)}
        | {"teacher": [teacher] * num_seeds}
    )  # fmt: skip
    return figure


def _draw_curves(
    axes: Axes,
    rows: Sequence[Row],
    phase: str,
    names: dict[str, str],
    color: str,
    scale: float = 1.0,
) -> None:
    for split, (_, style) in SPLITS.items():
        by_seed = curves(rows, phase, split, names[split])
        if len(by_seed) > 1:
            for steps, values in by_seed.values():
                axes.plot(steps, scale * values, style, color=color, linewidth=0.6, alpha=0.3)
        steps, values = mean_curve(by_seed)
        # A single logged point is a line of no length.
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, scale * values, style, color=color, linewidth=1.6, marker=marker)


def _values(axes: Axes) -> NDArray[np.float64]:
    """Return all finite values that are drawn."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    values: NDArray[np.float64] = np.concatenate([*drawn, np.zeros(0)])
    return values[np.isfinite(values)]


def _scale_loss(axes: Axes) -> None:
    """Draw losses that span a decade on a logarithmic axis."""
    values = _values(axes)
    if len(values) and values.min() > 0 and values.max() >= 10 * values.min():
        logarithmic(axes, values)


def _scale_accuracy(axes: Axes) -> None:
    """Let the first, low values leave the axis, so that the last ones can be told apart."""
    values = _values(axes)
    if len(values):
        lowest = 5 * np.floor(np.percentile(values, 4) / 5)
        axes.set_ylim(min(lowest, 95.0), 100.8 if values.max() > 90 else None)


def _tabulated(rows: Sequence[Row], column: Column) -> list[Sequence[Cell]]:
    names = ["phase", "seed", "split", "step", "loss", "loss/hard", column.key]
    drawn = [row for row in rows if row.get("split") in SPLITS]
    return [names, *([row.get(name, "") for name in names] for row in drawn)]


def _describe_curves(rows: Sequence[Row], phases: Sequence[str], column: Column) -> str:
    percent = " %" if column.scale == 100 else ""
    ends = []
    for phase in phases:
        for split in SPLITS:
            _, values = mean_curve(curves(rows, phase, split, column.key))
            if len(values):
                ends.append(f"{title_of(phase)}, {split}: {column.scale * values[-1]:.1f}{percent}")
    what = column.named.removesuffix(" (%)")
    return (
        f"Loss and {what} against steps. {what[0].upper()}{what[1:]} at the end: {'; '.join(ends)}."
    )
