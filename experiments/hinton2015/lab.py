"""What the scripts of this folder share: flags, data, and where results go."""

import dataclasses
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdjax.runs import cli, settings, workdir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdjax.data import Examples


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where."""

    name: str | None = None
    """A set of labelled images. Default: mnist, with --quick the embedded digits."""
    dir: Path | None = None
    """Directory with prepared TFDS sets; TFDS's own by default."""
    validation_fraction: float = 0.0
    """Share of the training examples to set aside and to measure on, instead of the test set:
    recipes were chosen with 0.1, tables were made with 0."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every script asks."""

    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    workdir: Path | None = None
    """Where networks and results go, one folder for all scripts. Default: runs/hinton2015."""
    quick: bool = False
    """A trial in seconds: few steps of small networks on the embedded digits."""
    num_seeds: int | None = None
    """Students of every kind. Default: what the table states."""
    seed: int = 0
    """Of the first student, and of the teacher."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure of the paper beside ours. `ours` are values by seed."""

    what: str
    paper: str
    ours: tuple[float, ...]
    unit: str = "errors"
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the mean reaches the bar; None where there is no bar."""
        if self.bar is None:
            return None
        mean = sum(self.ours) / len(self.ours)
        return mean >= self.bar if self.at_least else mean <= self.bar


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under column names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a script found out: claims, tables, figures with captions, and notes to read."""

    claims: Sequence[Claim]
    tables: Sequence[Table] = ()
    figures: "Mapping[str, tuple[Figure, str]]" = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Lab:
    """Data and a place: what the body of a script works with."""

    settings: Settings
    section: str
    root: Path
    train: "Examples"
    test: "Examples"
    label_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stop_fn: Callable[[], bool]
    trainings: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    """Networks and seconds of every training that the script used, by name."""

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


def main(
    section: str,
    summary: str,
    body: Callable[[Lab], Findings],
    args: list[str] | None = None,
    *,
    data_name: str = "mnist",
    settings_type: type[Settings] = Settings,
) -> None:
    """Run a script: read flags and data, do the work, write and print what it found.

    Args:
        section: the script's name, that of its folder of results too.
        summary: what it does, its module's docstring; the first line is the heading.
        body: does it.
        args: the flags, those of the process by default.
        data_name: the data it is about.
        settings_type: what it asks, with flags of its own if it has some.
    """
    args = sys.argv[1:] if args is None else args
    module = f"experiments.hinton2015.{section}"
    title = summary.strip().split("\n", 1)[0].rstrip(".")
    asked = cli.parse(settings_type, f"python -m {module}", title, args)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    command = shlex.join(["python", "-m", module, *args])
    with cli.plain_errors(resume_with=command):
        fraction, count = asked.data.validation_fraction, asked.num_seeds
        settings.require(0 <= fraction < 1, "--data.validation-fraction", "in [0, 1)", fraction)
        settings.require(count is None or count > 0, "--num-seeds", "positive", count)
        from experiments.hinton2015 import findings
        from kdjax.loop import stop_on_signals

        with stop_on_signals() as stop_fn:
            lab = _open(asked, section, data_name, stop_fn)
            found = body(lab)
            findings.write(lab, title, found, command=_portable(command))


def _portable(command: str) -> str:
    """Leave out of a command where its machine keeps things."""
    command = re.sub(r"(--(?:data\.dir|workdir))[ =]\S+", r"\1 DIR", command)
    return re.sub(r"(--teacher)[ =]\S+", r"\1 FILE", command)


def _open(asked: Settings, section: str, data_name: str, stop_fn: Callable[[], bool]) -> Lab:
    from kdjax import data

    name = asked.data.name or ("digits" if asked.quick else data_name)
    fraction = asked.data.validation_fraction
    dataset = data.load(name, data_dir=asked.data.dir, validation_fraction=fraction)
    root = asked.workdir or Path("runs") / ("hinton2015-quick" if asked.quick else "hinton2015")
    root.mkdir(parents=True, exist_ok=True)
    _claim(root, asked, name)
    (root / section).mkdir(exist_ok=True)
    return Lab(
        settings=asked,
        section=section,
        root=root,
        train=dataset.train,
        test=dataset.validation if fraction else dataset.test,
        label_names=dataset.label_names,
        image_shape=dataset.image_shape,
        mean=tuple(float(x) for x in dataset.mean),
        std=tuple(float(x) for x in dataset.std),
        stop_fn=stop_fn,
    )


def _claim(root: Path, asked: Settings, name: str) -> None:
    """Networks of one split must not be measured on another: a directory is for one."""
    path = root / f"data-{name.replace('/', '-')}.json"
    mine: dict[str, Any] = {
        "quick": asked.quick,
        "data.validation_fraction": asked.data.validation_fraction,
        "seed": asked.seed,
    }
    old = workdir.read_json(path)
    if old is not None and old != mine:
        changed = workdir.changed_setting(old, mine)
        raise ValueError(f"{root} holds networks of other settings: {changed}")
    workdir.write_json(path, mine)
