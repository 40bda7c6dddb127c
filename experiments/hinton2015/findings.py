"""From what a script found out to files: a table on the terminal, JSON, pictures and a page."""

import dataclasses
import html
from pathlib import Path
from typing import Any

import jax

import kdjax
from experiments import workdir
from experiments.console import say
from experiments.hinton2015.group import spread
from experiments.hinton2015.lab import Claim, Findings, Lab, commit
from kdjax import report as pages


def write(lab: Lab, title: str, found: Findings, *, command: str, seconds: float) -> None:
    """Write `result.json`, figures and `report.html` into the section's folder; print claims."""
    folder = lab.root / lab.section
    for name, (figure, _) in found.figures.items():
        pages.save_figure(folder, name, figure)
    device = jax.devices()[0]
    facts = {
        "Command": command,
        "Commit": commit(),
        "Device": f"{device.device_kind} ({device.platform})",
        "Wall time": f"{seconds:.0f} s, less what earlier runs in the folder had done",
        "Versions": f"kdjax {kdjax.__version__}, jax {jax.__version__}",
    }
    result = {
        "title": title,
        "section": lab.section,
        "claims": [dataclasses.asdict(claim) for claim in found.claims],
        "tables": [dataclasses.asdict(table) for table in found.tables],
        "figures": {name: caption for name, (_, caption) in found.figures.items()},
        "notes": list(found.notes),
        "facts": facts,
    }
    workdir.write_json(folder / "result.json", result)
    page = pages.write_page(
        folder / "report.html", title=title, sections=[page_section(result, folder)]
    )
    for row in (CLAIM_COLUMNS, *claim_rows(result)):
        say(f"{row[0]:<44} {row[1]:>12} {row[2]:>18} {row[3]:>12}  {row[4]}")
    say(f"\nreport: {page}")


CLAIM_COLUMNS = ("", "paper", "ours", "wanted", "met")


def claim_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the claims of a section as rows of text, mean ± sample standard deviation by seed."""
    return [_claim_row(Claim(**{**c, "ours": tuple(c["ours"])})) for c in result["claims"]]


def _claim_row(claim: Claim) -> tuple[str, ...]:
    sign = ">=" if claim.at_least else "<="
    wanted = "" if claim.bar is None else f"{sign} {claim.bar:g}"
    met = {None: "", True: "yes", False: "no"}[claim.met]
    unit = "" if claim.unit == "errors" else f" {claim.unit}"
    return (claim.what, claim.paper, spread(claim.ours) + unit, wanted, met)


def page_section(result: dict[str, Any], folder: Path) -> pages.Section:
    """Turn a section's result into a part of a page."""
    tables = [("", CLAIM_COLUMNS, claim_rows(result))] if result["claims"] else []
    tables += [(t["title"], t["columns"], t["rows"]) for t in result["tables"]]
    figures = [
        ((folder / f"{name}.svg").read_bytes(), caption)
        for name, caption in result["figures"].items()
    ]
    return pages.Section(
        heading=result["title"],
        tables=tables,
        figures=figures,
        notes=result["notes"],
        facts=result["facts"],
    )


def markdown(result: dict[str, Any]) -> str:
    """Turn a section's result into a part of RESULTS.md."""
    facts = result["facts"]
    parts = [f"### {result['title']}", f"```sh\n{facts['Command']}\n```"]
    if result["claims"]:
        parts.append(_markdown_table(CLAIM_COLUMNS, claim_rows(result)))
    for table in result["tables"]:
        text = _markdown_table(table["columns"], table["rows"])
        parts.append(f"{table['title']}\n\n{text}" if table["title"] else text)
    parts += [html.unescape(note) for note in result["notes"]]
    parts.append(f"Commit {facts['Commit']}, {facts['Device']}, {facts['Wall time']}.")
    return "\n\n".join(parts)


def _markdown_table(columns: Any, rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
