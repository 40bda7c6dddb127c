"""Tables, figures and one self-contained HTML page about a teacher and its students.

A summary is `{"teacher" | "scratch" | "distilled": {"num_params": int, "test_errors": [int], ...}}`
with one entry per seed in each list; the scratch student is trained on the labels alone, the
distilled one with the teacher. Rows are those of the log: one dictionary per step and split.
"""

import base64
import html
import io
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_NAMES = {
    "teacher": "teacher",
    "scratch": "student, labels only",
    "distilled": "student, distilled",
}
# From the palette of Okabe and Ito, which the common forms of colour blindness keep apart.
_COLOURS = {"teacher": "#595959", "scratch": "#d55e00", "distilled": "#0072b2"}
_HEADINGS = (
    ("", "network"),
    ("", "parameters"),
    ("", "test errors"),
    ("", "accuracy %"),
    ("NLL", "(nats)"),
    ("calibration", "error %"),
    ("agreement with", "the teacher %"),
)
_GREY = "#595959"


def format_table(summary: Mapping[str, Any]) -> str:
    """Lay the test results out as aligned plain text of at most 100 columns.

    Args:
        summary: see the module; accuracy, ece and agreement are fractions, nll is in nats.

    Returns:
        Headings, a rule, a line per network and, with several seeds, a line on the spread.
    """
    lines = [[top for top, _ in _HEADINGS], [bottom for _, bottom in _HEADINGS]]
    lines += [[name, *_cells(summary[name])] for name in _NAMES]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    text.insert(2, "-" * len(text[0]))
    return "\n".join([*text, *_spread_note(summary)])


def verdict(summary: Mapping[str, Any]) -> str:
    """Say in one sentence how the test errors of the two students compare.

    Args:
        summary: see the module.

    Returns:
        The relative change, the mean errors and, with several seeds, how often distillation won.
    """
    scratch, distilled = (summary[name]["test_errors"] for name in ("scratch", "distilled"))
    before, after = statistics.fmean(scratch), statistics.fmean(distilled)
    same = "the same student trained on labels alone"
    if before == after:
        text = f"The distilled student makes as many errors as {same}"
    elif before == 0:
        text = f"The distilled student makes errors where {same} makes none"
    elif after < before:
        text = f"Distillation removes {1 - after / before:.0%} of the errors of {same}"
    else:
        text = f"Distillation adds {after / before - 1:.0%} to the errors of {same}"
    num_images = _num_images(summary)
    text += f": {_short(before)} → {_short(after)}" + (f" of {num_images:,}" if num_images else "")
    pairs = list(zip(scratch, distilled, strict=False))
    if len(pairs) > 1:
        wins = sum(second < first for first, second in pairs)
        text += f" on average, with fewer errors in {wins} of {len(pairs)} paired runs"
    return text.replace("%", " %") + "."


def plot_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw cross-entropy and accuracy along the three trainings, a thin line per seed, a bold mean.

    Args:
        rows: the log; the loss is `loss/hard` where a row has it, because the loss of distillation
            is on another scale, and the accuracy is that of validation where there is any.

    Returns:
        A figure of two panels over the training step.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    train = [row for row in rows if row["split"] == "train"]
    held_out = [row for row in rows if row["split"] == "validation" and "accuracy" in row]
    _draw_trainings(left, train, lambda row: row.get("loss/hard", row.get("loss")))
    _draw_trainings(right, held_out or train, lambda row: _times_100(row.get("accuracy")))
    hard = all("loss/hard" in row for row in train)
    left.set_ylabel(
        "cross-entropy on training batches (nats)"
        if hard
        else "training loss (nats; cross-entropy where logged)"
    )
    right.set_ylabel(f"{'validation' if held_out else 'training'} accuracy (%)")
    drawn = [value for line in left.lines for value in np.asarray(line.get_ydata()).tolist()]
    if drawn and min(drawn) > 0:
        left.set_yscale("log")
    handles, names = left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def select_instructive(
    teacher_logits: np.ndarray, labels: np.ndarray, temperature: float, num_images: int = 8
) -> np.ndarray:
    """Find images that the teacher gets right while it sees much of a second class in them.

    Args:
        teacher_logits: [n, num_classes], at least two classes.
        labels: integer classes [n].
        temperature: the mass of the second class is taken at this temperature.
        num_images: the most indices to return.

    Returns:
        Indices [at most num_images], most mass first: one per label if that makes enough of them,
        otherwise at most two per label.
    """
    probs = _soften(teacher_logits, temperature)
    second = np.sort(probs, axis=-1)[:, -2]
    right = np.flatnonzero(np.argmax(teacher_logits, axis=-1) == labels)
    ranked = right[np.argsort(-second[right], kind="stable")]
    per_label = 1 if len(np.unique(labels[right])) >= num_images else 2
    taken: dict[int, int] = {}
    chosen: list[int] = []
    for index in ranked:
        label = int(labels[index])
        if len(chosen) < num_images and taken.get(label, 0) < per_label:
            taken[label] = taken.get(label, 0) + 1
            chosen.append(int(index))
    return np.array(chosen, dtype=np.int64)


def plot_dark_knowledge(
    images: np.ndarray,
    labels: np.ndarray,
    teacher_logits: np.ndarray,
    label_names: Sequence[str],
    temperature: float,
) -> Figure:
    """Draw each image beside what the teacher thinks of it, as it is and softened.

    Args:
        images: uint8 [n, height, width, channels] with one or three channels.
        labels: integer classes [n].
        teacher_logits: [n, num_classes].
        label_names: one name per class.
        temperature: of the softened probabilities.

    Returns:
        Two images per row; bars for every class up to ten, else for the five likeliest.
    """
    num_bars = min(len(label_names), 10 if len(label_names) <= 10 else 5)
    num_rows = math.ceil(len(images) / 2)
    height = num_rows * (0.7 + 0.19 * num_bars) + 0.9
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(num_rows, 4, squeeze=False, width_ratios=[1, 1.6, 1, 1.6]).reshape(-1, 2)
    for axis in axes[len(images) :].ravel():
        axis.set_axis_off()
    sharp, soft = _soften(teacher_logits, 1.0), _soften(teacher_logits, temperature)
    for row, (picture, bars) in enumerate(axes[: len(images)]):
        image = images[row]
        picture.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray")
        picture.set_axis_off()
        name = _shorten(label_names[int(labels[row])])
        picture.set_title(f"label: {name}", fontsize=10, parse_math=False)
        _draw_bars(bars, sharp[row], soft[row], label_names, num_bars, temperature)
    for bars in axes[max(len(images) - 2, 0) : len(images), 1]:
        bars.set_xlabel("probability (%)")
    if len(images):
        handles, names = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_errors(summary: Mapping[str, Any]) -> Figure:
    """Draw the test errors of the two students, run beside run, and those of the teacher.

    Args:
        summary: see the module; run i of one student is paired with run i of the other.

    Returns:
        A figure with one line per run between the errors of the two students.
    """
    errors = {name: summary[name]["test_errors"] for name in _NAMES}
    pairs = list(zip(errors["scratch"], errors["distilled"], strict=False))
    figure = Figure(figsize=(9, 1.9 + 0.36 * len(pairs)), layout="constrained")
    axis = figure.subplots()
    for run, (before, after) in enumerate(pairs):
        axis.plot([before, after], [run, run], color="#bbbbbb", linewidth=2, zorder=1)
    for name in ("scratch", "distilled"):
        values = errors[name][: len(pairs)]
        axis.scatter(values, range(len(pairs)), s=70, color=_COLOURS[name], label=_NAMES[name])
    teacher = statistics.fmean(errors["teacher"])
    axis.axvline(teacher, color=_COLOURS["teacher"], linestyle="--", label=_NAMES["teacher"])
    axis.set_yticks(range(len(pairs)), [f"run {run + 1}" for run in range(len(pairs))])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlim(left=0)
    num_images = _num_images(summary)
    axis.set_xlabel(f"test errors (of {num_images:,} images)" if num_images else "test errors")
    _calm(axis, "x")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def write_report(
    directory: Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, tuple[Figure, str]],
    notes: Sequence[tuple[str, str]],
    facts: Mapping[str, str],
) -> Path:
    """Write every figure as `<name>.png` and one `report.html` that needs no other file.

    Args:
        directory: made if it does not exist; files of the same names are replaced as a whole.
        title: heading of the page.
        summary: see the module.
        rows: the log, of which the page states the length of each training.
        figures: `{name: (figure, caption)}`, in the order of the page; names are file names.
        notes: headings with text, whose paragraphs are separated by blank lines.
        facts: what was run, on what and for how long, in the order of the page.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    blocks = []
    for name, (figure, caption) in figures.items():
        png = _render(figure)
        _replace(directory / f"{name}.png", png)
        blocks.append(_html_figure(name, caption, png))
    page = _PAGE.format(
        title=html.escape(title),
        style=_STYLE,
        verdict=html.escape(verdict(summary)),
        table=_html_table(summary),
        figures="\n".join(blocks),
        notes="\n".join(_html_note(heading, text) for heading, text in notes),
        facts=_html_facts({**facts, **_lengths(rows)}),
    )
    path = directory / "report.html"
    _replace(path, page.encode())
    return path


def _cells(network: Mapping[str, Any]) -> list[str]:
    return [
        f"{network['num_params']:,}",
        _mean_sd(network["test_errors"], 1),
        _mean_sd([100 * value for value in network["accuracy"]], 2),
        f"{statistics.fmean(network['nll']):.3f}",
        f"{100 * statistics.fmean(network['ece']):.2f}",
        f"{100 * statistics.fmean(network['agreement']):.2f}",
    ]


def _mean_sd(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:,}" if isinstance(values[0], int) else f"{values[0]:,.{digits}f}"
    return f"{statistics.fmean(values):,.{digits}f} ± {statistics.stdev(values):,.{digits}f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _spread_note(summary: Mapping[str, Any]) -> list[str]:
    counts = [len(summary[name]["test_errors"]) for name in _NAMES]
    if max(counts) == 1:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in zip(_NAMES, counts, strict=True))
    return [f"mean ± sample standard deviation over runs: {listed}"]


def _num_images(summary: Mapping[str, Any]) -> int | None:
    for name in _NAMES:
        pairs = zip(summary[name]["test_errors"], summary[name]["accuracy"], strict=False)
        for errors, accuracy in pairs:
            if errors and accuracy < 1:
                return round(errors / (1 - accuracy))
    return None


def _lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    facts = {}
    for name in _NAMES:
        steps = [row["step"] for row in rows if row["phase"] == name]
        if steps:
            facts[f"length, {_NAMES[name]}"] = f"{max(steps):,} steps"
    return facts


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _soften(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.asarray(logits, np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def _shorten(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _draw_trainings(
    axis: Axes,
    rows: Sequence[Mapping[str, Any]],
    value_of: Callable[[Mapping[str, Any]], float | None],
) -> None:
    for phase, colour in _COLOURS.items():
        curves = _curves([row for row in rows if row["phase"] == phase], value_of)
        for curve in curves:
            axis.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.45)
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        if shared:
            mean = [statistics.fmean(curve[step] for curve in curves) for step in shared]
            axis.plot(shared, mean, color=colour, linewidth=2.2, label=_NAMES[phase])
    axis.set_xlabel("training step")
    _calm(axis, "y")


def _curves(
    rows: Sequence[Mapping[str, Any]], value_of: Callable[[Mapping[str, Any]], float | None]
) -> list[dict[int, float]]:
    """Collect `{step: value}` per seed; of a step that was run twice, the later row counts."""
    curves: dict[int, dict[int, float]] = {}
    for row in rows:
        value = value_of(row)
        if value is not None and math.isfinite(value):
            curves.setdefault(row["seed"], {})[row["step"]] = value
    return [dict(sorted(curve.items())) for _, curve in sorted(curves.items())]


def _draw_bars(
    axis: Axes,
    sharp: np.ndarray,
    soft: np.ndarray,
    names: Sequence[str],
    num_bars: int,
    temperature: float,
) -> None:
    classes = np.arange(len(names)) if num_bars == len(names) else np.argsort(-sharp)[:num_bars]
    places = np.arange(num_bars)
    for shift, probs, colour, label in (
        (-0.2, sharp, "#e69f00", "teacher, T = 1"),
        (0.2, soft, _COLOURS["distilled"], f"teacher, T = {temperature:g}"),
    ):
        axis.barh(places + shift, 100 * probs[classes], height=0.4, color=colour, label=label)
    axis.set_yticks(places, [_shorten(names[index]) for index in classes], parse_math=False)
    axis.set_ylim(num_bars - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.tick_params(axis="both", labelsize=9, length=0)
    _calm(axis, "x")


def _calm(axis: Axes, grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#bbbbbb")
    axis.tick_params(color="#bbbbbb", labelcolor=_GREY)
    axis.grid(axis="x" if grid == "x" else "y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Write a file as a whole: a reader sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _html_table(summary: Mapping[str, Any]) -> str:
    heads = "".join(f'<th scope="col">{f"{top} {end}".strip()}</th>' for top, end in _HEADINGS)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(_NAMES[name])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(summary[name]))
        + "</tr>"
        for name in _NAMES
    )
    note = "".join(f"<p class=small>{html.escape(line)}</p>" for line in _spread_note(summary))
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _html_figure(name: str, caption: str, png: bytes) -> str:
    alt = html.escape(f"Figure {name.replace('_', ' ')}: {caption}")
    data = base64.b64encode(png).decode()
    return (
        f'<figure><div class="card"><img alt="{alt}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _html_note(heading: str, text: str) -> str:
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    body = "".join(f"<p>{html.escape(part)}</p>" for part in paragraphs)
    return f"<section><h2>{html.escape(heading)}</h2>{body}</section>"


def _html_facts(facts: Mapping[str, str]) -> str:
    return "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )


_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #23211d; --soft: #6b675f;
  --line: #dedad1; --accent: #0a5f94; }
@media (prefers-color-scheme: dark) { :root { --paper: #191a1c; --ink: #e8e5de; --soft: #a29d93;
  --line: #37383b; --accent: #7fbfe8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; font-size: 1.08rem;
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", Georgia, serif; }
main { max-width: 48rem; margin: 0 auto; padding: clamp(1.5rem, 6vw, 4.5rem) 1.25rem 5rem; }
h1 { font-weight: 500; font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 1.2rem;
  letter-spacing: -.012em; text-wrap: balance; }
h2 { font-weight: 500; font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .5rem; }
p { margin: 0 0 1rem; }
.verdict { font-size: 1.28rem; line-height: 1.45; margin: 0 0 2.2rem; padding-left: 1.1rem;
  border-left: 3px solid var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font: .87rem/1.4 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
th, td { padding: .55rem 0 .55rem 1rem; text-align: right; border-bottom: 1px solid var(--line); }
td, tbody th { white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
th { font-weight: 500; }
thead th { color: var(--soft); vertical-align: bottom; }
.small, figcaption { font-size: .95rem; color: var(--soft); }
.small { margin-top: .6rem; font-size: .87rem; }
figure { margin: 3rem 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .9rem; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .7rem; line-height: 1.5; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .4rem 1.5rem;
  margin: 1rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); }
dt { color: var(--soft); font-size: .95rem; }
dd { margin: 0; font: .85rem/1.75 ui-monospace, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; white-space: pre-wrap; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  .card { padding: .4rem; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
{table}
{figures}
{notes}
<section><h2>How this was made</h2><dl>
{facts}
</dl></section>
</main>
</body>
</html>
"""
