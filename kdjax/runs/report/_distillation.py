"""The table and the page of a distillation: a teacher, students of labels alone, and its own."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kdjax.runs.numbers import format_parts, numbers
from kdjax.runs.report._columns import ACCURACY, Column, Summary, columns_of, measured_in
from kdjax.runs.report._curves import PHASES, Row, curves, name_of, phases_of, training_loss
from kdjax.runs.report._page import Page, Section, Table, Tile, results_page
from kdjax.runs.report._plots import plot_curves


def distillation_page(
    title: str,
    summary: Summary,
    *,
    rows: Sequence[Row] = (),
    figures: Mapping[str, tuple[Figure, str]] = MappingProxyType({}),
    notes: Mapping[str, str] = MappingProxyType({}),
    facts: Mapping[str, str] = MappingProxyType({}),
    found: str = "",
    sections: Sequence[Section] = (),
) -> Page:
    """Compose the page of a distillation; its lede says what became of the first measure.

    Args:
        title: the page's heading.
        summary: as `format_table` takes it.
        rows: the lines of `metrics.jsonl`.
        figures: figures with their captions by name, in the order of the page.
        notes: what was chosen and why, as texts by heading.
        facts: command, device, versions and the like.
        found: what else the table's note says.
        sections: what else was found.

    Returns:
        The page: tiles, table and figures, where the trainings ended, notes and facts.
    """
    done = [Section("What was done", notes=list(notes.items()))] if notes else []
    tiles = [_tile(phase, summary[phase]) for phase in _phases(summary)]
    return results_page(
        title,
        _headline(summary),
        _results(summary, found),
        figures,
        facts,
        tiles=tiles,
        sections=[*sections, *trainings(rows), *done],
    )


def trainings(rows: Sequence[Row]) -> list[Section]:
    """Show how trainings went and where they ended, if there were some."""
    if not phases_of(rows):
        return []
    caption = (
        "Every kind of training: loss, of the labels where all have it, and what is measured, on "
        "training batches and on validation examples. Thin lines are seeds, bold lines their mean."
    )
    return [
        Section("How the trainings went", [_ends(rows)], {"curves": (plot_curves(rows), caption)})
    ]


def errors_tile(kind: str, name: str, errors: Sequence[int], right: str, about: str) -> Tile:
    """Show a network's mean of test errors large.

    Args:
        kind: whose color it has: `teacher`, `scratch` or `distilled`.
        name: what it is called.
        errors: by seed.
        right: the share of test images that it gets right, in per cent.
        about: what else there is to say.
    """
    return Tile(
        kind, name, _count(float(np.mean(errors))), (f"test errors, {right} % right", about)
    )


def format_table(summary: Summary) -> str:
    """Format the results as plain text, at most 100 characters wide.

    Args:
        summary: for `teacher`, `scratch` and `distilled`: `num_params`, and lists with one entry
            per seed of `test_errors`, `accuracy`, `nll` (nats), `ece` and `agreement`, or of what
            else the task measures.

    Returns:
        A header, a line per network with mean ± sample standard deviation over seeds (the mean
        alone where there is one), and a line that says so.
    """
    phases = _phases(summary)
    width = max(map(len, phases))
    columns = [
        ["", *(phase.ljust(width) for phase in phases)],
        ["parameters", *(f"{summary[phase]['num_params']:,}" for phase in phases)],
    ]
    for column in columns_of(summary):
        cells = [column.written(summary[phase][column.key]) for phase in phases]
        columns.append([column.short, *_aligned(cells)])
    padded = [[cell.rjust(max(map(len, cells))) for cell in cells] for cells in columns]
    header, *lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([header, "-" * len(header), *lines, _deviation_note(summary)])


def _results(summary: Summary, found: str) -> Table:
    columns = columns_of(summary)
    rows = [
        [name_of(phase), f"{summary[phase]['num_params']:,}"]
        + ["".join(column.written(summary[phase][column.key])) for column in columns]
        for phase in _phases(summary)
    ]
    header = ["", "Parameters", *(column.title for column in columns)]
    return Table(header, rows, note=f"{_deviation_note(summary)}. {found}".strip())


def _ends(rows: Sequence[Row]) -> Table:
    """Tabulate steps, last training loss and what was validated last: the curves in numbers."""
    loss, column = training_loss(rows), measured_in(rows)
    named = "Training loss (nats)" if loss == "loss" else "Training cross-entropy (nats)"
    if column is not ACCURACY:
        named = "Training loss" if loss == "loss" else "Training loss of the labels"
    header = ["", "Seeds", "Steps", named, f"Validation {column.named}"]
    body = []
    for phase in phases_of(rows):
        train = curves(rows, phase, "train", loss).values()
        validation = curves(rows, phase, "validation", column.key).values()
        if train:
            steps = max(steps[-1] for steps, _ in train)
            losses = format_parts([values[-1] for _, values in train], 4, ",")
            scored = column.written([values[-1] for _, values in validation])
            numbers = str(len(train)), f"{steps:,}", "".join(losses), "".join(scored)
            body.append([name_of(phase), *numbers])
    return Table(header, body)


def _tile(phase: str, entry: Mapping[str, Any]) -> Tile:
    column, size = columns_of({phase: entry})[0], f"{entry['num_params']:,} parameters"
    if column.key != "test_errors":
        return Tile(phase, PHASES[phase], _mean(entry, column), (column.named, size))
    right = f"{100 * np.mean(entry['accuracy']):.2f}"
    return errors_tile(phase, PHASES[phase], entry["test_errors"], right, size)


def _deviation_note(summary: Summary) -> str:
    lead = columns_of(summary)[0].key
    most = max(len(summary[phase][lead]) for phase in _phases(summary))
    if most == 1:
        return "one seed each"
    return f"mean ± sample standard deviation over {most} seeds; one seed where there is no ±"


def _headline(summary: Summary) -> str:
    column = columns_of(summary)[0]
    if column.key != "test_errors":
        means = {phase: _mean(summary[phase], column) for phase in _phases(summary)}
        others = {
            "scratch": "that of the same network taught by labels alone",
            "teacher": "its own",
        }
        beside = "; ".join(f"{words} {means[x]}" for x, words in others.items() if x in means)
        own = f"Taught by the teacher, the student's {column.named} is {means['distilled']}"
        return f"{own}; {beside}."
    scratch, distilled = (
        float(np.mean(summary[phase]["test_errors"])) for phase in ("scratch", "distilled")
    )
    if scratch == distilled:
        return f"Taught by the teacher or by labels alone: both make {_count(scratch)} test errors."
    change, direction = abs(scratch - distilled), "fewer" if distilled < scratch else "more"
    amount = f"{change / scratch:.0%}" if scratch else _count(change)
    average = " on average" if len(summary["distilled"]["test_errors"]) > 1 else ""
    return (
        f"Taught by the teacher, the student makes {_count(distilled)} test errors{average}, "
        f"{amount} {direction} than the same network taught by labels alone ({_count(scratch)})"
        f"{_doubt(summary, change)}."
    )


def _doubt(summary: Summary, change: float) -> str:
    """Say so where the means differ by no more than seeds do."""
    errors = [summary[phase]["test_errors"] for phase in ("scratch", "distilled")]
    several = min(map(len, errors)) > 1
    spread = max(float(np.std(x, ddof=1)) for x in errors) if several else 0.0
    return "; seeds alone differ by as much" if change <= spread else ""


def _mean(entry: Mapping[str, Any], column: Column) -> str:
    """Write the mean over seeds."""
    return column.written([float(np.mean(numbers(entry[column.key])))])[0]


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _phases(summary: Summary) -> list[str]:
    return [phase for phase in PHASES if phase in summary]


def _aligned(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Pad deviations to one width, so that means and signs stand below each other."""
    width = max(len(deviation) for _, deviation in cells)
    return [mean + sd[:3] + sd[3:].rjust(width - len(sd[:3])) for mean, sd in cells]
