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
        "The same for a file that holds the main claims alone, such as docs/paper.md."
    )


def collect(workdir: Path) -> dict[str, dict[str, Any]]:
    """Read the results of all sections that are finished, in the paper's order.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one is damaged.
    """
    paths = {name: workdir / name / "result.json" for name in SECTIONS}
    found = {name: runs.workdir.read_json(p, mend=_mend(name)) for name, p in paths.items()}
    results = {name: result for name, result in found.items() if result is not None}
    if not results:
        raise FileNotFoundError(
            f"{workdir} holds no results: run python -m experiments.hinton2015.mnist first"
        )
    return results


def run(settings: Settings) -> None:
    """Write the page, and the Markdown if asked."""
    say, results, sections, texts = runs.console.say, collect(settings.workdir), [], {}
    for name, result in results.items():
        folder = settings.workdir / name
        with runs.workdir.reading(folder / "result.json", mend=_mend(name)):
            if result["section"] != name:
                raise ValueError(f"it is that of {result['section']}")
            sections.append(study.page_section(result, folder))
            texts[name] = study.markdown(result), study.summary_rows(result)
    page = settings.page or settings.workdir / "report.html"
    say(f"page: {runs.report.write_page(page, runs.report.Page(TITLE, sections, LEDE))}")
    heading = study.markdown_heading(("script", "what", "paper", "kdjax"))
    for i, (name, path, head, start, gap) in enumerate(
        (
            ("results", settings.results, "", "### ", "\n\n"),
            ("summary", settings.summary, heading, "| `", "\n"),
        )
    ):
        if path is not None:
            own = {section: both[i] for section, both in texts.items()}
            _replace_part(path, own, heading=head, start=start, gap=gap)
            say(f"{name}: {path}")


def _mend(section: str) -> str:
    return f"run python -m experiments.hinton2015.{section} again"


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
    # Bytes, so that line ends stay as they are.
    with runs.workdir.reading(path, mend="expected text in UTF-8"):
        content = path.read_bytes().decode()
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
    whole = f"{before}{BEGIN}\n\n{gap.join(filter(None, parts))}\n\n{END}{after}"
    runs.workdir.write_whole(path, whole.encode())


if __name__ == "__main__":
    program = "python -m experiments.hinton2015.report"
    with flags.plain_errors(resume_with=program):
        run(flags.parse(Settings, program, __doc__, None))
