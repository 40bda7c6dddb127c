"""What the scripts of this folder share: flags, data, a work directory, and what they find."""

import dataclasses
import html
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.flags import flag, group
from kdjax.runs.settings import PART, POSITIVE, SEED, STEPS_PER_CALL, Augmentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdjax.data import Examples
    from kdjax.runs.evaluation import Run
    from kdjax.runs.report import Page, Section, Table, Tile


T = TypeVar("T")
TRIAL = (
    "A trial, of few steps of small networks on the embedded digits; what follows tells of a whole "
    "run."
)
CLAIM_COLUMNS = ("", "paper", "ours", "wanted", "met")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where."""

    name: str | None = flag(
        "A set of labeled images. Default: mnist, with --quick the embedded digits."
    )
    dir: Path | None = flag("Directory with prepared TFDS sets; TFDS's own by default.")
    validation_fraction: float = flag(
        "Share of the training examples to set aside and to measure on, instead of the test set: "
        "recipes were chosen with 0.1, tables were made with 0.",
        PART,
        default=0.0,
    )


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """What every script asks."""

    data: DataSettings = group(DataSettings)
    workdir: Path | None = flag(
        "Where networks and results go, one folder for all scripts. Default: runs/hinton2015."
    )
    quick: bool = flag(
        "A trial in seconds: few steps of small networks on the embedded digits.", default=False
    )
    num_seeds: int | None = flag(
        "Students of every kind. Default: what the table states.", POSITIVE
    )
    seed: int = flag("Of the first student, and of the teacher.", SEED, default=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, warm-up and cosine decay."""

    epochs: float
    batch_size: int = 256
    learning_rate: float = 1e-3
    augment: tuple[Augmentation, ...] = ()
    max_norm: float | None = None

    def num_steps(self, num_examples: int) -> int:
        """Return the steps of a training, rounded up to whole calls of a program."""
        least = max(1, round(self.epochs * num_examples / self.batch_size))
        num_calls = -(-least // STEPS_PER_CALL)
        return -(-least // num_calls) * num_calls


@dataclasses.dataclass(frozen=True)
class PanelRecipe:
    """How many specialists there are, of what size, and how each is trained: Adam, cosine decay."""

    num_sets: int = 40
    set_size: int = 12
    epochs: float = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    augment: tuple[Augmentation, ...] = ("crop", "flip")

    def num_steps(self, num_examples: int, num_classes: int) -> int:
        """Return the steps in which a specialist sees examples of its classes `epochs` times."""
        special = num_examples * self.set_size / num_classes
        return max(1, round(self.epochs * 2 * special / self.batch_size))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure of the paper beside ours. `ours` are values by seed.

    The summary shows claims that have a bar, and a `headline` without one.
    """

    what: str
    paper: str
    ours: tuple[float, ...]
    unit: str = "errors"
    bar: float | None = None
    at_least: bool = False
    headline: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the mean reaches the bar; None where there is no bar."""
        if self.bar is None:
            return None
        mean = sum(self.ours) / len(self.ours)
        return mean >= self.bar if self.at_least else mean <= self.bar

    def row(self) -> tuple[str, ...]:
        """Format the claim as a row of text, mean ± sample standard deviation by seed."""
        wanted = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        met = {None: "", True: "yes", False: "no"}[self.met]
        unit = "" if self.unit in ("errors", "") else f" {self.unit}"
        ours = runs.numbers.mean_and_deviation(self.ours) + unit
        return (self.what, self.paper, ours, wanted, met)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a script found out: claims, tables, figures with captions, and notes to read.

    A figure is a function that draws it, called when all numbers are written.
    """

    claims: Sequence[Claim]
    tables: "Sequence[Table]" = ()
    figures: "Mapping[str, tuple[Callable[[], Figure], str]]" = dataclasses.field(
        default_factory=dict
    )
    notes: Sequence[str] = ()


class Trainings(NamedTuple):
    """Networks that were trained together: how many, in which time, and what is noted of that."""

    num_nets: int
    seconds: float
    trained_by: Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Study:
    """Data and a place: what the body of a script works with."""

    settings: StudySettings
    section: str
    run: "Run"
    train: "Examples"
    test: "Examples"
    label_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trainings: dict[str, Trainings] = dataclasses.field(default_factory=dict)
    """Every training that the script used, by name."""

    @property
    def root(self) -> Path:
        """The work directory, which all scripts share."""
        return self.run.workdir

    @property
    def quick(self) -> bool:
        """Whether this is a trial."""
        return self.settings.quick

    def pick(self, full: T, quick: T) -> T:
        """Return what a whole run or a trial is done with."""
        return quick if self.quick else full

    def seeds(self, default: int) -> list[int]:
        """Return the seeds of the students, as many as asked for."""
        count = self.settings.num_seeds or (2 if self.quick else default)
        return [self.settings.seed + i for i in range(count)]


def run_script(
    section: str,
    about: str,
    body: Callable[[Study], Findings],
    *,
    data_name: str = "mnist",
    settings_type: type[StudySettings] = StudySettings,
) -> None:
    """Run a script: read flags and data, do the work, write and print what it found.

    Args:
        section: the script's name, that of its folder of results too.
        about: what it does, its module's docstring; the first line is the heading.
        body: does it.
        data_name: the data it is about.
        settings_type: what it asks, with flags of its own if it has some.
    """
    program = f"python -m experiments.hinton2015.{section}"
    asked, command = flags.read(settings_type, program, title_of(about), None)
    with flags.plain_errors(asked, resume_with=command):
        flags.check(asked)
        with kdjax.loop.stop_on_signals() as stop_fn:
            conduct(asked, section, about, body, data_name, command, stop_fn)


def conduct(
    asked: StudySettings,
    section: str,
    about: str,
    body: Callable[[Study], Findings],
    data_name: str,
    command: str,
    stop_fn: Callable[[], bool],
) -> None:
    """Read the data, do the work of a section, write and print what it found.

    Raises:
        KeyboardInterrupt: if it was asked to stop before it began.
    """
    study = opened(asked, section, data_name, stop_fn)
    if stop_fn():
        raise KeyboardInterrupt
    write(study, title_of(about), body(study), command=portable(command))


def title_of(about: str) -> str:
    """Return the heading of a script: the first line of its docstring."""
    return about.strip().split("\n", 1)[0].rstrip(".")


def opened(
    asked: StudySettings, section: str, data_name: str, stop_fn: Callable[[], bool]
) -> Study:
    """Read the data and claim the work directory: networks of one split are measured on no other.

    Raises:
        ValueError: if the directory holds networks of other settings.
        OSError: if it cannot be written.
    """
    name = asked.data.name or ("digits" if asked.quick else data_name)
    fraction = asked.data.validation_fraction
    dataset = kdjax.data.load(name, data_dir=asked.data.dir, validation_fraction=fraction)
    root = root_of(asked)
    (root / section).mkdir(parents=True, exist_ok=True)
    mine = {"quick": asked.quick, "data.validation_fraction": fraction, "seed": asked.seed}
    path = root / f"data-{name.replace('/', '-')}.json"
    claimed = runs.workdir.claim(
        *(path, mine),
        otherwise="networks of other settings",
        content={"data": runs.fingerprints.of_data(dataset)},
        orphans=("config.json",),
    )
    run = runs.experiment.open_run(root, stop_fn, claimed)
    test = dataset.validation if fraction else dataset.test
    names, shape = dataset.label_names, dataset.image_shape
    mean, std = (tuple(float(x) for x in values) for values in (dataset.mean, dataset.std))
    return Study(asked, section, run, dataset.train, test, names, shape, mean, std)


def root_of(asked: StudySettings) -> Path:
    """Return the work directory."""
    return asked.workdir or Path("runs") / ("hinton2015-quick" if asked.quick else "hinton2015")


def write(study: Study, title: str, found: Findings, *, command: str) -> None:
    """Write `result.json`, figures and `report.html` into the section's folder; print claims."""
    # The paper's figures are for whole runs: a trial has nothing to compare with.
    claims = [
        dataclasses.replace(c, paper="", bar=None) if study.quick else c for c in found.claims
    ]
    times = {"Training time": _times(study.trainings)}
    trained_by = [by for own in study.trainings.values() for by in own.trained_by]
    result = {
        "title": title,
        "section": study.section,
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "tables": [dataclasses.asdict(table) for table in found.tables],
        "figures": {name: caption for name, (_, caption) in found.figures.items()},
        "notes": [TRIAL, *found.notes] if study.quick else list(found.notes),
        "facts": {"Command": command, **times, **runs.experiment.origin(trained_by)},
    }
    text = "\n".join(
        f"{what:<62} {paper:>18} {ours:>16} {wanted:>8}  {met}".rstrip()
        for what, paper, ours, wanted, met in (CLAIM_COLUMNS, *claim_rows(result))
    )
    folder = study.root / study.section

    def page() -> "Page":
        figures = {name: (draw(), caption) for name, (draw, caption) in found.figures.items()}
        return runs.report.Page(title, [_section(result, figures)], *_said(claims))

    runs.report.publish(folder, runs.workdir.sealed(result), text, page, summary_name="result.json")


def interval(values: Sequence[float]) -> str:
    """Format the 95 % interval of a mean over seeds, Student's, of at least two values."""
    # jax needs scipy, and has it loaded.
    from scipy import stats

    mean, spread = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean - spread:+.1f} to {mean + spread:+.1f}"


def claim_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the claims of a section as rows of text."""

    def claimed(claim: Mapping[str, Any]) -> Claim:
        return Claim(**{**claim, "ours": tuple(runs.numbers.numbers(claim["ours"]))})

    return [claimed(claim).row() for claim in result["claims"]]


def page_section(result: Mapping[str, Any], folder: Path) -> "Section":
    """Return a section's result, with the figures that it left in its folder, as part of a page."""
    figures = {
        name: (folder / f"{name}.svg", caption) for name, caption in result["figures"].items()
    }
    return dataclasses.replace(_section(result, figures), heading=result["title"])


def markdown(result: Mapping[str, Any]) -> str:
    """Turn a section's result into a part of RESULTS.md."""
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


def summary_rows(result: Mapping[str, Any]) -> str:
    """Turn the claims that the summary shows into rows of Markdown, bold where the bar is met."""
    rows = zip(result["claims"], claim_rows(result), strict=True)
    return "\n".join(
        _markdown_row(
            (f"`{result['section']}`", what, paper, f"**{ours}**" if met == "yes" else ours)
        )
        for claim, (what, paper, ours, wanted, met) in rows
        if wanted or claim.get("headline")
    )


def markdown_heading(columns: Sequence[str]) -> str:
    """Return the first two lines of a table of Markdown."""
    return f"{_markdown_row(columns)}\n{_markdown_row(['---'] * len(columns))}"


def _section(
    result: Mapping[str, Any], figures: "Mapping[str, tuple[Figure | Path, str]]"
) -> "Section":
    table = runs.report.Table
    rows = claim_rows(result)
    said = [any(cells) for cells in zip(*rows, strict=True)]
    names, *shown = (list(itertools.compress(row, said)) for row in (CLAIM_COLUMNS, *rows))
    claims = [table(names, shown)] if shown else []
    tables = [*claims, *(table(**each) for each in result["tables"])]
    return runs.report.Section(
        tables=tables, figures=figures, notes=result["notes"], facts=result["facts"]
    )


def _said(claims: Sequence[Claim]) -> "tuple[str, list[Tile]]":
    """Return a lede, how many bars are reached, and the first figures to be shown large."""
    bars = [claim.met for claim in claims if claim.met is not None]
    lede = f"{sum(bars)} of {len(bars)} figures of the paper are reached." if bars else ""
    tiles = [
        runs.report.Tile(
            "distilled" if claim.met in (None, True) else "scratch",
            claim.what,
            runs.numbers.mean_and_deviation(claim.ours),
            [x for x in (claim.unit, claim.paper and f"paper: {claim.paper}") if x],
        )
        for claim in claims[:3]
    ]
    return lede, tiles


def _times(trainings: Mapping[str, Trainings]) -> str:
    """List how long trainings took, of this run or of an earlier one in the same folder."""
    total = sum(own.seconds for own in trainings.values())
    parts = [
        f"{name} {own.seconds:.0f} s ({own.num_nets} {'nets' if own.num_nets > 1 else 'net'})"
        for name, own in trainings.items()
    ]
    return f"{total:.0f} s: {', '.join(parts)}"


def portable(command: str) -> str:
    """Leave out of a command where its machine keeps things."""
    quoted = r"""[ =](?:'[^']*'|"'"|[^\s'])+"""
    command = re.sub(r"(--(?:data\.dir|workdir))" + quoted, r"\1 DIR", command)
    return re.sub(r"(--teacher)" + quoted, r"\1 FILE", command)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([markdown_heading(columns), *map(_markdown_row, rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
