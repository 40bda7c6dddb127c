"""One page that holds everything: no scripts, no requests, light and dark."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from kdjax._extras import needs
from kdjax.report._rows import Row
from kdjax.report._style import CSS, DARK
from kdjax.report._tables import (
    PHASES,
    Summary,
    headline,
    plain_table,
    spread_note,
    table_html,
    trainings_html,
)

with needs("train"):
    import matplotlib
    from matplotlib.figure import Figure

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


def write_report(
    workdir: str | Path,
    *,
    title: str,
    summary: Summary,
    rows: Sequence[Row] = (),
    figures: Mapping[str, tuple[Figure, str]] | None = None,
    notes: Sequence[tuple[str, str]] | Mapping[str, str] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html`, and every figure as `<name>.png` beside it.

    Args:
        workdir: an existing directory.
        title: the page's heading.
        summary: as `format_table` takes it.
        rows: the lines of `metrics.jsonl`.
        figures: figures with their captions by name, in the order of the page.
        notes: what was chosen and why, as headings with texts.
        facts: command, device, versions and the like.

    Returns:
        The path of the page.

    Raises:
        OSError: if a file cannot be written; each is replaced whole or not at all.
    """
    workdir = Path(workdir)
    figures = figures or {}
    for name, (figure, _) in figures.items():
        _replace(workdir / f"{name}.png", _render(figure, "png", facecolor="white", dpi=160))
    parts = [
        f'<p class="lede">{escape(headline(summary))}</p>',
        _tiles(summary),
        "<h2>Results on the test set</h2>",
        f'<div class="scroll">{table_html(summary)}</div>',
        f'<p class="note">{escape(spread_note(summary))}</p>',
        *(_figure(figure, caption) for figure, caption in figures.values()),
        *_section("Where the trainings ended", _scrolling(trainings_html(rows)) if rows else ""),
        *_section("What was done", _notes(notes)),
        *_section("How to have it again", _facts(facts or {})),
    ]
    page = _PAGE.format(title=escape(title), css=CSS, body="\n".join(parts))
    path = workdir / "report.html"
    _replace(path, page.encode())
    return path


class Section(NamedTuple):
    """A part of a page. Tables are (title, header, rows), figures (SVG, caption)."""

    heading: str
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = ()
    figures: Sequence[tuple[bytes, str]] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = MappingProxyType({})


def write_page(
    path: str | Path, *, title: str, sections: Sequence[Section], lede: str = ""
) -> Path:
    """Write one self-contained page of sections.

    Args:
        path: the file; its directory exists.
        title: the page's heading.
        sections: its parts, in order; a single one does without its heading.
        lede: a sentence above them.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written; it is replaced whole or not at all.
    """
    path = Path(path)
    body = [f'<p class="lede">{escape(lede)}</p>'] if lede else []
    for section in sections:
        if len(sections) > 1:
            body.append(f"<h2>{escape(section.heading)}</h2>")
        for name, header, rows in section.tables:
            body += [f"<h3>{escape(name)}</h3>"] if name else []
            body.append(_scrolling(plain_table(header, rows)))
        body += [_embedded(svg, caption, caption) for svg, caption in section.figures]
        body += [f"<p>{escape(note)}</p>" for note in section.notes]
        body.append(_facts(section.facts))
    page = _PAGE.format(title=escape(title), css=CSS, body="\n".join(body))
    _replace(path, page.encode())
    return path


def save_figure(directory: str | Path, name: str, figure: Figure) -> None:
    """Write a figure as `<name>.png`, and as `<name>.svg` for `Section.figures`."""
    directory = Path(directory)
    _replace(directory / f"{name}.png", _render(figure, "png", facecolor="white", dpi=160))
    _replace(directory / f"{name}.svg", _adaptive_svg(figure))


def _section(heading: str, content: str) -> list[str]:
    return [f"<h2>{escape(heading)}</h2>", content] if content else []


def _scrolling(content: str) -> str:
    return f'<div class="scroll">{content}</div>'


def _tiles(summary: Summary) -> str:
    """Show the mean test errors large."""
    tiles = []
    for phase in [phase for phase in PHASES if phase in summary]:
        entry = summary[phase]
        errors = f"{np.mean(entry['test_errors']):,.1f}".removesuffix(".0")
        accuracy = 100 * np.mean(entry["accuracy"])
        tiles.append(
            f'<li class="{phase}"><span class="name">{escape(PHASES[phase])}</span>'
            f"<strong>{errors}</strong><span>test errors, {accuracy:.2f} % right<br>"
            f"{entry['num_params']:,} parameters</span></li>"
        )
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _figure(figure: Figure, caption: str) -> str:
    # The plots say in their label what they show, for those who do not see them.
    return _embedded(_adaptive_svg(figure), str(figure.get_label() or caption), caption)


def _embedded(svg: bytes, alt: str, caption: str) -> str:
    source = base64.b64encode(svg).decode()
    image = f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(alt)}">'
    return f"<figure>{_scrolling(image)}<figcaption>{escape(caption)}</figcaption></figure>"


def _notes(notes: Sequence[tuple[str, str]] | Mapping[str, str]) -> str:
    pairs = notes.items() if isinstance(notes, Mapping) else notes
    return "".join(f"<h3>{escape(name)}</h3><p>{escape(text)}</p>" for name, text in pairs)


def _facts(facts: Mapping[str, str]) -> str:
    lines = [
        f"<dt>{escape(k)}</dt><dd><code>{escape(str(v))}</code></dd>" for k, v in facts.items()
    ]
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _adaptive_svg(figure: Figure) -> bytes:
    """Draw a figure whose colours follow the reader's choice of light or dark."""
    svg = _render(figure, "svg", facecolor="none", metadata={"Date": None, "Creator": None})
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


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
