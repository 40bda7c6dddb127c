"""Distil without data: a generator makes up the images that the student learns from.

    python -m experiments.data_free --data.name mnist --data.dir DIR --teacher.widths 1200 1200 \\
        --student.widths 800 800 --steps 6000

The data trains the teacher, unless --teacher.checkpoint names one, and measures the student at the
end; the student sees none of it. Chen et al., "Data-Free Learning of Student Networks", 2019,
arXiv:1904.01186, with the adversary of Fang et al., "Data-Free Adversarial Distillation", 2019,
arXiv:1912.11006.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.flags import flag, group
from kdjax.runs.settings import COUNTED, GeneratorSettings, RunSettings, eval_flag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdjax.models import Network
    from kdjax.runs.experiment import Experiment
    from kdjax.runs.generator import Plan
    from kdjax.runs.report import Page, Tile
    from kdjax.runs.teaching import TeacherResult

COLUMNS = ("network", "images it learned from", "test errors", "test %", "agreement %")
CAPTION = (
    "Images that the generator made up at the end, beside the teacher's probabilities at T = 1 "
    "and softened; the label is the teacher's decision. What they look like does not matter."
)

DISAGREEMENTS = (
    "The worst disagreements: the test images where the first student's probabilities are farthest "
    "from the teacher's, by KL(teacher || student) at T = 1."
)


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """What a run depends on, and the generator; all in one process."""

    made_up: ClassVar[bool] = True
    eval_every: int | None = eval_flag()
    generator: GeneratorSettings = group(GeneratorSettings)
    steps: int = flag("Steps of a student; --epochs is the teacher's.", COUNTED, default=6000)


class Result(NamedTuple):
    """A trained student, what it says of the test set, and images that it learned from."""

    seed: int
    student: Network
    test_errors: int
    agreement: float
    logits: np.ndarray
    images: np.ndarray


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then generator and student for every seed; write the page."""
    with runs.experiment.opened(settings) as experiment:
        teacher = runs.teaching.obtain_teacher(experiment)
        asked = settings.generator
        plan = runs.generator.plan(experiment, teacher, asked, num_steps=settings.steps)
        found = [train(experiment, teacher, plan, seed) for seed in experiment.settings.seeds]
        report(experiment, teacher, plan, found, command)


def main(args: list[str] | None = None, program: str = "python -m experiments.data_free") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__, args, folder="data-free-")
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        run(settings, command)


def train(experiment: Experiment, teacher: TeacherResult, plan: Plan, seed: int) -> Result:
    """Train from a seed, or from where an earlier run left it, and measure the student."""
    run, spec = experiment.run, runs.teaching.student_spec(experiment)
    state = runs.generator.train(run, plan, seed)
    variables = runs.generator.student_variables(state)
    eval_step = kdjax.step.make_eval_step(plan.student)
    measured = runs.evaluation.measure(run, eval_step, variables, teacher.test)
    correct, count = measured["accuracy"]
    student = kdjax.models.Network(spec, plan.student, variables)
    agreement = kdjax.metrics.value(measured["agreement"])
    images = runs.generator.images_of(
        plan.generator, state.generator, noise_size=plan.noise_size, count=200, seed=seed
    )
    test = experiment.dataset.test._asdict()
    logits = runs.evaluation.predict(run, plan.student, variables, test)
    return Result(seed, student, int(count - correct), agreement, logits, images)


def report(
    experiment: Experiment, teacher: TeacherResult, plan: Plan, found: list[Result], command: str
) -> None:
    """Write `summary.json`, the student, pictures and the page; print the table."""
    directory, student = experiment.run.workdir, found[0].student
    kdjax.models.save_network(directory / "student", student.spec, student.variables)
    labels = np.asarray(teacher.test["label"])
    said = runs.evaluation.said(experiment.run, teacher.test)
    wrong = int((said.argmax(-1) != labels).sum())
    known = runs.experiment.facts(
        experiment.run,
        command,
        Training=f"{plan.num_steps} steps of {experiment.settings.batch_size} images made up",
        Seeds=", ".join(str(r.seed) for r in found),
    )
    name = experiment.dataset.name
    table = runs.report.Table(COLUMNS, _rows(name, wrong, found, labels))

    def page() -> Page:
        both = said, found[0].logits
        kinds = zip(("teacher", "distilled"), both, strict=True)
        networks = {kind: runs.report.judged(logits, labels) for kind, logits in kinds}
        images, names = experiment.dataset.test.image, experiment.dataset.label_names
        apart = runs.report.plot_disagreements(images, labels, *both, names)
        pictures = {"images": (made_up(), CAPTION), "disagreements": (apart, DISAGREEMENTS)}
        return runs.report.results_page(
            f"Data-free distillation, {name}",
            _lede(name, wrong, found),
            table,
            {},
            known,
            tiles=_tiles(teacher, wrong, found, labels),
            sections=[
                runs.report.Section("What it learned from, and where it errs", figures=pictures),
                runs.report.calibration_section(networks),
                *runs.report.trainings(experiment.run.log.rows()),
            ],
        )

    def made_up() -> Figure:
        images, (_, model, variables) = found[0].images, teacher.network
        unlabeled = {"image": images, "label": np.zeros(len(images), np.int32)}
        logits = runs.evaluation.predict(experiment.run, model, variables, unlabeled)
        names, temperature = experiment.dataset.label_names, experiment.settings.temperature
        return runs.report.plot_instructive(images, logits.argmax(-1), logits, names, temperature)

    each = [{"seed": r.seed, "test_errors": r.test_errors, "agreement": r.agreement} for r in found]
    summary = {"facts": known, "teacher_errors": wrong, "students": each}
    runs.report.publish(directory, summary, table, page)
    runs.console.say(f"student: {directory / 'student'}")


def _lede(name: str, teacher_errors: int, found: list[Result]) -> str:
    errors = float(np.mean([result.test_errors for result in found]))
    return (
        f"A student that has seen no image of {name} makes {errors:,.4g} test errors; the teacher, "
        f"who learned from them, makes {teacher_errors:,}."
    )


def _tiles(
    teacher: TeacherResult, wrong: int, found: list[Result], labels: np.ndarray
) -> list[Tile]:
    errors = {"teacher": [wrong], "distilled": [r.test_errors for r in found]}
    networks = {"teacher": teacher.network, "distilled": found[0].student}
    return [
        runs.report.errors_tile(
            *(kind, name, errors[kind], _percent(errors[kind], labels)),
            f"{kdjax.models.num_params(networks[kind].variables.params):,} parameters",
        )
        for kind, name in (("teacher", "Teacher"), ("distilled", "Student, without data"))
    ]


def _rows(
    name: str, teacher_errors: int, found: list[Result], labels: np.ndarray
) -> list[tuple[str, ...]]:
    formatted, errors = runs.numbers.mean_and_deviation, [r.test_errors for r in found]
    agreement = formatted([100 * r.agreement for r in found], 2)
    return [
        ("teacher", name, str(teacher_errors), _percent([teacher_errors], labels), "100.00"),
        ("student", "none of them", formatted(errors, 1), _percent(errors, labels), agreement),
    ]


def _percent(errors: Sequence[int], labels: np.ndarray) -> str:
    right = [100 * (1 - count / len(labels)) for count in errors]
    return str(runs.numbers.mean_and_deviation(right, 2))


if __name__ == "__main__":
    main()
