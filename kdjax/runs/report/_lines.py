"""Plots of measured values with their deviation: along lines, and name by name."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kdjax.runs.report._plots import LABEL, legend, logarithmic, plain_figure
from kdjax.runs.report._style import LINE_COLORS


class Line(NamedTuple):
    """Values at positions, [points], and their standard deviation where there is one."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    sd: Sequence[float] | np.ndarray | None = None
    dashed: bool = False


def plot_lines(
    lines: Mapping[str, Line], *, xlabel: str, ylabel: str, log_x: bool = False, log_y: bool = False
) -> Figure:
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
    return figure


def plot_dots(
    values: Mapping[str, Sequence[float]], *, xlabel: str, baseline: float | None = None
) -> Figure:
    """Draw a row per name: a dot per value, a bar at their mean.

    Args:
        values: by name, the first on top.
        xlabel: what they are, with the unit.
        baseline: where a line is drawn across all rows.

    Returns:
        The figure; its label says in words what the first and the last row have.
    """
    figure, axes = plain_figure(1.0 + 0.2 * len(values), grid="x")
    for row, found in enumerate(values.values()):
        axes.plot(found, [row] * len(found), "o", color=LINE_COLORS[0], markersize=4)
        axes.plot(np.mean(found), row, "|", color=LINE_COLORS[0], markersize=12, mew=2)
    if baseline is not None:
        axes.axvline(baseline, color=LINE_COLORS[1], linestyle="--")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlabel(xlabel, **LABEL)
    ends = [(name, float(np.mean(values[name]))) for name in (next(iter(values)), [*values][-1])]
    said = "; ".join(f"{name}: {mean:.2f}" for name, mean in ends)
    figure.set_label(f"{xlabel}, first and last of {len(values)}: {said}.")
    return figure
