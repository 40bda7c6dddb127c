"""Collect what the scripts found into one page and into RESULTS.md.

    python -m experiments.hinton2015.report

It trains nothing: it reads the work directory that the other scripts have filled.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.hinton2015 import study
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.flags import flag

SECTIONS = (
    "mnist", "record", "temperature", "unseen_digit", "gradient", "ensemble", "specialists",
    "regulariser", "regulariser_cifar100",
)  # fmt: skip
BEGIN, END = "<!-- hinton2015: begin -->", "<!-- hinton2015: end -->"
TITLE = "Distilling the Knowledge in a Neural Network, again"
LEDE = (
    "The experiments of Hinton, Vinyals & Dean (2015) that public data permits: the paper's figure "
    "beside ours, mean ± sample standard deviation over seeds, each with the command that makes it."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where from and where to."""

    workdir: Path = flag(
        "The folder that the scripts have filled.", default=Path("runs/hinton2015")
    )
    page: Path | None = flag("The page. Default: report.html in the work directory.")
    results: Path | None = flag(
        "A Markdown file, such as RESULTS.md: what was found replaces what its part between two "
        "marks says of the same scripts; of others it stays."
    )
    summary: Path | None = flag(
        "The same for a file that holds the main claims alone, such as README.md."
    )


def collect(workdir: Path) -> list[dict[str, Any]]:
    """Read the results of all sections that are finished, in the paper's order.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = [runs.workdir.read_json(workdir / name / "result.json") for name in SECTIONS]
    results = [result for result in found if result is not None]
    if not results:
        raise FileNotFoundError(
            f"{workdir} holds no results: run python -m experiments.hinton2015.mnist first"
        )
    return results


def run(settings: Settings) -> None:
    """Write the page, and the Markdown if asked."""
    say, results = runs.console.say, collect(settings.workdir)
    sections = [study.page_section(r, settings.workdir / r["section"]) for r in results]
    page = settings.page or settings.workdir / "report.html"
    say(f"page: {runs.report.write_page(page, runs.report.Page(TITLE, sections, LEDE))}")
    heading = study.markdown_heading(("script", "what", "paper", "kdjax"))
    for name, path, text_fn, head, start, gap in (
        ("results", settings.results, study.markdown, "", "### ", "\n\n"),
        ("summary", settings.summary, study.summary_rows, heading, "| `", "\n"),
    ):
        if path is not None:
            texts = {result["section"]: text_fn(result) for result in results}
            _replace_part(path, texts, heading=head, start=start, gap=gap)
            say(f"{name}: {path}")


def _replace_part(
    path: Path, texts: Mapping[str, str], *, heading: str, start: str, gap: str
) -> None:
    """Put what is found, by section, between a file's marks; what is there of others stays.

    Args:
        path: the file.
        texts: by section, each with the section's name after "hinton2015." or "| `" near its
            beginning; an empty one takes out what was there.
        heading: what comes before them all.
        start: how the first line of a text begins.
        gap: what is between two texts.

    Raises:
        ValueError: if the file has no marks.
    """
    content = path.read_text()
    before, begin, rest = content.partition(BEGIN)
    part, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    found: dict[str, list[str]] = {}
    for old in re.split(rf"^(?={re.escape(start)})", part, flags=re.MULTILINE):
        if name := re.search(r"(?:hinton2015\.|\| `)(\w+)", old):
            found.setdefault(name[1], []).append(old.strip())
    merged = {**{name: gap.join(olds) for name, olds in found.items()}, **texts}
    parts = [heading, *(merged.get(name, "") for name in SECTIONS)]
    path.write_text(f"{before}{BEGIN}\n\n{gap.join(filter(None, parts))}\n\n{END}{after}")


if __name__ == "__main__":
    program = "python -m experiments.hinton2015.report"
    with flags.plain_errors(resume_with=program):
        run(flags.parse(Settings, program, __doc__, None))
