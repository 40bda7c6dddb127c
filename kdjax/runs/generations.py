"""Distil along a chain: born-again generations, or teacher assistants on the way to the student.

    python -m experiments.generations --data.name mnist --data.dir DIR --generations 3
    python -m experiments.generations --data.name cifar100 --data.dir DIR --teacher.name resnet56 \\
        --student.name resnet8 --assistants resnet32 resnet20

Each network learns from the one before it. Born again: all are the student's architecture, and
their ensemble is measured too (Furlanello et al., "Born Again Neural Networks", 2018,
arXiv:1805.04770). Assistants: sizes between teacher and student bridge their gap (Mirzadeh et al.,
"Improved Knowledge Distillation via Teacher Assistant", 2019, arXiv:1902.03393).
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags, presets
from kdjax.runs.flags import flag
from kdjax.runs.settings import POSITIVE, NetworkName, NetworkSettings, OneMethodSettings

if TYPE_CHECKING:
    from kdjax.runs.experiment import Experiment
    from kdjax.runs.report import Judged, Page, Tile
    from kdjax.runs.teaching import TeacherResult

DIRECT, TOGETHER = "student, of the teacher alone", "all generations together"
COLUMNS = ("network", "parameters", "test errors", "test %", "validation %")


@dataclasses.dataclass(frozen=True)
class Settings(OneMethodSettings):
    """What a run of any method depends on, and the chain; all in one process."""

    generations: int = flag(
        "Students in a row, each taught by the one before; not used where there are assistants.",
        POSITIVE,
        default=3,
    )
    assistants: tuple[str, ...] = flag(
        "Networks between teacher and student, in this order: a name such as resnet14, or the "
        "widths of an mlp, such as 128x128.",
        default=(),
    )


class Measured(NamedTuple):
    """A network of the chain, or several together, by seed."""

    name: str
    num_params: int
    test_errors: tuple[int, ...]
    accuracy: tuple[float, ...]
    validation_accuracy: tuple[float, ...]


class Answers(NamedTuple):
    """Logits [examples, num_classes] for both splits, or labels [examples]."""

    validation: np.ndarray
    test: np.ndarray


def run(settings: Settings, command: str) -> None:
    """Train the teacher if need be, then the chain for every seed; print and write the table."""
    settings = presets.applied(settings)
    with runs.experiment.opened(settings) as experiment:
        student = experiment.settings.student
        chain = {name: network_of(name) for name in settings.assistants} | {"student": student}
        if not settings.assistants:
            chain = {f"generation {i + 1}": student for i in range(settings.generations)}
        check_chain(experiment, chain)
        teacher = runs.teaching.obtain_teacher(experiment)
        report(experiment, *train_chain(experiment, teacher, chain), command)


def main(args: list[str] | None = None, program: str = "python -m experiments.generations") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__, args, folder="generations-")
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        check(settings)
        run(settings, command)


def check(settings: Settings) -> None:
    """Raise a ValueError that names the flag where the chain makes no sense."""
    for name in settings.assistants:
        network_of(name)
    twice = len(set(settings.assistants)) < len(settings.assistants)
    flags.require(not twice, "--assistants", "different networks", " ".join(settings.assistants))
    can_teach = "simkd" not in settings.method.split("+")
    expected = "one whose students can teach in their turn"
    flags.require(can_teach, "--method", expected, settings.method)


def network_of(name: str) -> NetworkSettings:
    """Turn "resnet14" or "128x64" into the settings of a network.

    Raises:
        ValueError: if it is neither.
    """
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", name):
        return NetworkSettings("mlp", tuple(int(width) for width in name.split("x")))
    known = [known for known in typing.get_args(NetworkName) if known != "mlp"]
    near = f"widths, such as 64x64, or a network: {flags.nearest(name, known)}"
    flags.require(name in known, "--assistants", near, name)
    return NetworkSettings(typing.cast(NetworkName, name), ())


def check_chain(experiment: Experiment, chain: Mapping[str, NetworkSettings]) -> None:
    """Raise a ValueError where a network of the chain cannot learn from the one before it."""
    settings, dataset, given = experiment.settings, experiment.dataset, experiment.given_teacher
    specs = {
        name: runs.networks.spec_of(settings, dataset, network) for name, network in chain.items()
    }
    source = given.spec if given else runs.networks.spec_of(settings, dataset, settings.teacher)
    for name, spec in specs.items():
        runs.networks.check_patches(f"--assistants {name}", spec)
        runs.methods.check(settings.method, spec, source)
        source = spec
    if settings.rematerialise:
        runs.networks.check_blocks({f"--assistants {name}": s for name, s in specs.items()})


def train_chain(
    experiment: Experiment, teacher: TeacherResult, chain: Mapping[str, NetworkSettings]
) -> tuple[list[Measured], dict[str, list[Judged]]]:
    """Train the chain for every seed, and the last network from the teacher alone.

    Every link has seeds of its own, as born-again networks have; the last network has the same one
    with the chain and without. The last network of the best validation accuracy is written to
    W/student.

    Args:
        experiment: data and settings.
        teacher: where the chain begins.
        chain: the networks by name, each taught by the one before.

    Returns:
        The teacher, every network of the chain, the student without the chain, and where all of
        the chain have one architecture the mean of their probabilities. Besides, how sure and how
        often right they are on the test set.
    """
    seeds, alike = experiment.settings.seeds, len(set(chain.values())) == 1
    last = list(chain.values())[-1]
    found: dict[str, list[TeacherResult]] = {"teacher": [teacher]}
    for seed in seeds:
        source, own = teacher, seed
        for name, network in chain.items():
            # A seed that neither the teacher nor another link has: none must start as its twin.
            own += len(seeds)
            source = _student(experiment, source, network, name, own)
            found.setdefault(name, []).append(source)
        if not alike:
            direct = _student(experiment, teacher, last, DIRECT, own)
            found.setdefault(DIRECT, []).append(direct)
    dataset, num_params = experiment.dataset, kdjax.models.num_params
    truth = Answers(np.asarray(dataset.validation.label), np.asarray(dataset.test.label))
    answers = {
        name: [_answers(experiment, result) for result in results]
        for name, results in found.items()
    }
    measured = [
        _measured(name, num_params(results[0].network.variables.params), answers[name], truth)
        for name, results in found.items()
    ]
    _keep_best(experiment, found[[*chain][-1]], measured[len(chain)].validation_accuracy)
    if alike:
        by_seed = zip(*(answers[name] for name in chain), strict=True)
        together = [_mean(each) for each in by_seed]
        whole = sum(entry.num_params for entry in measured[1:])
        measured.append(_measured(TOGETHER, whole, together, truth))
        answers[TOGETHER] = together
    return measured, _judged(answers, truth)


def _keep_best(
    experiment: Experiment, students: Sequence[TeacherResult], accuracy: Sequence[float]
) -> None:
    student, directory = students[int(np.argmax(accuracy))].network, experiment.run.workdir
    kdjax.models.save_network(directory / "student", student.spec, student.variables)
    runs.console.say(f"student: {directory / 'student'}")


def report(
    experiment: Experiment, measured: list[Measured], judged: dict[str, list[Judged]], command: str
) -> None:
    """Write `summary.json`, the plots and the page; print the table."""
    settings = experiment.settings
    how = f"{settings.method}, {settings.epochs} epochs, seeds from {settings.seed}"
    known = runs.experiment.facts(experiment.run, command, Training=how)
    accuracies = {m.name: m.accuracy for m in measured}
    table = runs.report.Table(COLUMNS, [_row(entry) for entry in measured])

    def page() -> Page:
        figure = runs.report.plot_dots(accuracies, xlabel="test accuracy (%)")
        first = {name: own[0] for name, own in judged.items()}
        return runs.report.results_page(
            f"A chain of students, {experiment.dataset.name}",
            _lede(measured),
            dataclasses.replace(table, note=_gain(judged)),
            {"chain": (figure, "A dot is a seed, a bar their mean.")},
            known,
            tiles=[_tile(m) for m in measured],
            sections=[
                runs.report.calibration_section(first),
                *runs.report.trainings(experiment.run.log.rows()),
            ],
        )

    summary = {"facts": known, "networks": [m._asdict() for m in measured]}
    runs.report.publish(experiment.run.workdir, summary, table, page)


def _tile(m: Measured) -> Tile:
    kind = {"teacher": "teacher", DIRECT: "scratch"}.get(m.name, "distilled")
    right, about = f"{np.mean(m.accuracy):.2f}", f"{m.num_params:,} parameters"
    return runs.report.errors_tile(kind, m.name.capitalize(), m.test_errors, right, about)


def _gain(judged: dict[str, list[Judged]]) -> str:
    """Say what the chain gains: its last network, beside the one that had the teacher alone."""
    chain = [name for name in judged if name not in ("teacher", DIRECT, TOGETHER)]
    other = DIRECT if DIRECT in judged else chain[0]
    if other == chain[-1]:
        return ""
    before, after = ([own.points for own in judged[name]] for name in (other, chain[-1]))
    note = runs.report.difference_note(before, after, against=other)
    return f"{chain[-1].capitalize()}. {note}"


def _lede(measured: Sequence[Measured]) -> str:
    teacher, last = measured[0], [m for m in measured if m.name not in (DIRECT, TOGETHER)][-1]
    ours, theirs = (float(np.mean(m.test_errors)) for m in (last, teacher))
    return (
        f"At the end of the chain, {last.name.replace('_', ' ')} makes {ours:,.4g} test errors; "
        f"the teacher, where it begins, makes {theirs:,.4g}."
    )


def _student(
    experiment: Experiment, teacher: TeacherResult, network: NetworkSettings, phase: str, seed: int
) -> TeacherResult:
    """Train one network of the chain; it answers in its turn."""
    settings = dataclasses.replace(experiment.settings, student=network)
    own, phase = dataclasses.replace(experiment, settings=settings), phase.replace(" ", "_")
    examples = runs.teaching.student_examples(own)
    plan = runs.teaching.plan_method(own, teacher, settings.method, examples, phase=phase)
    trained = plan.network(runs.training.train(own.run, plan, seed))
    return runs.teaching.answered(own, trained)


def _answers(experiment: Experiment, result: TeacherResult) -> Answers:
    said, none = runs.evaluation.said, np.zeros((0, result.network.spec.num_classes), np.float32)
    splits = result.validation, result.test
    return Answers(*(said(experiment.run, x) if len(x["label"]) else none for x in splits))


def _mean(answers: tuple[Answers, ...]) -> Answers:
    return Answers(*(runs.evaluation.mean_of(z, 1.0) for z in zip(*answers, strict=True)))


def _measured(name: str, num_params: int, answers: list[Answers], truth: Answers) -> Measured:
    def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
        return 100 * float((logits.argmax(-1) == labels).mean()) if len(labels) else float("nan")

    errors = tuple(int((a.test.argmax(-1) != truth.test).sum()) for a in answers)
    test = tuple(accuracy(a.test, truth.test) for a in answers)
    validation = tuple(accuracy(a.validation, truth.validation) for a in answers)
    return Measured(name, num_params, errors, test, validation)


def _judged(answers: Mapping[str, list[Answers]], truth: Answers) -> dict[str, list[Judged]]:
    judge = runs.report.judged
    return {name: [judge(a.test, truth.test) for a in own] for name, own in answers.items()}


def _row(entry: Measured) -> tuple[str, ...]:
    formatted = runs.numbers.mean_and_deviation
    accuracies = formatted(entry.accuracy, 2), formatted(entry.validation_accuracy, 2)
    return entry.name, f"{entry.num_params:,}", formatted(entry.test_errors, 1), *accuracies


if __name__ == "__main__":
    main()
