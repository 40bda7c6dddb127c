"""Writing what a script found out: a table on the terminal, JSON, pictures and a page."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

import kdjax
from experiments.hinton2015.lab import Claim, Findings, Lab
from kdjax.runs import workdir
from kdjax.runs.numbers import mean_and_deviation
from kdjax.runs.report import Page, Section, Table, publish

CLAIM_COLUMNS = ("", "paper", "ours", "wanted", "met")


def write(lab: Lab, title: str, found: Findings, *, command: str) -> None:
    """Write `result.json`, figures and `report.html` into the section's folder; print claims."""
    device = jax.devices()[0]
    result = {
        "title": title,
        "section": lab.section,
        "claims": [dataclasses.asdict(_judged(lab, claim)) for claim in found.claims],
        "tables": [dataclasses.asdict(table) for table in found.tables],
        "figures": {name: caption for name, (_, caption) in found.figures.items()},
        "notes": list(found.notes),
        "facts": {
            "Command": command,
            "Commit": workdir.commit(),
            "Device": f"{device.device_kind} ({device.platform})",
            "Training time": _times(lab),
            "Versions": f"kdjax {kdjax.__version__}, jax {jax.__version__}",
        },
    }
    page = Page(title, [_section(result, found.figures)])
    text = "\n".join(
        f"{what:<62} {paper:>18} {ours:>16} {wanted:>8}  {met}".rstrip()
        for what, paper, ours, wanted, met in (CLAIM_COLUMNS, *claim_rows(result))
    )
    publish(lab.root / lab.section, page, result, summary_name="result.json", text=text)


def _judged(lab: Lab, claim: Claim) -> Claim:
    """Return the claim; of a trial without the paper's figures, which are for whole runs."""
    return dataclasses.replace(claim, paper="", bar=None) if lab.quick else claim


def _times(lab: Lab) -> str:
    """Format how long every training took, of this run or of an earlier one in the same folder."""
    total = sum(seconds for _, seconds in lab.trainings.values())
    parts = [
        f"{name} {seconds:.0f} s ({count} {'nets' if count > 1 else 'net'})"
        for name, (count, seconds) in lab.trainings.items()
    ]
    return f"{total:.0f} s: {', '.join(parts)}"


def claim_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the claims of a section as rows of text, mean ± sample standard deviation by seed."""
    return [_claim_row(Claim(**{**c, "ours": tuple(c["ours"])})) for c in result["claims"]]


def _claim_row(claim: Claim) -> tuple[str, ...]:
    sign = ">=" if claim.at_least else "<="
    wanted = "" if claim.bar is None else f"{sign} {claim.bar:g}"
    met = {None: "", True: "yes", False: "no"}[claim.met]
    unit = "" if claim.unit in ("errors", "") else f" {claim.unit}"
    return (claim.what, claim.paper, mean_and_deviation(claim.ours) + unit, wanted, met)


def summary_rows(result: dict[str, Any]) -> str:
    """Format the claims of a section that have a bar as rows of a table of Markdown."""
    return "\n".join(
        _markdown_row((f"`{result['section']}`", what, paper, f"**{ours}**"))
        for what, paper, ours, wanted, _ in claim_rows(result)
        if wanted
    )


def page_section(result: dict[str, Any], folder: Path) -> Section:
    """Return a section's result, with the figures that it left in its folder, as part of a page."""
    figures = {
        name: ((folder / f"{name}.svg").read_bytes(), caption)
        for name, caption in result["figures"].items()
    }
    return dataclasses.replace(_section(result, figures), heading=result["title"])


def _section(result: dict[str, Any], figures: Mapping[str, tuple[Figure | bytes, str]]) -> Section:
    claims = [Table(CLAIM_COLUMNS, claim_rows(result))] if result["claims"] else []
    tables = [*claims, *(Table(**table) for table in result["tables"])]
    return Section(tables=tables, figures=figures, notes=result["notes"], facts=result["facts"])


def markdown(result: dict[str, Any]) -> str:
    """Format a section's result as a part of RESULTS.md."""
    facts = result["facts"]
    parts = [f"### {result['title']}", f"```sh\n{facts['Command']}\n```"]
    if result["claims"]:
        parts.append(_markdown_table(CLAIM_COLUMNS, claim_rows(result)))
    for table in result["tables"]:
        text = _markdown_table(table["columns"], table["rows"])
        parts.append(f"{table['title']}\n\n{text}" if table["title"] else text)
    parts += [html.unescape(note) for note in result["notes"]]
    parts.append(
        f"Commit {facts['Commit']}, {facts['Device']}, trained in {facts['Training time']}."
    )
    return "\n\n".join(parts)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(_markdown_row, (columns, ["---"] * len(columns), *rows)))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


HEADING = _markdown_table(("script", "what", "paper", "kdjax"), ())
