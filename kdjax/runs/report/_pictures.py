"""Images beside the distributions of networks over their classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kdjax.runs.report._drawing import SMALL, TEXT, TINY, WIDTH, Cell, Drawing, softmax
from kdjax.runs.report._style import INK, MUTED, PHASE_COLORS, RULE, SOFT

# In inches: the picture, where bars begin, how long they are, and how far apart.
_PICTURE, _BARS, _LONGEST, _PITCH, _HEAD = 0.82, (1.64, 2.8), 0.7, 0.165, 0.3


class Shown(NamedTuple):
    """An image, what is written above it, and percentages of its likeliest classes by column."""

    image: np.ndarray
    title: str
    classes: list[int]
    label: int
    percents: list[np.ndarray]


def plot_dark_knowledge(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Drawing:
    """Draw images beside the teacher's probabilities, at T = 1 and softened.

    Args:
        images: [n, height, width, channels], one channel or three.
        labels: [n], integer classes.
        teacher_logits: [n, num_classes].
        label_names: [num_classes].
        temperature: T > 0.

    Returns:
        A row per image; its five likeliest classes, in the order of the classes.
    """
    columns = {f"T = {t:g}": softmax(teacher_logits, t) for t in (1.0, temperature)}
    return _plot_pictures("Test images and the teacher's probabilities", images, labels, columns,
                          label_names)  # fmt: skip


def plot_instructive(
    images: Any,
    labels: np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Drawing:
    """Draw the images that `select_instructive` chooses, as `plot_dark_knowledge` does."""
    shown = select_instructive(teacher_logits, labels, temperature)
    pictures, logits = np.asarray(images[shown], np.uint8), teacher_logits[shown]
    return plot_dark_knowledge(pictures, labels[shown], logits, label_names, temperature)


def plot_disagreements(
    images: Any,
    labels: np.ndarray,
    teacher_logits: np.ndarray,
    student_logits: np.ndarray,
    label_names: Sequence[str],
) -> Drawing:
    """Draw the images that `select_disagreements` chooses, beside what both networks say.

    Args:
        images: [n, height, width, channels], one channel or three, in memory or read when indexed.
        labels: [n], integer classes.
        teacher_logits: [n, num_classes], or [n, 1] of two classes.
        student_logits: likewise.
        label_names: [num_classes].

    Returns:
        A row per image, with the probabilities of both at T = 1.
    """
    shown = select_disagreements(teacher_logits, student_logits)
    pictures = np.asarray(images[shown], np.uint8)
    named = {"Teacher": teacher_logits, "Student": student_logits}
    columns = {name: softmax(logits[shown]) for name, logits in named.items()}
    return _plot_pictures("Test images and what teacher and student say", pictures, labels[shown],
                          columns, label_names)  # fmt: skip


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
    sharp, soft = softmax(teacher_logits), softmax(teacher_logits, temperature)
    doubted = (sharp.argmax(-1) != labels) | (sharp.max(-1) < 0.9)
    second = np.sort(soft, axis=-1)[:, -2]
    ranked = np.lexsort((-second, doubted))
    _, firsts = np.unique(labels[ranked], return_index=True)
    repeated = np.ones(len(labels), bool)
    repeated[ranked[firsts]] = False
    order: NDArray[np.intp] = np.lexsort((-second, repeated, doubted))
    return order[:num_images]


def select_disagreements(
    teacher_logits: np.ndarray, student_logits: np.ndarray, *, num_images: int = 6
) -> np.ndarray:
    """Choose the images where KL(teacher || student) at T = 1 is largest, the worst first.

    Args:
        teacher_logits: [n, num_classes], or [n, 1] of two classes.
        student_logits: likewise.
        num_images: how many.

    Returns:
        [num_images] indices, or fewer if there are fewer images.
    """
    teacher, student = (np.maximum(softmax(z), 1e-30) for z in (teacher_logits, student_logits))
    divergence = np.sum(teacher * np.log(teacher / student), axis=-1)
    return np.argsort(-divergence, kind="stable")[:num_images]


def _plot_pictures(
    about: str,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> Drawing:
    """Draw images, [n, height, width, channels], beside a column of bars or two.

    All is drawn in one pair of axes, whose unit is an inch: a grid of axes takes seconds.

    Args:
        about: how the label begins.
        images: one channel or three.
        labels: [n], integer classes.
        columns: probabilities [n, num_classes] by what is written above them; the likeliest
            classes of their mean are shown.
        names: [num_classes].
    """
    likeliest = np.argsort(-sum(columns.values()), axis=-1)[:, :5]
    shown = [
        Shown(image, str(names[int(label)]), sorted(map(int, classes)), int(label),
              [100 * probs[i] for probs in columns.values()])
        for i, (image, label, classes) in enumerate(zip(images, labels, likeliest, strict=True))
    ]  # fmt: skip
    pitch = max(_PICTURE + 0.3, _PITCH * likeliest.shape[1] + 0.2)
    height = _HEAD + pitch * len(shown)
    figure = Drawing(figsize=(WIDTH, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    limits = [100 * probs.max() for probs in columns.values()]
    for x, title in zip(_BARS, columns, strict=False):
        style: dict[str, Any] = {"fontsize": TEXT, "color": INK, "weight": "bold"}
        axes.text(x, 0.14, title, va="center", **style)
    for row, own in enumerate(shown):
        top = _HEAD + pitch * row
        _draw_image(axes, own, images, top)
        _draw_bars(axes, own, names, limits, top + 0.08)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    figure.set_label(_describe(about, shown, list(columns), names))
    figure.rows = _tabulated(shown, list(columns), names)
    return figure


def _draw_image(axes: Axes, shown: Shown, images: np.ndarray, top: float) -> None:
    image, (height, width) = shown.image, shown.image.shape[:2]
    gray = image.shape[-1] == 1
    scale = _PICTURE / max(height, width)
    extent = 0.0, scale * width, top + 0.2 + scale * height, top + 0.2
    options: dict[str, Any] = {"extent": extent, "aspect": "auto", "interpolation": "none"}
    if gray:
        options |= {"cmap": "gray", "vmin": images.min(), "vmax": images.max()}
    axes.imshow(image[..., 0] if gray else image, **options)
    title = f"label: {_short(shown.title, 18)}"
    axes.text(0, top + 0.1, title, fontsize=SMALL, color=INK, va="center", parse_math=False)


def _draw_bars(
    axes: Axes, shown: Shown, names: Sequence[str], limits: Sequence[float], top: float
) -> None:
    true = [c == shown.label for c in shown.classes]
    at = [top + _PITCH * (i + 1) for i in range(len(true))]
    colors = [PHASE_COLORS["distilled"] if t else SOFT for t in true]
    style: dict[str, Any] = {"va": "center", "parse_math": False}
    for c, is_true, y in zip(shown.classes, true, at, strict=True):
        name, weight = _short(str(names[c]), 13), "bold" if is_true else "normal"
        axes.text(_BARS[0] - 0.07, y, name, fontsize=SMALL, color=INK, ha="right", weight=weight,
                  **style)  # fmt: skip
    for x, limit, percents in zip(_BARS, limits, shown.percents, strict=False):
        lengths = [_LONGEST * percents[c] / limit for c in shown.classes]
        axes.vlines(x, at[0] - 0.09, at[-1] + 0.09, color=RULE, linewidth=0.7)
        axes.barh(at, lengths, left=x, height=0.72 * _PITCH, color=colors)
        for c, length, y in zip(shown.classes, lengths, at, strict=True):
            if percents[c] >= 0.5:
                number = f"{percents[c]:.0f} %"
                axes.text(x + length + 0.04, y, number, fontsize=TINY, color=MUTED, **style)


def _describe(
    about: str, shown: Sequence[Shown], columns: Sequence[str], names: Sequence[str]
) -> str:
    def said(percents: np.ndarray) -> str:
        return ", ".join(f"{names[c]} {percents[c]:.0f} %" for c in np.argsort(-percents)[:3])

    sentences = [
        f"Label {own.title}: "
        + "; ".join(f"{name} {said(x)}" for name, x in zip(columns, own.percents, strict=True))
        for own in shown
    ]
    return f"{about}. {'. '.join(sentences)}."


def _tabulated(
    shown: Sequence[Shown], columns: Sequence[str], names: Sequence[str]
) -> list[Sequence[Cell]]:
    head: list[Sequence[Cell]] = [["image", "label", "class", *(f"{name} (%)" for name in columns)]]
    return head + [
        [i, own.title, str(names[c]), *(round(float(x[c]), 4) for x in own.percents)]
        for i, own in enumerate(shown)
        for c in own.classes
    ]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
