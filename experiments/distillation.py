"""The stages of `experiments.distill`: open, teacher, students, summary, report."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import methods, networks, training, workdir
from experiments.console import say
from experiments.networks import Network, NetworkSpec
from experiments.settings import Augmentation, NetworkSettings
from experiments.training import Arrays, Run, Training
from kdjax import data, distributed, metrics, models, sharding, step, teachers, terms
from kdjax import report as pages
from kdjax.checkpoint import lock, params_sha256
from kdjax.objective import combine
from kdjax.types import Model, Objective, Teacher

if TYPE_CHECKING:
    from experiments.distill import Settings


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data, resolved settings and what all trainings of the run share."""

    settings: "Settings"
    dataset: data.Dataset
    run: Run
    given_teacher: Network | None


class TeacherResult(NamedTuple):
    """The teacher, and its answers to the examples that networks are compared on."""

    network: Network
    validation: Arrays
    test: Arrays


class Taught(NamedTuple):
    """What a method trains, on which examples, and where the teacher's answers come from."""

    model: Model
    objective: Objective
    teacher: Teacher
    examples: Arrays


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


def load_dataset(settings: "Settings") -> data.Dataset:
    """Read the examples that the settings name."""
    return data.load(
        settings.data.name,
        data_dir=settings.data.dir,
        validation_fraction=settings.data.validation_fraction,
        image_size=settings.data.image_size,
    )


@contextlib.contextmanager
def open_experiment(
    requested: "Settings", settings: "Settings", dataset: data.Dataset, stop_fn: Callable[[], bool]
) -> Iterator[Experiment]:
    """Claim the work directory: write `config.json`, or hold it against that of an earlier run.

    It is locked against other runs meanwhile.

    Args:
        requested: the settings as the flags gave them.
        settings: the same with every None resolved by the data.
        dataset: the examples.
        stop_fn: says whether the run should stop.

    Yields:
        The experiment.

    Raises:
        ValueError: if the directory holds a run with other settings, or a setting does not fit the
            data or the devices.
        OSError: if the directory cannot be written, or another run is at work in it.
    """
    assert settings.workdir is not None
    mesh = _mesh(settings)
    _check_fit(settings, dataset, mesh)
    # Before the directory is claimed: a teacher that does not fit must not leave a trace.
    student, teacher = (_spec(settings, dataset, x) for x in (settings.student, settings.teacher))
    networks.check_patches("--student", student)
    networks.check_patches("--teacher", teacher)
    given_teacher = None
    if settings.teacher.checkpoint is not None:
        given_teacher = networks.load_teacher(settings.teacher, teacher)
        teacher = given_teacher.spec
    places = methods.places_of(student), methods.places_of(teacher)
    methods.check_fit(settings.method, *places)
    with lock(settings.workdir):
        if _claim(settings.workdir, settings, requested):
            say(f"resuming the run in {settings.workdir}")
        run = _run_of(settings, mesh, stop_fn)
        _describe(settings, dataset, run)
        yield Experiment(settings, dataset, run, given_teacher)


def _run_of(settings: "Settings", mesh: Mesh, stop_fn: Callable[[], bool]) -> Run:
    assert settings.workdir is not None
    return Run(
        workdir=settings.workdir,
        mesh=mesh,
        log=workdir.MetricsLog(settings.workdir / "metrics.jsonl", writes=distributed.is_leader()),
        stop_fn=stop_fn,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint_every,
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
    )


def obtain_teacher(experiment: Experiment) -> TeacherResult:
    """Read the teacher that the settings name, or train one on all training examples."""
    settings, dataset, run = experiment.settings, experiment.dataset, experiment.run
    spec = _spec(settings, dataset, settings.teacher)
    if experiment.given_teacher is not None:
        variables = experiment.given_teacher.variables
        placed = jax.device_put(variables, run.layout_fn(variables))
        network = experiment.given_teacher._replace(variables=placed)
        say(f"teacher        read from {settings.teacher.checkpoint}")
    else:
        plan = _plan(
            experiment,
            "teacher",
            networks.build(spec),
            settings.teacher,
            _labels_only(),
            teachers.absent(),
            dataset.train._asdict(),
            epochs=settings.teacher.epochs or 1,
            augment=settings.teacher.augment or (),
        )
        network = Network(spec, plan.model, training.train(run, plan, settings.seed))
    networks.save_network(run.workdir / "teacher", network.spec, network.variables)
    return answered(experiment, network)


def answered(experiment: Experiment, network: Network) -> TeacherResult:
    """Let a network answer to the examples that networks are compared on: it can teach."""
    run, dataset = experiment.run, experiment.dataset
    splits = (dataset.validation._asdict(), dataset.test._asdict())
    return TeacherResult(network, *(_with_logits(run, network, split) for split in splits))


def train_students(experiment: Experiment, teacher: TeacherResult) -> list[Student]:
    """Train, for every seed, a student on labels alone and one by the method of the settings.

    Both start from the same values and see the same examples in the same order. Where the views
    do not change from step to step, the teacher answers once and its logits are kept.
    """
    settings, run = experiment.settings, experiment.run
    spec = student_spec(experiment)
    model, examples = networks.build(spec), student_examples(experiment)
    plans = [
        _plan_student(
            experiment, "scratch", Taught(model, _labels_only(), teachers.absent(), examples)
        ),
        plan_method(experiment, teacher, settings.method, examples, phase="distilled"),
    ]
    if settings.audit:
        training.audit(run, plans[-1], settings.seed, exempt=methods.BY_DESIGN)
    return [
        Student(plan.phase, seed, Network(spec, model, training.train(run, plan, seed)))
        for seed in range(settings.seed, settings.seed + (settings.num_seeds or 1))
        for plan in plans
    ]


def student_spec(experiment: Experiment) -> NetworkSpec:
    """Describe the student of the settings."""
    return _spec(experiment.settings, experiment.dataset, experiment.settings.student)


def student_examples(experiment: Experiment) -> Arrays:
    """Pick the training examples that students see, balanced over the classes."""
    train = experiment.dataset.train
    count = experiment.settings.data.student_examples or len(train.label)
    chosen = balanced_subset(train.label, count)
    return {name: array[chosen] for name, array in train._asdict().items()}


def with_answers(experiment: Experiment, teacher: TeacherResult, examples: Arrays) -> Arrays:
    """Put the teacher's logits beside examples whose views stay the same from step to step."""
    augment = experiment.settings.augment or ()
    if training.make_views(augment, crop_padding=1, jitter_pixels=1) is not None:
        return examples
    return _with_logits(experiment.run, _teaching(experiment, teacher.network), examples)


def plan_method(
    experiment: Experiment,
    teacher: TeacherResult,
    method: str,
    examples: Arrays,
    *,
    phase: str,
    scale: float = 1.0,
) -> Training:
    """Settle how a method trains the student of the settings.

    Args:
        experiment: data and settings.
        teacher: who teaches.
        method: its name, or several joined by "+".
        examples: what the student sees; the teacher's answers to it where it has some.
        phase: what the training is called.
        scale: what the weights of the method's terms are multiplied by.

    Returns:
        The training, whose step is compiled at its first use.
    """
    settings, network = experiment.settings, _teaching(experiment, teacher.network)
    teacher_spec, model, variables = network
    spec = student_spec(experiment)
    setup = methods.Setup(
        student=methods.places_of(spec),
        teacher=methods.places_of(teacher_spec),
        # On the host: methods build constants out of them.
        teacher_params=distributed.gathered(teacher.network.variables.params),
        num_examples=len(examples["label"]),
        num_steps=_num_steps(settings, settings.epochs or 1, examples),
        temperature=settings.temperature,
        soft_weight=settings.soft_weight,
    )
    objective = methods.objective_of(method, setup, scale=scale)
    if methods.looks_at_features(method):
        source = teachers.frozen(methods.with_features(teacher_spec), variables)
        taught = Taught(methods.with_features(spec), objective, source, examples)
        return _plan_student(experiment, phase, taught)
    examples = with_answers(experiment, teacher, examples)
    stored = "teacher_logits" in examples
    source = teachers.stored() if stored else teachers.frozen(model, variables)
    taught = Taught(networks.build(spec), objective, source, examples)
    return _plan_student(experiment, phase, taught)


def _teaching(experiment: Experiment, network: Network) -> Network:
    """Give the teacher the precision and the place that it has while it teaches."""
    settings, mesh = experiment.settings, experiment.run.mesh
    precision = settings.teacher.precision or network.spec.precision
    spec = dataclasses.replace(network.spec, precision=precision)
    axes = dict(sharding.LOGICAL_AXES)
    if settings.mesh.split_teacher:
        axes["fsdp"] = sharding.BATCH_AXES
    variables = sharding.place(
        network.variables, mesh, sharding.NETWORK_RULES, axes=axes, dtype=settings.teacher.precision
    )
    return Network(spec, networks.build(spec), variables)


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
    eval_steps = {
        "teacher": step.make_eval_step(teacher.network.model, layout_fn=run.layout_fn),
        "student": step.make_eval_step(students[0].network.model, layout_fn=run.layout_fn),
    }
    measured = [("teacher", teacher.network)] + [(s.phase, s.network) for s in students]
    for phase, network in measured:
        eval_step = eval_steps["teacher" if phase == "teacher" else "student"]
        entry = summary.setdefault(
            phase, {"num_params": int(models.num_params(network.variables.params))}
        )
        for name, value in _measure(run, eval_step, network, teacher).items():
            entry.setdefault(name, []).append(value)
    distilled = [s for s in students if s.phase == "distilled"]
    scores = [-1 if v is None else v for v in summary["distilled"]["validation_accuracy"]]
    best = distilled[int(np.argmax(scores))]
    networks.save_network(run.workdir / "student", best.network.spec, best.network.variables)
    return summary


def balanced_subset(labels: np.ndarray, num_examples: int) -> np.ndarray:
    """Pick examples evenly over the classes: the first of every class, the second of every, ...

    Args:
        labels: integer classes, [examples].
        num_examples: how many to pick.

    Returns:
        Sorted indices, [num_examples].
    """
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - starts
    return np.sort(np.argsort(rank, kind="stable")[:num_examples])


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


def _plan(
    experiment: Experiment,
    phase: str,
    model: Model,
    network: NetworkSettings,
    objective: Objective,
    teacher: Teacher,
    examples: Arrays,
    *,
    epochs: int,
    augment: tuple[Augmentation, ...],
) -> Training:
    """Settle how one network is trained; the step is compiled at its first use."""
    settings = experiment.settings
    batch_size = settings.batch_size or 1
    num_steps = _num_steps(settings, epochs, examples)
    optimizer = training.make_optimizer(
        settings.optimizer,
        batch_size=batch_size,
        num_steps=num_steps,
        norm_limit=network.max_norm,
    )
    view_fn = training.make_views(
        augment, crop_padding=settings.crop_padding, jitter_pixels=settings.jitter_pixels
    )
    layout_fn = experiment.run.layout_fn
    train_step = step.make_train_step(
        model,
        objective,
        optimizer,
        num_micro_batches=settings.num_micro_batches,
        skip_nonfinite=settings.on_nonfinite == "skip",
        layout_fn=layout_fn,
    )
    validation = experiment.dataset.validation._asdict()
    return Training(
        phase=phase,
        model=model,
        objective=objective,
        optimizer=optimizer,
        teacher=teacher,
        train_step=step.with_teacher(train_step, teacher, view_fn=view_fn),
        eval_step=step.make_eval_step(model, layout_fn=layout_fn),
        examples=examples,
        watched={"validation": validation} if len(validation["label"]) else {},
        batch_size=batch_size,
        num_steps=num_steps,
    )


def _plan_student(experiment: Experiment, phase: str, taught: Taught) -> Training:
    settings = experiment.settings
    return _plan(
        experiment,
        phase,
        taught.model,
        settings.student,
        taught.objective,
        taught.teacher,
        taught.examples,
        epochs=settings.epochs or 1,
        augment=settings.augment or (),
    )


def _claim(directory: Path, settings: "Settings", requested: "Settings") -> bool:
    """Let process 0 claim the work directory, and the others see that it is the same for them.

    Returns:
        Whether a run is resumed.
    """
    resumed = False
    if distributed.is_leader():
        directory.mkdir(parents=True, exist_ok=True)
        config, asked = (workdir.plain(dataclasses.asdict(x)) for x in (settings, requested))
        resumed = workdir.claim(directory, config, asked)
    distributed.exchange("claim", "done")
    if not (directory / "config.json").exists():
        raise ValueError(
            f"--workdir {directory} must be on a file system that all processes share: process "
            f"{jax.process_index()} does not see what process 0 has written there"
        )
    return resumed


def _num_steps(settings: "Settings", epochs: int, examples: Arrays) -> int:
    return math.ceil(epochs * len(examples["label"]) / (settings.batch_size or 1))


def _labels_only() -> Objective:
    return combine({"hard": terms.cross_entropy()}, {"hard": 1.0})


def _with_logits(run: Run, network: Network, examples: Arrays) -> Arrays:
    if "teacher_logits" in examples or not len(examples["label"]):
        return examples
    logits = training.predict_logits(run, network.model, network.variables, examples)
    return {**examples, "teacher_logits": logits}


def _mesh(settings: "Settings") -> Mesh:
    """Arrange the devices as the flags say."""
    sizes = {"data": settings.mesh.data, "fsdp": settings.mesh.fsdp, "tensor": settings.mesh.tensor}
    try:
        return sharding.make_mesh(**sizes)
    except ValueError as error:
        flags = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{flags}: {str(error).removeprefix('make_mesh: ')}") from error


def _spec(settings: "Settings", dataset: data.Dataset, network: NetworkSettings) -> NetworkSpec:
    return networks.make_spec(
        network,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        precision=settings.precision,
    )


def _check_fit(settings: "Settings", dataset: data.Dataset, mesh: Mesh) -> None:
    """Raise a ValueError where settings and data, or settings and devices, do not fit together."""
    asked, present = settings.data.student_examples or 0, len(dataset.train.label)
    if asked > present:
        raise ValueError(
            f"--data.student-examples is {asked}, but there are {present} training examples"
        )
    batch_size = settings.batch_size or 0
    try:
        sharding.check_batch_size(batch_size, mesh, num_micro_batches=settings.num_micro_batches)
    except ValueError as error:
        raise ValueError(f"--batch-size: {error}") from error


def _describe(settings: "Settings", dataset: data.Dataset, run: Run) -> None:
    device, processes = jax.devices()[0], jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    say(
        f"{dataset.name}: {len(dataset.train.label)} training, {len(dataset.validation.label)} "
        f"validation, {len(dataset.test.label)} test images {dataset.image_shape}, "
        f"{dataset.num_classes} classes; students see {settings.data.student_examples}"
    )
    what = f"{run.mesh.size} x {device.device_kind} ({device.platform}){where}"
    say(f"{what}, writing to {run.workdir}")
