"""Collect what the scripts found into one page and into RESULTS.md.

    python -m experiments.hinton2015.report

It trains nothing: it reads the work directory that the other scripts have filled.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from experiments import cli

SECTIONS = (
    "mnist",
    "record",
    "temperature",
    "unseen_digit",
    "gradient",
    "ensemble",
    "specialists",
    "regulariser",
    "regulariser_cifar100",
)
BEGIN, END = "<!-- hinton2015: begin -->", "<!-- hinton2015: end -->"
TITLE = "Distilling the Knowledge in a Neural Network, again"
LEDE = (
    "The experiments of Hinton, Vinyals & Dean (2015) that public data permits: the paper's figure "
    "beside ours, mean ± sample standard deviation over seeds, each with the command that makes it."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where from and where to."""

    workdir: Path = Path("runs/hinton2015")
    """The folder that the scripts have filled."""
    page: Path | None = None
    """The page. Default: report.html in the work directory."""
    results: Path | None = None
    """A Markdown file whose part between two marks is replaced by all that was found, such as
    RESULTS.md."""
    summary: Path | None = None
    """Likewise, for the claims that have a bar alone, such as README.md."""


def collect(workdir: Path) -> list[dict[str, Any]]:
    """Read the results of all sections that are finished, in the paper's order.

    Raises:
        FileNotFoundError: if there is none.
    """
    from experiments.workdir import read_json

    found = [read_json(workdir / name / "result.json") for name in SECTIONS]
    results = [result for result in found if result is not None]
    if not results:
        raise FileNotFoundError(
            f"{workdir} holds no results: run python -m experiments.hinton2015.mnist first"
        )
    return results


def write(settings: Settings) -> None:
    """Write the page, and the Markdown if asked."""
    from experiments.console import say
    from experiments.hinton2015 import findings
    from kdjax import report as pages

    results = collect(settings.workdir)
    sections = [findings.page_section(r, settings.workdir / r["section"]) for r in results]
    page = settings.page or settings.workdir / "report.html"
    say(f"page: {pages.write_page(page, title=TITLE, lede=LEDE, sections=sections)}")
    if settings.results is not None:
        text = "\n\n".join(findings.markdown(result) for result in results)
        _replace_part(settings.results, text)
        say(f"results: {settings.results}")
    if settings.summary is not None:
        _replace_part(settings.summary, findings.summary(results))
        say(f"summary: {settings.summary}")


def _replace_part(path: Path, text: str) -> None:
    content = path.read_text()
    head, begin, rest = content.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    args = sys.argv[1:] if args is None else args
    module = "python -m experiments.hinton2015.report"
    summary = (__doc__ or "").split("\n", 1)[0]
    settings = cli.parse(Settings, module, summary, args)
    with cli.plain_errors(resume_with=module):
        write(settings)


if __name__ == "__main__":
    main()
