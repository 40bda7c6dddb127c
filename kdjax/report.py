"""Tables, plots and one self-contained page about a distillation.

A summary is `{"teacher" | "scratch" | "distilled": {"num_params": int, "test_errors": [...], ...}}`
with one entry per network in every list.
"""

import base64
import html
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Summary = Mapping[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = {"teacher": "#555555", "scratch": "#D55E00", "distilled": "#0072B2"}
_COLUMNS = (
    ("test errors", "test_errors", 1, 1),
    ("accuracy %", "accuracy", 100, 2),
    ("NLL (nats)", "nll", 1, 4),
    ("calibration error %", "ece", 100, 2),
    ("agreement %", "agreement", 100, 2),
)


def table_rows(summary: Summary) -> list[list[str]]:
    """Lay a summary out as text.

    Args:
        summary: as the module describes it.

    Returns:
        A row of headings, then one per network: name, parameters, and mean ± sample standard
        deviation over seeds of every measure; no deviation where there is one seed.
    """
    rows = [["network", "parameters", *(heading for heading, *_ in _COLUMNS)]]
    for name, entry in summary.items():
        cells = [_spread(entry[key], scale, digits) for _, key, scale, digits in _COLUMNS]
        rows.append([name, f"{entry['num_params']:,}", *cells])
    return rows


def format_table(summary: Summary) -> str:
    """Return the table of a summary as aligned text of at most 100 columns."""
    rows = table_rows(summary)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def verdict(summary: Summary) -> str:
    """Say in a sentence what distillation did to the student's test errors."""
    scratch, distilled = (
        statistics.mean(summary[name]["test_errors"]) for name in ("scratch", "distilled")
    )
    numbers = f"{scratch:.1f} → {distilled:.1f} test errors"
    if scratch <= 0 or abs(scratch - distilled) < 0.05:
        return f"Distillation makes no difference here: {numbers}."
    share = abs(1 - distilled / scratch)
    change = "removes" if distilled < scratch else "adds"
    return (
        f"Distillation {change} {share:.0%} of the errors of the same student trained on labels "
        f"alone: {numbers}, in the mean over seeds."
    )


def plot_curves(rows: Rows) -> Figure:
    """Plot the trainings.

    Args:
        rows: lines of metrics.jsonl, with phase, seed, step, split, loss and accuracy.

    Returns:
        Two panels: cross-entropy with the labels on training batches, and accuracy on validation
        examples (on training batches where there are none). One thin line per seed, a bold mean.
    """
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    split = "validation" if any(row["split"] == "validation" for row in rows) else "train"
    _lines(left, rows, "train", lambda row: row.get("loss/hard", row["loss"]))
    _lines(right, rows, split, lambda row: 100 * row["accuracy"])
    left.set_yscale("log")
    left.set_ylabel("training cross-entropy (nats)")
    right.set_ylabel(f"{split} accuracy (%)")
    for axes in (left, right):
        axes.set_xlabel("step")
    right.legend(frameon=False, loc="lower right")
    return figure


def plot_errors(summary: Summary) -> Figure:
    """Plot the test errors of both students, seed by seed, under the teacher's line.

    Args:
        summary: as the module describes it.

    Returns:
        One panel.
    """
    figure = _figure(6.5, 3.2)
    axes = figure.subplots()
    seeds = np.arange(len(summary["scratch"]["test_errors"]))
    for shift, name in ((-0.2, "scratch"), (0.2, "distilled")):
        values = summary[name]["test_errors"]
        bars = axes.bar(seeds + shift, values, 0.38, color=COLORS[name], label=name)
        axes.bar_label(bars, fontsize=9, padding=2)
    teacher = summary["teacher"]["test_errors"][0]
    axes.axhline(teacher, color=COLORS["teacher"], ls="--", label=f"teacher ({teacher})")
    axes.set_xticks(seeds, [f"seed {i + 1}" for i in seeds])
    axes.set_ylabel("test errors")
    axes.margins(y=0.15)
    figure.legend(frameon=False, loc="outside right upper")
    return figure


def select_instructive(
    teacher_logits: np.ndarray, labels: np.ndarray, temperature: float, num_images: int = 8
) -> np.ndarray:
    """Pick images on which the teacher is right and says most beyond the label.

    Args:
        teacher_logits: [examples, num_classes].
        labels: [examples].
        temperature: at which the second class should have much mass.
        num_images: how many to pick at most, one for each label.

    Returns:
        Indices, [num_images] or fewer.
    """
    probs = _softmax(teacher_logits / temperature)
    second = np.sort(probs, axis=-1)[:, -2]
    right = probs.argmax(-1) == labels
    chosen: list[int] = []
    for i in np.argsort(-second):
        if right[i] and labels[i] not in labels[chosen]:
            chosen.append(int(i))
    return np.array(chosen[:num_images], np.int64)


def plot_dark_knowledge(
    images: np.ndarray,
    labels: np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Figure:
    """Show images beside the teacher's probabilities at T = 1 and at T.

    Args:
        images: [images, height, width, channels] of uint8.
        labels: [images].
        teacher_logits: [images, num_classes].
        label_names: of all classes; up to ten classes are all shown, else the five likeliest.
        temperature: the T of the distillation.

    Returns:
        A grid, two images to a row.
    """
    num_rows = max(1, -(-len(images) // 2))
    bars = min(10, len(label_names)) if len(label_names) <= 10 else 5
    figure = _figure(10, num_rows * (0.5 + 0.19 * bars))
    grid = figure.subplots(num_rows, 6, squeeze=False, width_ratios=(1.1, 1, 1) * 2)
    for axes in grid.flat[3 * len(images) :]:
        axes.set_axis_off()
    for i, (image, label, logits) in enumerate(zip(images, labels, teacher_logits, strict=True)):
        picture, cold, warm = grid[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        shown = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
        picture.imshow(shown, cmap="gray_r", interpolation="nearest")
        picture.set_title(f"label: {_short(label_names[label])}", fontsize=9)
        picture.set_axis_off()
        classes = np.arange(bars) if len(label_names) <= 10 else np.argsort(-logits)[:bars]
        names = [_short(label_names[c]) for c in classes]
        for axes, t in ((cold, 1.0), (warm, temperature)):
            heights = _softmax(logits / t)[classes]
            colors = [COLORS["distilled" if c == label else "teacher"] for c in classes]
            axes.barh(np.arange(bars), heights, color=colors)
            axes.set_yticks(np.arange(bars), names, fontsize=8)
            axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"], fontsize=8)
            axes.set_xlim(0, 1)
            axes.invert_yaxis()
            axes.set_title(f"T = {t:g}", fontsize=9)
    return figure


def write_report(
    directory: Path,
    *,
    title: str,
    summary: Summary,
    figures: Mapping[str, tuple[Figure, str]],
    notes: Sequence[tuple[str, str]],
    facts: Mapping[str, str],
) -> Path:
    """Write every figure as a PNG and one page, `report.html`, that needs no other file.

    Args:
        directory: where they go.
        title: of the page.
        summary: as the module describes it.
        figures: by file name, without ending: a figure and its caption.
        notes: headings and texts on what was done and why.
        facts: names and values, such as the command.

    Returns:
        The page.

    Raises:
        OSError: if a file cannot be written.
    """
    blocks = []
    for name, (figure, caption) in figures.items():
        png = _png(figure)
        _write(directory / f"{name}.png", png)
        data, text = base64.b64encode(png).decode(), html.escape(caption)
        blocks.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(verdict(summary))}</p>',
        _table_html(summary),
        *blocks,
        *(f"<h2>{html.escape(h)}</h2><p>{html.escape(t)}</p>" for h, t in notes),
        "<h2>How to get this page</h2><dl>",
        *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()),
        "</dl>",
    ]
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))
    path = directory / "report.html"
    _write(path, page.encode())
    return path


def _spread(values: Sequence[float], scale: float, digits: int) -> str:
    numbers = [scale * value for value in values]
    if len(numbers) == 1:
        return f"{numbers[0]:.{0 if isinstance(values[0], int) else digits}f}"
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def _lines(axes: Axes, rows: Rows, split: str, value: Any) -> None:
    """Draw a thin line per seed and the mean over seeds of each phase."""
    for phase, color in COLORS.items():
        curves: dict[int, dict[int, float]] = {}
        for row in rows:
            if row["phase"] == phase and row["split"] == split:
                curves.setdefault(row["seed"], {})[row["step"]] = value(row)
        for curve in curves.values():
            axes.plot(list(curve), list(curve.values()), color=color, lw=0.7, alpha=0.35)
        shared = sorted(set.intersection(*map(set, curves.values()))) if curves else []
        means = [statistics.mean(curve[step] for curve in curves.values()) for step in shared]
        axes.plot(shared, means, color=color, lw=1.8, label=phase)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("white")
    return figure


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _short(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= 14 else name[:13] + "…"


def _table_html(summary: Summary) -> str:
    head, *rows = table_rows(summary)
    headings = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    seeds = len(summary["scratch"]["test_errors"])
    note = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f'<div class="wide"><table><caption>On the test set; students: {note}.</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c1c1a; --paper: #fbfaf7; --soft: #6a6862; --line: #dcd9d0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e6df; --paper: #191a1c; --soft: #a5a29a; --line: #3b3c3f }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.2rem 4rem; max-width: 52rem; background: var(--paper);
  color: var(--ink); font: 1.05rem/1.6 Charter, "Bitstream Charter", Georgia, serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem }
p { margin: .3rem 0 }
.verdict { font-size: 1.2rem; margin-bottom: 1.8rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font: .9rem/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; color: var(--soft); padding-top: .5rem }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th:first-child { text-align: left; padding-left: 0 }
thead th { font-weight: 600; color: var(--soft); white-space: normal }
figure { margin: 2.2rem 0 }
img { width: 100%; height: auto; background: #fff; border-radius: 6px; padding: .5rem }
figcaption { color: var(--soft); font-size: .95rem; margin-top: .4rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .6rem 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr } dt { margin-top: .5rem } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
