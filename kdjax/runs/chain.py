"""The stages of `experiments.generations`: train a chain of networks, measure it, tabulate."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax import models
from kdjax import report as pages
from kdjax.runs import distillation as job
from kdjax.runs import methods, networks, plans, training, workdir
from kdjax.runs.console import say
from kdjax.runs.networks import Network
from kdjax.runs.numbers import spread
from kdjax.runs.opening import Experiment, facts, seeds_of, spec_of
from kdjax.runs.plans import TeacherResult
from kdjax.runs.settings import NetworkSettings
from kdjax.runs.training import mean_of

DIRECT, TOGETHER = "student, of the teacher alone", "all generations together"
COLUMNS = ("network", "parameters", "test errors", "test %", "validation %")


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


def check(experiment: Experiment, chosen: Mapping[str, NetworkSettings]) -> None:
    """Raise a ValueError where a network of the chain cannot learn from the one before it."""
    settings, dataset, given = experiment.settings, experiment.dataset, experiment.given_teacher
    links = {name: spec_of(settings, dataset, network) for name, network in chosen.items()}
    source = given.spec if given else spec_of(settings, dataset, settings.teacher)
    for name, spec in links.items():
        networks.check_patches(f"--assistants {name}", spec)
        methods.check(settings.method, spec, source)
        source = spec
    if settings.rematerialise:
        networks.check_blocks({f"--assistants {name}": spec for name, spec in links.items()})


def train_all(
    experiment: Experiment, teacher: TeacherResult, chosen: Mapping[str, NetworkSettings]
) -> list[Measured]:
    """Train the chain for every seed, and the last network from the teacher alone.

    Every link has seeds of its own, as born-again networks have; the last network has the same one
    with the chain and without.

    Args:
        experiment: data and settings.
        teacher: where the chain begins.
        chosen: the networks by name, each taught by the one before.

    Returns:
        The teacher, every network of the chain, the student without the chain, and where all of
        the chain have one architecture the mean of their probabilities.
    """
    settings, dataset = experiment.settings, experiment.dataset
    alike = len(set(chosen.values())) == 1
    found: dict[str, list[Network]] = {}
    answers: dict[str, list[Answers]] = {}

    def keep(name: str, network: Network, given: Answers) -> None:
        found.setdefault(name, []).append(network)
        answers.setdefault(name, []).append(given)

    keep("teacher", teacher.network, _answers(teacher))
    for seed in seeds_of(settings):
        source, own = teacher, seed
        for name, network in chosen.items():
            # A seed that neither the teacher nor another link has: none must start as its twin.
            own += len(seeds_of(settings))
            source = _student(experiment, source, network, name, own)
            keep(name, source.network, _answers(source))
        if not alike:
            direct = _student(experiment, teacher, network, DIRECT, own)
            keep(DIRECT, direct.network, _answers(direct))
    truth = Answers(np.asarray(dataset.validation.label), np.asarray(dataset.test.label))
    measured = [
        _measured(name, models.num_params(networks[0].variables.params), answers[name], truth)
        for name, networks in found.items()
    ]
    if alike:
        by_seed = zip(*(answers[name] for name in chosen), strict=True)
        together = [
            Answers(*(mean_of(z, 1.0) for z in zip(*each, strict=True))) for each in by_seed
        ]
        num_params = sum(entry.num_params for entry in measured[1:])
        measured.append(_measured(TOGETHER, num_params, together, truth))
    return measured


def report(experiment: Experiment, measured: list[Measured], command: str) -> None:
    """Write `summary.json`, the plot and the page; print the table."""
    run, settings = experiment.run, experiment.settings
    how = f"{settings.method}, {settings.epochs} epochs, seeds from {settings.seed}"
    known = facts(experiment, command, Training=how)
    rows = [_row(entry) for entry in measured]
    figure = pages.plot_dots({m.name: m.accuracy for m in measured}, xlabel="test accuracy (%)")
    pages.save_figure(run.workdir, "chain", figure)
    section = pages.Section(
        heading="Every network learns from the one before it",
        tables=[("", COLUMNS, rows)],
        figures=[((run.workdir / "chain.svg").read_bytes(), "A dot is a seed, a bar their mean.")],
        notes=[],
        facts=known,
    )
    title = f"A chain of students, {experiment.dataset.name}"
    page = pages.write_page(run.workdir / "report.html", title=title, sections=[section])
    summary: dict[str, Any] = {"facts": known, "networks": [m._asdict() for m in measured]}
    workdir.write_json(run.workdir / "summary.json", summary)
    say("\n" + pages.format_rows([COLUMNS, *rows]))
    say(f"\nreport: {page}")


def _student(
    experiment: Experiment, teacher: TeacherResult, network: NetworkSettings, phase: str, seed: int
) -> TeacherResult:
    """Train one network of the chain; it answers in its turn."""
    settings = dataclasses.replace(experiment.settings, student=network)
    own = dataclasses.replace(experiment, settings=settings)
    plan = plans.plan_method(
        own, teacher, settings.method, plans.student_examples(own), phase=phase.replace(" ", "_")
    )
    params = teacher.network.variables.params
    spec = methods.student_of(settings.method, plans.student_spec(own), params)
    trained = Network(spec, networks.build(spec), training.train(own.run, plan, seed))
    return job.answered(own, trained)


def _answers(result: TeacherResult) -> Answers:
    none = np.zeros((0, result.network.spec.num_classes), np.float32)
    return Answers(*(x.get("teacher_logits", none) for x in (result.validation, result.test)))


def _measured(name: str, num_params: int, answers: list[Answers], truth: Answers) -> Measured:
    def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
        return 100 * float((logits.argmax(-1) == labels).mean()) if len(labels) else float("nan")

    return Measured(
        name,
        num_params,
        tuple(int((a.test.argmax(-1) != truth.test).sum()) for a in answers),
        tuple(accuracy(a.test, truth.test) for a in answers),
        tuple(accuracy(a.validation, truth.validation) for a in answers),
    )


def _row(entry: Measured) -> tuple[str, ...]:
    return (
        entry.name,
        f"{entry.num_params:,}",
        spread(entry.test_errors, 1),
        spread(entry.accuracy, 2),
        spread(entry.validation_accuracy, 2),
    )
