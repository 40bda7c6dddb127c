"""What all figures share: their width, their plain axes, and the numbers that they show."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kdjax.runs.report._style import INK, MUTED, RULE

# As wide as the column of a phone, where it is not scaled; a desktop shows two side by side.
WIDTH = 3.9
TEXT, SMALL, TINY = 9, 8.5, 8
LABEL: dict[str, Any] = {"fontsize": SMALL, "color": MUTED}
"""How the name of an axis is written."""
Cell = str | float | int


class Drawing(Figure):
    """A figure that keeps the numbers that it shows, `rows` under the names in the first of them.

    Its label says in words, with numbers, what there is to see.
    """

    rows: Sequence[Sequence[Cell]] = ()


def plain_figure(height: float, *, grid: Literal["x", "y"]) -> tuple[Drawing, Axes]:
    """Make a figure of one pair of plain axes."""
    figure = Drawing(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    plain(axes, grid=grid)
    return figure, axes


def plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """Reduce axes to the data, light rules behind them, and numbers."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=INK, color=RULE)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=RULE, linewidth=0.7)


def legend(figure: Figure, axes: Axes, *, columns: int = 2) -> None:
    """Write the names of a plot's lines above it."""
    style: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "labelcolor": INK}
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper left", ncols=columns, borderpad=0, **style)


def logarithmic(axes: Axes, values: np.ndarray) -> None:
    """Draw values by their logarithm where they have one, with plain numbers beside the axis."""
    axes.set_yscale("log")
    values = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(values.max() / values.min()) if values.size else 0.0
    few, more, most = (1.0,), (1.0, 2.0, 5.0), (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    ticks = few if decades > 2 else more if decades >= 1 else most
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities of logits [..., classes], of one logit those of its two classes."""
    # What is not finite must not stop a page.
    tempered = np.nan_to_num(np.asarray(logits, np.float64)) / temperature
    if tempered.shape[-1] == 1:
        tempered = np.concatenate([np.zeros_like(tempered), tempered], -1)
    weights: np.ndarray = np.exp(tempered - tempered.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def tabulated(columns: Mapping[str, Sequence[Cell]]) -> list[Sequence[Cell]]:
    """Return columns by name as rows under their names."""
    return [list(columns), *zip(*columns.values(), strict=True)]
