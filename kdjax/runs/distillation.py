"""The stages of `experiments.distill`: teacher, students, summary."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.runs import methods, training, workdir
from kdjax.runs.console import say
from kdjax.models import Network
from kdjax.runs.training import Run
from kdjax import metrics, models, sharding, step, teachers
from kdjax import report as pages
from kdjax.checkpoint import params_sha256

if TYPE_CHECKING:
    from kdjax.runs.distill import Settings

from kdjax.runs.opening import Experiment, seeds_of, spec_of
from kdjax.runs.plans import (
    Taught,
    TeacherResult,
    labels_only,
    plan_method,
    plan_network,
    plan_student,
    student_examples,
    student_spec,
    with_logits,
)


class Student(NamedTuple):
    """A trained student of one kind (`scratch` or `distilled`) and seed."""

    phase: str
    seed: int
    network: Network


def say_if_finished(settings: "Settings") -> bool:
    """Say so, and show the table again, if the work directory holds this run, finished."""
    assert settings.workdir is not None
    summary = workdir.read_json(settings.workdir / "summary.json")
    config = workdir.read_json(settings.workdir / "config.json")
    if summary is None or config is None:
        return False
    requested = workdir.plain(dataclasses.asdict(settings))
    if workdir.changed_setting(config["requested"], requested):
        return False
    say(pages.format_table(summary))
    say(f"finished: nothing left to do in {settings.workdir}")
    return True


def obtain_teacher(experiment: Experiment) -> TeacherResult:
    """Read the teacher that the settings name, or train one on all training examples."""
    settings, dataset, run = experiment.settings, experiment.dataset, experiment.run
    spec = spec_of(settings, dataset, settings.teacher)
    if experiment.given_teacher is not None:
        variables = experiment.given_teacher.variables
        placed = sharding.put(variables, run.layout_fn(variables))
        network = experiment.given_teacher._replace(variables=placed)
        say(f"teacher        read from {settings.teacher.checkpoint}")
    else:
        plan = plan_network(
            experiment,
            "teacher",
            models.build(spec),
            settings.teacher,
            labels_only(),
            teachers.absent(),
            dataset.train._asdict(),
            epochs=settings.teacher.epochs or 1,
            augment=settings.teacher.augment or (),
            learning_rate=settings.teacher.learning_rate,
        )
        network = Network(spec, plan.model, training.train(run, plan, settings.seed))
    models.save_network(run.workdir / "teacher", network.spec, network.variables)
    return answered(experiment, network)


def answered(experiment: Experiment, network: Network) -> TeacherResult:
    """Let a network answer to the examples that networks are compared on: it can teach."""
    run, dataset = experiment.run, experiment.dataset
    splits = (dataset.validation._asdict(), dataset.test._asdict())
    return TeacherResult(network, *(with_logits(run, network, split) for split in splits))


def train_students(experiment: Experiment, teacher: TeacherResult) -> list[Student]:
    """Train, for every seed, a student on labels alone and one by the method of the settings.

    Both start from the same values and see the same examples in the same order. Where the views
    do not change from step to step, the teacher answers once and its logits are kept.
    """
    settings, run = experiment.settings, experiment.run
    spec = student_spec(experiment)
    model, examples = models.build(spec), student_examples(experiment)
    plans = [
        plan_student(
            experiment, "scratch", Taught(model, labels_only(), teachers.absent(), examples)
        ),
        plan_method(experiment, teacher, settings.method, examples, phase="distilled"),
    ]
    own = methods.student_of(settings.method, spec, teacher.network.variables.params)
    deployed = own, models.build(own)
    if settings.audit:
        training.audit(run, plans[-1], settings.seed, exempt=methods.BY_DESIGN)
    return [
        Student(plan.phase, seed, Network(*described, training.train(run, plan, seed)))
        for seed in seeds_of(settings)
        for plan, described in zip(plans, ((spec, model), deployed), strict=True)
    ]


def summarize(
    experiment: Experiment, teacher: TeacherResult, students: list[Student]
) -> dict[str, Any]:
    """Measure all networks on the test set and write `summary.json` and `student/`.

    The exported student is the distilled one with the best validation accuracy, the first of them
    on a tie or without validation examples.

    Returns:
        For `teacher`, `scratch` and `distilled`: the number of parameters and lists with one entry
        per network.
    """
    run = experiment.run
    summary: dict[str, Any] = {}
    measured = [("teacher", teacher.network)] + [(s.phase, s.network) for s in students]
    # Networks of one description share a compiled step.
    eval_steps = {
        network.spec: step.make_eval_step(network.model, layout_fn=run.layout_fn)
        for _, network in measured
    }
    for phase, network in measured:
        eval_step = eval_steps[network.spec]
        entry = summary.setdefault(
            phase, {"num_params": int(models.num_params(network.variables.params))}
        )
        for name, value in _measure(run, eval_step, network, teacher).items():
            entry.setdefault(name, []).append(value)
    distilled = [s for s in students if s.phase == "distilled"]
    scores = [-1 if v is None else v for v in summary["distilled"]["validation_accuracy"]]
    best = distilled[int(np.argmax(scores))]
    models.save_network(run.workdir / "student", best.network.spec, best.network.variables)
    return summary


def _measure(
    run: Run, eval_step: Any, network: Network, teacher: TeacherResult
) -> dict[str, float | int | str | None]:
    variables = network.variables
    test = training.measure(run, eval_step, variables, teacher.test)
    correct, count = test["accuracy"]
    validation = None
    if len(teacher.validation["label"]):
        scores = training.measure(run, eval_step, variables, teacher.validation)
        validation = metrics.value(scores["accuracy"])
    return {
        "test_errors": int(count - correct),
        **{name: metrics.value(test[name]) for name in ("accuracy", "nll", "ece", "agreement")},
        "validation_accuracy": validation,
        "params_sha256": params_sha256(network.variables.params),
    }
