"""Numbers over seeds as mean and spread, for a terminal and for a page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from kdjax.report._rows import Row, curves, training_loss

Summary = Mapping[str, Mapping[str, Any]]

PHASES = {
    "teacher": "Teacher",
    "scratch": "Student, labels alone",
    "distilled": "Student, distilled",
}
_SHORT = {"teacher": "Teacher", "scratch": "Labels alone", "distilled": "Distilled"}


class Column(NamedTuple):
    """A column of the results: where it comes from, what it is called, how it is written."""

    key: str
    short: str
    title: str
    scale: float
    digits: int


COLUMNS = (
    Column("test_errors", "test errors", "Test errors", 1, 1),
    Column("accuracy", "accuracy %", "Accuracy (%)", 100, 2),
    Column("nll", "NLL (nats)", "Negative log-likelihood (nats)", 1, 4),
    Column("ece", "calib. error %", "Calibration error (%)", 100, 2),
    Column("agreement", "agreement %", "Agreement with the teacher (%)", 100, 2),
)


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of text out as plain text, one column under the other.

    Args:
        rows: the names of the columns, then the cells, as many in every row.

    Returns:
        A line per row, columns two spaces apart.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def format_table(summary: Summary) -> str:
    """Lay the results out as plain text, at most 100 characters wide.

    Args:
        summary: for `teacher`, `scratch` and `distilled`: `num_params`, and lists with one entry
            per seed of `test_errors`, `accuracy`, `nll` (nats), `ece` and `agreement`.

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
    for column in COLUMNS:
        cells = _aligned([_cell(summary[phase][column.key], column) for phase in phases])
        columns.append([column.short, *cells])
    padded = [_padded(cells) for cells in columns]
    header, *lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([header, "-" * len(header), *lines, spread_note(summary)])


def table_html(summary: Summary) -> str:
    """Lay the results out as an HTML table.

    Args:
        summary: as `format_table` takes it.

    Returns:
        A `<table>`, every value escaped.
    """
    header = ["", "Parameters", *(column.title for column in COLUMNS)]
    body = []
    for phase in _phases(summary):
        entry = summary[phase]
        cells = [_cell(entry[column.key], column) for column in COLUMNS]
        numbers = [f"{entry['num_params']:,}", *(mean + spread for mean, spread in cells)]
        body.append([_SHORT[phase], *numbers])
    return plain_table(header, body)


def trainings_html(rows: Sequence[Row]) -> str:
    """Lay out where the trainings ended, as an HTML table: the curves in numbers.

    Args:
        rows: the lines of `metrics.jsonl`.

    Returns:
        A `<table>` with steps, last training loss and last validation accuracy of each training.
    """
    loss = training_loss(rows)
    header = ["", "Seeds", "Steps", "Training cross-entropy (nats)", "Validation accuracy (%)"]
    if loss == "loss":
        header[3] = "Training loss (nats)"
    body = []
    for phase, title in _SHORT.items():
        train = curves(rows, phase, "train", loss)
        if train:
            validation = curves(rows, phase, "validation", "accuracy")
            body.append(
                [
                    title,
                    str(len(train)),
                    f"{max(steps[-1] for steps, _ in train.values()):,}",
                    "".join(_spread([values[-1] for _, values in train.values()], 1, 4)),
                    "".join(_spread([values[-1] for _, values in validation.values()], 100, 2)),
                ]
            )
    return plain_table(header, body)


def spread_note(summary: Summary) -> str:
    """Say what the numbers after ± are, in one sentence."""
    most = max(len(summary[phase]["accuracy"]) for phase in _phases(summary))
    if most == 1:
        return "one seed each"
    return f"mean ± sample standard deviation over {most} seeds; one seed where there is no ±"


def headline(summary: Summary) -> str:
    """Say in a sentence what distillation did to the test errors."""
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
        f"{amount} {direction} than the same network taught by labels alone ({_count(scratch)})."
    )


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _phases(summary: Summary) -> list[str]:
    return [phase for phase in PHASES if phase in summary]


def _cell(values: Sequence[float], column: Column) -> tuple[str, str]:
    digits = 0 if column.key == "test_errors" and len(values) == 1 else column.digits
    return _spread(values, column.scale, digits)


def _spread(values: Sequence[float], scale: float, digits: int) -> tuple[str, str]:
    """Write the mean, and the sample standard deviation where there are several values."""
    if not values:
        return "", ""
    scaled = scale * np.asarray(values, float)
    spread = f" ± {np.std(scaled, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(scaled):,.{digits}f}", spread


def _aligned(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Pad spreads to one width, so that means and signs stand below each other."""
    width = max(len(spread) for _, spread in cells)
    return [mean + spread[:3] + spread[3:].rjust(width - len(spread[:3])) for mean, spread in cells]


def _padded(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]


def plain_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text as an HTML table; a row's first cell is its heading."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    lines = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in body
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
