"""One page that holds everything: no scripts, no requests, light and dark."""

import base64
import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from kdjax.runs import workdir
from kdjax.runs.console import say
from kdjax.runs.report._style import CSS, DARK

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under column names; the first cell of a row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, in the order of its fields; what is empty is left out."""

    heading: str = ""
    tables: Sequence[Table] = ()
    figures: Mapping[str, tuple[Figure | Path, str]] = dataclasses.field(default_factory=dict)
    """Figures, drawn or as the SVG file of an earlier run, with captions, by name of their file."""
    notes: Sequence[str | tuple[str, str]] = ()
    """Paragraphs, each alone or with a heading before it."""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Command, device, versions and the like."""


class Tile(NamedTuple):
    """A number shown large: its color is that of a kind of training."""

    kind: str
    name: str
    number: str
    details: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Page:
    """What a run found: the lede says it in a sentence, tiles and sections in numbers."""

    title: str
    sections: Sequence[Section]
    lede: str = ""
    tiles: Sequence[Tile] = ()


def publish(
    directory: Path,
    summary: Mapping[str, Any],
    table: Table | str,
    page_fn: Callable[[], Page],
    *,
    summary_name: str = "summary.json",
) -> None:
    """Write a summary and print its table, then draw: `report.html` and its figures come last.

    Args:
        directory: an existing directory.
        summary: what was found in numbers, for programs to read.
        table: the same, to be printed.
        page_fn: makes the page. Numbers are safe by then, whatever a plot makes of them.
        summary_name: the summary's file.

    Raises:
        OSError: if a file cannot be written; each is replaced whole or not at all.
    """
    workdir.write_json(directory / summary_name, summary)
    say("\n" + (table if isinstance(table, str) else format_rows([table.columns, *table.rows])))
    say(f"\nreport: {write_page(directory / 'report.html', page_fn())}")


def results_page(
    title: str,
    lede: str,
    table: Table,
    figures: Mapping[str, tuple[Figure, str]],
    facts: Mapping[str, str],
    *,
    tiles: Sequence[Tile] = (),
    notes: Sequence[str] = (),
    sections: Sequence[Section] = (),
    measured: str = "the test set",
) -> Page:
    """Compose the page of a run: every script has this one form.

    Args:
        title: the page's heading.
        lede: what came out, in a sentence.
        table: the results.
        figures: figures with their captions by name.
        facts: command, device, versions and the like: how to have it again.
        tiles: the numbers that count, shown large.
        notes: paragraphs behind the results.
        sections: what else there is to say, behind the results.
        measured: what the results are of.

    Returns:
        The page.
    """
    results = Section(f"Results on {measured}", [table], figures, notes)
    again = [Section("How to have it again", facts=facts)] if facts else []
    return Page(title, [results, *sections, *again], lede, tiles)


def write_page(path: Path, page: Page) -> Path:
    """Write a page, and beside it the figures drawn for it: `<name>.png`, `.svg` and `.csv`.

    The page holds all of it: figures, and their numbers as links to download.

    Args:
        path: the file; its directory exists.
        page: what is on it.

    Returns:
        The path.

    Raises:
        OSError: if a file cannot be written; each is replaced whole or not at all.
    """
    body = [f'<p class="lede">{escape(page.lede)}</p>'] if page.lede else []
    if page.tiles:
        body.append(f'<ul class="tiles">{"".join(map(_tile, page.tiles))}</ul>')
    for section in page.sections:
        body += _section(section, path.parent)
    text = _PAGE.format(title=escape(page.title), css=CSS, body="\n".join(body))
    workdir.write_whole(path, text.encode())
    return path


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as plain text, each column as wide as its widest cell.

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


def _section(section: Section, directory: Path) -> Iterator[str]:
    if section.heading:
        yield f"<h2>{escape(section.heading)}</h2>"
    for table in section.tables:
        yield from _table(table)
    if section.figures:
        figures = (_figure(directory / name, *own) for name, own in section.figures.items())
        yield f'<div class="figures">{"".join(figures)}</div>'
    for note in section.notes:
        heading, text = ("", note) if isinstance(note, str) else note
        yield (f"<h3>{escape(heading)}</h3>" if heading else "") + f"<p>{_prose(text)}</p>"
    if section.facts:
        yield f"<dl>{''.join(map(_fact, section.facts.items()))}</dl>"


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"<h3>{escape(table.title)}</h3>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    body = "".join(_row(row, table.columns) for row in table.rows)
    # On a phone a few rows become lists, and many scroll in their box, by keys too.
    kind = ' class="few"' if len(table.rows) <= 6 else ""
    whole = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{whole}</div>'
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'


def _row(row: Sequence[str], columns: Sequence[str]) -> str:
    # What is longer than a number breaks into lines.
    cells = "".join(
        f'<td data-name="{escape(name)}"{" class=words" if len(cell) > 20 else ""}>'
        f"{escape(cell)}</td>"
        for name, cell in zip(columns[1:], row[1:], strict=True)
    )
    return f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'


def _prose(text: str) -> str:
    """Return text, with what is between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _fact(fact: tuple[str, str]) -> str:
    name, value = fact
    return f"<dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd>"


def _tile(tile: Tile) -> str:
    return (
        f'<li class="{tile.kind}"><span class="name">{escape(tile.name)}</span>'
        f"<strong>{tile.number}</strong><span>{'<br>'.join(map(escape, tile.details))}</span></li>"
    )


def _figure(path: Path, figure: Figure | Path, caption: str) -> str:
    """Embed a figure; the label of one that is drawn says what it shows to those who do not see."""
    if isinstance(figure, Figure):
        _save(path, figure)
    source = path if isinstance(figure, Figure) else figure.with_suffix("")
    svg, numbers = source.with_name(source.name + ".svg"), source.with_name(source.name + ".csv")
    text = svg.read_bytes()
    said = re.search(rb"<title>(.*?)</title>", text, re.DOTALL)
    alt = unescape(said[1].decode()) if said else caption
    image = f'<img src="{_data("image/svg+xml", text)}" alt="{escape(alt)}">'
    link = ""
    if numbers.exists():
        content = _data("text/csv", numbers.read_bytes())
        link = f' <a download="{escape(numbers.name)}" href="{content}">Its numbers (CSV)</a>'
    return f"<figure>{image}<figcaption>{escape(caption)}{link}</figcaption></figure>"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _save(path: Path, figure: Figure) -> None:
    png = _render(figure, "png", facecolor="white", dpi=300)
    # What was arranged for the one need not be arranged again for the other.
    figure.set_layout_engine("none")
    files = {"png": png, "svg": _adaptive_svg(figure)}
    if rows := getattr(figure, "rows", ()):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        files["csv"] = text.getvalue().encode()
    for kind, content in files.items():
        workdir.write_whole(path.with_name(f"{path.name}.{kind}"), content)


def _adaptive_svg(figure: Figure) -> bytes:
    """Draw a figure whose colors follow the reader's choice of light or dark."""
    described = {"Date": None, "Creator": None, "Title": str(figure.get_label()) or None}
    svg = _render(figure, "svg", facecolor="none", metadata=described)
    text = svg.decode()
    light = "".join(f"--c{color[1:]}:{color};" for color in DARK)
    dark = "".join(f"--c{color[1:]}:{other};" for color, other in DARK.items())
    for color in DARK:
        text = text.replace(color, f"var(--c{color[1:]})")
    style = f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    head, defs, rest = text.partition("<defs>")
    return f"{head}<style>{style}</style>{defs}{rest}".encode()


def _render(figure: Figure, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "kdjax"}):
        figure.savefig(buffer, format=format, **options)
    return buffer.getvalue()
