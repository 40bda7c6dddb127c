"""Plots of measured values with their deviation: along lines, and name by name."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kdjax.runs.report._drawing import (
    LABEL,
    Cell,
    Drawing,
    legend,
    logarithmic,
    plain_figure,
)
from kdjax.runs.report._style import LINE_COLORS


class Line(NamedTuple):
    """Values at positions, [points], and their standard deviation where there is one."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    sd: Sequence[float] | np.ndarray | None = None
    dashed: bool = False


def plot_lines(
    lines: Mapping[str, Line], *, xlabel: str, ylabel: str, log_x: bool = False, log_y: bool = False
) -> Drawing:
    """Draw lines in one pair of axes, whiskers for one standard deviation.

    Args:
        lines: by name, in the order of the legend.
        xlabel: name and unit of the positions.
        ylabel: name and unit of the values.
        log_x: whether the axis of positions is logarithmic; each position is a tick then.
        log_y: whether the axis of values is logarithmic.

    Returns:
        The figure; its label says in words where the lines begin and end.
    """
    figure, axes = plain_figure(3.8, grid="y")
    for (name, line), color in zip(lines.items(), itertools.cycle(LINE_COLORS), strict=False):
        style = "o--" if line.dashed else "o-"
        x, y, sd, _ = line
        axes.errorbar(x, y, sd, fmt=style, color=color, label=name, markersize=4, capsize=2)
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({float(x) for line in lines.values() for x in line.x})
        if len(ticks) <= 12:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if log_y:
        logarithmic(axes, np.concatenate([np.asarray(line.y) for line in lines.values()]))
    axes.set_xlabel(xlabel, **LABEL)
    axes.set_ylabel(ylabel, **LABEL)
    legend(figure, axes)
    ends = [f"{name}: {line.y[0]:.4g} to {line.y[-1]:.4g}" for name, line in lines.items()]
    figure.set_label(f"{ylabel} by {xlabel}. " + "; ".join(ends) + ".")
    figure.rows = [["line", xlabel, ylabel, "standard deviation"], *_points(lines)]
    return figure


def plot_dots(
    values: Mapping[str, Sequence[float]], *, xlabel: str, baseline: float | None = None
) -> Drawing:
    """Draw a row per name: a dot per value, a bar at their mean.

    Args:
        values: by name, the first on top.
        xlabel: what they are, with the unit.
        baseline: where a line is drawn across all rows.

    Returns:
        The figure; its label says in words the mean of each row.
    """
    figure, axes = plain_figure(0.9 + 0.2 * len(values), grid="x")
    for row, found in enumerate(values.values()):
        axes.plot(found, [row] * len(found), "o", color=LINE_COLORS[0], markersize=4)
        axes.plot(np.mean(found), row, "|", color=LINE_COLORS[0], markersize=12, mew=2)
    if baseline is not None:
        axes.axvline(baseline, color=LINE_COLORS[1], linestyle="--")
    axes.set_yticks(range(len(values)), list(values), parse_math=False)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlabel(xlabel, **LABEL)
    means = {name: float(np.mean(own)) for name, own in values.items()}
    line = "" if baseline is None else f" The line is at {baseline:.2f}."
    said = "; ".join(f"{name}: {mean:.2f}" for name, mean in means.items())
    figure.set_label(f"{xlabel}, means: {said}.{line}")
    rows: list[Sequence[Cell]] = [[name, float(x)] for name, own in values.items() for x in own]
    figure.rows = [["row", xlabel], *rows]
    return figure


def _points(lines: Mapping[str, Line]) -> Iterator[Sequence[Cell]]:
    for name, (x, y, sd, _) in lines.items():
        for i in range(len(x)):
            yield [name, float(x[i]), float(y[i]), "" if sd is None else float(sd[i])]
