"""Two kinds of distillation that need more than a teacher and its images.

    python -m experiments.survey --kind several-teachers
    python -m experiments.survey --kind modalities --data.name mnist --data.dir DIR

    several-teachers  a perceptron, convolutions and a transformer, each by itself and their mean
    modalities        the teacher sees images, the student the means of their rows and columns alone

Both are made of runs of `experiments.distill`, whose commands are printed: teachers that are
trained there answer, and what they said teaches by `--stored-logits`. Gou, Yu, Maybank, Tao,
"Knowledge Distillation: A Survey", 2020, arXiv:2006.05525, sections 3.3, 5.2 and 5.3.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.distill import main as distil_main
from kdjax.runs.flags import flag, group
from kdjax.runs.settings import POSITIVE

if TYPE_CHECKING:
    from kdjax.data import Dataset
    from kdjax.models import Network

Kind = Literal["several-teachers", "modalities"]
Rows = list[tuple[str, ...]]
COLUMNS = ("student", "taught by", "teacher's test %", "student's test %")
SPLITS = ("train", "validation", "test")
STUDENT = "convnet"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where."""

    name: str = flag("A set of labeled images.", default="digits")
    dir: Path | None = flag("Directory with prepared TFDS sets; TFDS's own by default.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which kind, on which data, how often and for how long."""

    kind: Kind = flag("What is tried.", default="several-teachers")
    data: DataSettings = group(DataSettings)
    student_examples: int = flag("Images that students learn from.", POSITIVE, default=100)
    epochs: int | None = flag("As that of distill, of students.", POSITIVE)
    teacher_epochs: int | None = flag("Passes of a teacher over all images.", POSITIVE)
    num_seeds: int = flag("Students of each kind.", POSITIVE, default=3)
    workdir: Path | None = flag("Where everything goes. Default: runs/survey-KIND.")


def run(settings: Settings) -> None:
    """Train what the kind needs, and print its table."""
    root = settings.workdir or Path("runs") / f"survey-{settings.kind}"
    with flags.plain_errors(settings, resume_with="the same command"):
        root.mkdir(parents=True, exist_ok=True)
        dataset = kdjax.data.load(settings.data.name, data_dir=settings.data.dir)
    rows = KINDS[settings.kind](settings, root, dataset)
    table = runs.report.Table(COLUMNS, rows)
    title = f"{TITLES[settings.kind]}, {dataset.name}"
    summary = {"columns": list(COLUMNS), "rows": [list(row) for row in rows]}
    folders = sorted(root.glob("*/config.json"))
    trained_by = [by for path in folders for by in runs.workdir.trained_by(path)]
    facts = {"Command": command_of(settings), **runs.experiment.origin(trained_by)}
    section = runs.report.Section(tables=[table], facts=facts)
    runs.report.publish(root, summary, table, lambda: runs.report.Page(title, [section], LEDE))


def command_of(settings: Settings) -> str:
    """Return the command without where its machine keeps things."""
    kind = f"python -m experiments.survey --kind {settings.kind} --data.name {settings.data.name}"
    sizes = f"--student-examples {settings.student_examples} --num-seeds {settings.num_seeds}"
    times = {"epochs": settings.epochs, "teacher-epochs": settings.teacher_epochs}
    return " ".join([kind, sizes, *(f"--{name} {n}" for name, n in times.items() if n)])


def several_teachers(settings: Settings, root: Path, dataset: Dataset) -> Rows:
    """Teach by each of three architectures, and by the mean of their probabilities."""
    small = dataset.image_shape[0] < 16
    teachers = {"mlp": "", "convnet": "", "vit_mu": f"--teacher.patch-size {4 if small else 7}"}
    found = {
        name: distil(settings, root / name, f"--teacher.name {name} {own} --student.name {STUDENT}")
        for name, own in teachers.items()
    }
    networks = [kdjax.models.load_network(root / name / "teacher") for name in teachers]
    path = root / "mean.npz"
    store(path, dataset, networks)
    found["the mean of all three"] = distil(
        settings,
        root / "mean",
        f"--stored-logits {shlex.quote(str(path))} --student.name {STUDENT}",
    )
    labels = (STUDENT, "labels alone", "", percent(found["mlp"]["scratch"]))
    rows = [
        (STUDENT, name, percent(own["teacher"]), percent(own["distilled"]))
        for name, own in found.items()
    ]
    return [labels, *rows]


def modalities(settings: Settings, root: Path, dataset: Dataset) -> Rows:
    """Teach a student that sees the means of rows and columns by a teacher of whole images."""
    seen = distil(settings, root / "images", f"--teacher.name convnet --student.name {STUDENT}")
    answers, means = root / "answers.npz", root / "means.npz"
    store(answers, dataset, [kdjax.models.load_network(root / "images" / "teacher")])
    arrays = {}
    for split in SPLITS:
        examples = getattr(dataset, split)
        arrays[f"x_{split}"] = projections(np.asarray(examples.image))
        arrays[f"y_{split}"] = np.asarray(examples.label)
    np.savez(means, **arrays)  # type: ignore[arg-type]
    own = f"--data.dir {shlex.quote(str(means))} --stored-logits {shlex.quote(str(answers))}"
    own = f"{own} --student.widths 128"
    few = distil(settings, root / "few", own, own_data=True)
    everything = dataclasses.replace(settings, student_examples=len(dataset.train.label))
    whole = distil(everything, root / "all", f"{own} --soft-weight 1", own_data=True)
    count, total = f"{settings.student_examples:,}", f"{len(dataset.train.label):,}"
    teacher, where = percent(seen["teacher"]), "row and column means"
    return [
        ("images", f"labels of {count}", "", percent(seen["scratch"])),
        (where, f"labels of {count}", "", percent(few["scratch"])),
        (where, f"a teacher of images, on {count}", teacher, percent(few["distilled"])),
        (where, f"a teacher of images, on {total} without labels", teacher,
         percent(whole["distilled"])),
        (where, f"labels of {total}", "", percent(whole["scratch"])),
    ]  # fmt: skip


def projections(images: np.ndarray) -> np.ndarray:
    """Return the means over the columns and rows of images [n, h, w, c]: [n, (h + w) c]."""
    means = images.astype(np.float32).mean(2), images.astype(np.float32).mean(1)
    return np.concatenate([x.reshape(len(images), -1) for x in means], axis=1) / 255


def store(path: Path, dataset: Dataset, networks: Sequence[Network]) -> None:
    """Write what networks say in the mean of all splits, for `--stored-logits`."""
    said = {}
    for split in SPLITS:
        images = np.asarray(getattr(dataset, split).image)
        batches = [images[i : i + 1000] for i in range(0, len(images), 1000)]
        logits = [np.concatenate([np.asarray(n(x)) for x in batches]) for n in networks]
        said[split] = runs.evaluation.mean_of(logits, 1.0) if len(networks) > 1 else logits[0]
    np.savez(path, **said)  # type: ignore[arg-type]


def distil(
    settings: Settings, workdir: Path, own: str, *, own_data: bool = False
) -> Mapping[str, Any]:
    """Run `experiments.distill`, or read what it left: its summary."""
    given = [*shlex.split(own), "--workdir", str(workdir), "--num-seeds", str(settings.num_seeds)]
    given += ["--data.student-examples", str(settings.student_examples), "--augment", "none"]
    given += ["--epochs", str(settings.epochs)] if settings.epochs else []
    if not own_data:
        given += ["--data.name", settings.data.name]
        given += ["--data.dir", str(settings.data.dir)] if settings.data.dir else []
        if settings.teacher_epochs and "--stored-logits" not in given:
            given += ["--teacher.epochs", str(settings.teacher_epochs)]
    if not (workdir / "finished").exists():
        runs.console.say(f"\npython -m experiments.distill {shlex.join(given)}")
        distil_main(given)
    summary: Mapping[str, Any] = runs.workdir.read_json(workdir / "summary.json") or {}
    return summary


def percent(measured: Mapping[str, Any]) -> str:
    """Format accuracies by seed."""
    return runs.numbers.mean_and_deviation([100 * x for x in measured["accuracy"]], 2)


TITLES = {"several-teachers": "Several teachers", "modalities": "A teacher that sees more"}
LEDE = "Test accuracy in %, mean ± sample standard deviation over seeds of the student."
KINDS = {"several-teachers": several_teachers, "modalities": modalities}


def main(args: list[str] | None = None, program: str = "python -m experiments.survey") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings = flags.parse(Settings, program, __doc__ or "", args)
    with flags.plain_errors(settings, resume_with=program):
        flags.check(settings)
    run(settings)


if __name__ == "__main__":
    main()
