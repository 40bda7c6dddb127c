"""The plots of a run, as figures of their own: without pyplot and its global state."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from kdjax.runs.numbers import numbers
from kdjax.runs.report._columns import ACCURACY, columns_of, measured_in
from kdjax.runs.report._curves import Row, curves, mean_curve, training_loss
from kdjax.runs.report._distillation import PHASES, Summary
from kdjax.runs.report._style import INK, MUTED, PHASE_COLORS, RULE, SOFT

WIDTH = 7.6
TEXT, SMALL = 10, 9
LABEL: dict[str, Any] = {"fontsize": SMALL, "color": MUTED}
"""How the name of an axis is written."""
_SPLITS = {"train": ("training", "--"), "validation": ("validation", "-")}


def plot_curves(rows: Sequence[Row]) -> Figure:
    """Draw loss and accuracy, or what else is measured, of every training against its steps.

    Loss is that of the labels (cross-entropy), which the trainings share, where the rows have it.

    Args:
        rows: the lines of `metrics.jsonl`, with phase, seed, step, split and metrics.

    Returns:
        A column per training; dashed lines are the training batches, solid ones the validation
        examples, thin ones single seeds, bold ones their mean.
    """
    phases = [phase for phase in PHASES if any(row.get("phase") == phase for row in rows)]
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    figure.set_label(_describe_curves(rows, phases))
    columns = max(1, len(phases))
    grid = figure.subplots(2, columns, sharex="col", sharey="row", squeeze=False)
    loss, column = training_loss(rows), measured_in(rows)
    for (top, bottom), phase in zip(grid.T, phases, strict=False):
        _draw_curves(top, rows, phase, {"train": loss, "validation": "loss"}, scale=1)
        measured = {"train": column.key, "validation": column.key}
        _draw_curves(bottom, rows, phase, measured, column.scale)
        top.set_title(PHASES[phase], fontsize=TEXT, color=PHASE_COLORS[phase], weight="bold")
        bottom.set_xlabel("steps", **LABEL)
    for axes in grid.flat:
        plain(axes, grid="y")
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    _scale_loss(grid[0])
    names = ("cross-entropy (nats)", "loss (nats)")
    if column is ACCURACY:
        _scale_accuracy(grid[1])
    else:
        names = ("loss of the labels", "loss")
    grid[0, 0].set_ylabel(names[loss != "loss/hard"])
    grid[1, 0].set_ylabel(column.named)
    for axes in grid[:, 0]:
        axes.yaxis.label.set(color=INK, fontsize=SMALL)
    _split_legend(grid[0, 0], rows)
    return figure


def plot_errors(summary: Summary, *, first_seed: int = 0) -> Figure:
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
            axes.plot(errors, range(len(errors)), marker, color=color, markersize=8, label=title)
    teacher = float(np.mean(found["teacher"]))
    axes.axvline(teacher, color=PHASE_COLORS["teacher"], linestyle="--", label="Teacher")
    axes.set_yticks(range(num_seeds), [f"seed {first_seed + i}" for i in range(num_seeds)])
    axes.set_ylim(num_seeds - 0.4, -0.6)
    counts = column.key == "test_errors"
    if counts:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=counts))
    axes.set_xlabel("test errors (images)" if counts else column.named, **LABEL)
    legend(figure, axes)
    pairs = "; ".join(f"{b:g} and {a:g}" for b, a in zip(scratch, distilled, strict=False))
    figure.set_label(
        f"{column.title} from labels alone and distilled, by seed: {pairs}. Teacher: {teacher:g}."
    )
    return figure


def plot_dark_knowledge(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Figure:
    """Draw images beside the teacher's probabilities, at T = 1 and softened.

    Args:
        images: [n, height, width, channels], one channel or three.
        labels: [n], integer classes.
        teacher_logits: [n, num_classes].
        label_names: [num_classes].
        temperature: T > 0.

    Returns:
        A row per image; all classes if there are ten at most, otherwise the five most likely.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    num_classes = np.shape(teacher_logits)[1]
    num_bars = num_classes if num_classes <= 10 else 5
    sharp, soft = _softmax(teacher_logits, 1.0), _softmax(teacher_logits, temperature)
    height = max(1.1, 0.18 * num_bars + 0.25)
    figure = Figure(figsize=(WIDTH, 0.55 + height * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 3, squeeze=False, sharex="col", width_ratios=(1.15, 2, 2))
    for (picture, left, right), image, label, p, q in zip(
        grid, images, labels, sharp, soft, strict=True
    ):
        classes = np.arange(num_classes) if num_classes <= 10 else np.argsort(-q)[:num_bars]
        names = [str(label_names[int(c)]) for c in classes]
        _show_image(picture, image, images, str(label_names[label]))
        _bars(left, 100 * p[classes], names, classes == label, limit=100)
        _bars(right, 100 * q[classes], None, classes == label, limit=100 * soft.max())
    for axes, title in zip(grid[0, 1:], ("T = 1", f"T = {temperature:g}"), strict=True):
        axes.set_title(title, fontsize=TEXT, color=INK, weight="bold")
    for axes in grid[-1, 1:]:
        axes.set_xlabel("probability (%)", **LABEL)
    figure.set_label(_describe_pictures(labels, sharp, soft, label_names, temperature))
    return figure


def plot_instructive(
    images: Any,
    labels: np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Figure:
    """Draw the images that `select_instructive` chooses, as `plot_dark_knowledge` does."""
    shown = select_instructive(teacher_logits, labels, temperature)
    pictures, logits = np.asarray(images[shown], np.uint8), teacher_logits[shown]
    return plot_dark_knowledge(pictures, labels[shown], logits, label_names, temperature)


def select_instructive(
    teacher_logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    temperature: float,
    *,
    num_images: int = 6,
) -> np.ndarray:
    """Choose images the teacher is sure about, whose second class softening brings out most.

    Args:
        teacher_logits: [n, num_classes].
        labels: [n], integer classes.
        temperature: T > 0.
        num_images: how many; one per class before a second of any.

    Returns:
        [num_images] indices, or fewer if there are fewer images, most instructive first. Images
        that the teacher gets wrong or doubts at T = 1 come only where the others do not suffice.
    """
    labels = np.asarray(labels)
    sharp, soft = _softmax(teacher_logits, 1.0), _softmax(teacher_logits, temperature)
    doubted = (sharp.argmax(-1) != labels) | (sharp.max(-1) < 0.9)
    second = np.sort(soft, axis=-1)[:, -2]
    ranked = np.lexsort((-second, doubted))
    _, firsts = np.unique(labels[ranked], return_index=True)
    repeated = np.ones(len(labels), bool)
    repeated[ranked[firsts]] = False
    order: NDArray[np.intp] = np.lexsort((-second, repeated, doubted))
    return order[:num_images]


def _draw_curves(
    axes: Axes, rows: Sequence[Row], phase: str, names: dict[str, str], scale: float
) -> None:
    color = PHASE_COLORS[phase]
    for split, (_, style) in _SPLITS.items():
        by_seed = curves(rows, phase, split, names[split])
        if len(by_seed) > 1:
            for steps, values in by_seed.values():
                axes.plot(steps, scale * values, style, color=color, linewidth=0.7, alpha=0.35)
        steps, values = mean_curve(by_seed)
        # A single logged point is a line of no length.
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, scale * values, style, color=color, linewidth=1.8, marker=marker)


def _values(row: Sequence[Axes]) -> NDArray[np.float64]:
    """Return all finite values that are drawn in a row of axes."""
    drawn = [np.asarray(line.get_ydata(), float) for axes in row for line in axes.get_lines()]
    values: NDArray[np.float64] = np.concatenate([*drawn, np.zeros(0)])
    return values[np.isfinite(values)]


def _scale_loss(row: Sequence[Axes]) -> None:
    """Draw losses that span a decade on a logarithmic axis."""
    values = _values(row)
    if len(values) and values.min() > 0 and values.max() >= 10 * values.min():
        logarithmic(row[0], values)


def _scale_accuracy(row: Sequence[Axes]) -> None:
    """Let the first, low values leave the axis, so that the last ones can be told apart."""
    values = _values(row)
    if len(values):
        lowest = 5 * np.floor(np.percentile(values, 4) / 5)
        row[0].set_ylim(min(lowest, 95.0), 100.8 if values.max() > 90 else None)


def _split_legend(axes: Axes, rows: Sequence[Row]) -> None:
    drawn = {row.get("split") for row in rows} & _SPLITS.keys()
    for name, style in (_SPLITS[split] for split in _SPLITS if split in drawn):
        axes.plot([], [], style, color=MUTED, linewidth=1.8, label=name)
    if drawn:
        axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper right")


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


def legend(figure: Figure, axes: Axes) -> None:
    """Write the names of a plot's lines above it."""
    style: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "labelcolor": INK}
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper left", ncols=3, **style)


def plain_figure(height: float, *, grid: Literal["x", "y"]) -> tuple[Figure, Axes]:
    """Make a figure of one pair of plain axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
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


def _show_image(axes: Axes, image: np.ndarray, images: np.ndarray, name: str) -> None:
    gray = image.shape[-1] == 1
    options: dict[str, Any] = {"cmap": "gray", "vmin": images.min(), "vmax": images.max()}
    axes.imshow(image[..., 0] if gray else image, interpolation="none", **options if gray else {})
    axes.set_axis_off()
    axes.set_title(f"label: {name}", fontsize=SMALL, color=INK, parse_math=False)


def _bars(
    axes: Axes, percents: np.ndarray, names: list[str] | None, true: np.ndarray, *, limit: float
) -> None:
    plain(axes, grid="x")
    colors = [PHASE_COLORS["distilled"] if t else SOFT for t in true]
    positions = range(len(percents))
    bars = axes.barh(positions, percents, color=colors, height=0.72)
    numbers = [f"{percent:.0f}" if percent >= 0.5 else "" for percent in percents]
    axes.bar_label(bars, numbers, padding=3, fontsize=8, color=MUTED)
    axes.set_yticks(positions, names or [""] * len(percents), parse_math=False)
    axes.set_ylim(len(percents) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * limit)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for text, is_true in zip(axes.get_yticklabels(), true, strict=True):
        text.set_fontweight("bold" if is_true else "normal")


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    tempered = np.asarray(logits, np.float64) / temperature
    weights: np.ndarray = np.exp(tempered - tempered.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _describe_curves(rows: Sequence[Row], phases: Sequence[str]) -> str:
    ends, column = [], measured_in(rows)
    percent = " %" if column.scale == 100 else ""
    for phase in phases:
        for split in _SPLITS:
            _, values = mean_curve(curves(rows, phase, split, column.key))
            if len(values):
                ends.append(f"{PHASES[phase]}, {split}: {column.scale * values[-1]:.1f}{percent}")
    what = column.named.removesuffix(" (%)")
    return (
        f"Loss and {what} against steps. {what[0].upper()}{what[1:]} at the end: {'; '.join(ends)}."
    )


def _describe_pictures(
    labels: np.ndarray,
    sharp: np.ndarray,
    soft: np.ndarray,
    names: Sequence[str],
    temperature: float,
) -> str:
    sentences = [
        f"{names[label]}: {100 * p[label]:.0f} % at T = 1; at T = {temperature:g} "
        + ", ".join(f"{names[c]} {100 * q[c]:.0f} %" for c in np.argsort(-q)[:3])
        for label, p, q in zip(labels, sharp, soft, strict=True)
    ]
    return f"Test images and the teacher's probabilities. {'. '.join(sentences)}."
