"""Who teaches whom, and how: the teacher of a run, and its students by any method."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax import data, distributed, models, sharding, step, teachers
from kdjax.models import Network, NetworkSpec
from kdjax.objective import combine
from kdjax.runs import (
    evaluation,
    methods,
    networks,
    probes,
    recipes,
    stored,
    tasks,
    training,
    unlabelled,
)
from kdjax.runs.console import say
from kdjax.runs.evaluation import Arrays, Run
from kdjax.runs.experiment import Experiment
from kdjax.runs.networks import spec_of
from kdjax.runs.resolved import ResolvedTeacher
from kdjax.runs.settings import Augmentation
from kdjax.runs.tasks import SINGLE_LABEL, Task
from kdjax.runs.training import Training
from kdjax.types import Model, Objective, Teacher, Variables

MOST_KEPT = 2**28
"""Logits that are kept beside the examples of a split: 1 GiB of them."""


class TeacherResult(NamedTuple):
    """A trained network that can teach, and its answers to what networks are compared on.

    Where they are compared with the answers, and there are too many to be kept, `teacher_logits`
    finds those of a batch.
    """

    network: Network
    validation: Arrays
    test: Arrays


class Lesson(NamedTuple):
    """What is minimized, on which examples, and where the teacher's answers come from.

    `validation` is what is measured now and then, with the teacher's answers; by default without.
    """

    objective: Objective
    teacher: Teacher
    examples: Arrays
    validation: Arrays | None = None


def obtain_teacher(experiment: Experiment) -> TeacherResult:
    """Read the teacher that the settings name, or train one on all training examples."""
    settings, dataset, run = experiment.settings, experiment.dataset, experiment.run
    spec = spec_of(settings, dataset, settings.teacher)
    if experiment.stored_logits is not None:
        say(f"teacher        what it said is read from {settings.stored_logits}")
        return answered(experiment, stored.network(spec))
    if experiment.given_teacher is not None:
        variables = experiment.given_teacher.variables
        on_mesh = sharding.put(variables, run.layout_fn(variables))
        network = experiment.given_teacher._replace(variables=on_mesh)
        source = settings.teacher.checkpoint or settings.teacher.module
        say(f"teacher        read from {source}")
        if settings.teacher.head == "probe":
            network = probes.fitted(run, dataset, network)
    else:
        lesson = from_labels(tasks.arrays_of(dataset.train), task=experiment.task)
        plan = plan_network(
            experiment, "teacher", spec, models.build(spec), lesson, settings.teacher
        )
        network = plan.network(training.train(run, plan, settings.seed))
    models.save_network(run.workdir / "teacher", network.spec, network.variables)
    return answered(experiment, network)


def answered(experiment: Experiment, network: Network) -> TeacherResult:
    """Put a network's answers beside the examples that networks are compared on: it can teach."""
    run, dataset = experiment.run, experiment.dataset
    asked = {"teacher_logits": evaluation.logits_fn(network.model, network.variables)}

    def beside(examples: data.Examples, split: str) -> Arrays:
        arrays = {**tasks.arrays_of(examples), **_said(experiment, split)}
        if not experiment.task.compares:
            return arrays
        return {**asked, **with_logits(run, network, arrays)}

    return TeacherResult(
        network, beside(dataset.validation, "validation"), beside(dataset.test, "test")
    )


def _said(experiment: Experiment, split: str) -> Arrays:
    """Return what a teacher that is not there said of a split, nothing of one that is."""
    if experiment.stored_logits is None:
        return {}
    return {"teacher_logits": experiment.stored_logits[split]}


def from_labels(
    examples: Arrays, label_smoothing: float = 0.0, task: Task = SINGLE_LABEL
) -> Lesson:
    """Return the lesson without a teacher."""
    return Lesson(labels_only(label_smoothing, task), teachers.absent(), examples)


def labels_only(label_smoothing: float = 0.0, task: Task = SINGLE_LABEL) -> Objective:
    """Make the objective of training from labels alone, of a task that has some."""
    assert task.hard is not None
    return combine({"hard": task.hard(label_smoothing)}, {"hard": 1.0})


def plan_scratch(experiment: Experiment, examples: Arrays) -> Training:
    """Return how the student of the settings is trained from labels alone."""
    spec = student_spec(experiment)
    lesson = from_labels(examples, experiment.settings.label_smoothing, experiment.task)
    return plan_network(experiment, "scratch", spec, models.build(spec), lesson)


def plan_method(
    experiment: Experiment,
    teacher: TeacherResult,
    method: str,
    examples: Arrays,
    *,
    phase: str,
    scale: float = 1.0,
) -> Training:
    """Return how a method trains the student of the settings.

    Where views do not change from step to step and the method needs logits alone, the teacher
    answers once and its logits are kept. On images without labels the teacher alone teaches; a
    method whose own terms read labels does not see them.

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
    more = None if unlabelled.reads_labels(method) else experiment.dataset.unlabelled
    if more is not None:
        seen = data.Examples(examples["image"], examples["label"])
        examples = data.with_all(seen, more)._asdict()
    # On the host: methods make constants of them, which all processes need whole.
    params = distributed.gathered(teacher.network.variables.params)
    spec = student_spec(experiment)
    paths = models.build(spec).paths, network.model.paths
    counts = len(examples["label"]), _num_steps(experiment, settings.epochs, examples)
    setup = methods.Setup(
        *(*paths, params, *counts),
        temperature=settings.temperature,
        soft_weight=settings.soft_weight,
        last_soft_weight=settings.anneal_soft_weight,
        label_smoothing=settings.label_smoothing,
        task=experiment.task,
    )
    if more is not None:
        setup = setup._replace(of_labels_fn=unlabelled.of_labeled)
    objective = methods.objective_of(method, setup, scale=scale)
    if methods.looks_at_features(method, of_teacher=True):
        answering = models.build(network.spec, features=network.model.paths.all)
        source = teachers.frozen(answering, network.variables)
    else:
        examples = with_answers(experiment, teacher, examples)
        source = teachers.frozen(network.model, network.variables)
        source = teachers.stored() if "teacher_logits" in examples else source
    if methods.looks_at_features(method):
        spec = methods.student_of(method, spec, setup)
        classifier = params.get(network.model.paths.head)
        watched_by = dict.fromkeys((*setup.student.all, *models.build(spec).paths.heads))
        model = models.build(spec, features=tuple(watched_by), classifier=classifier)
    else:
        model = models.build(spec)
    watched = teacher.validation if experiment.task.name == "embeddings" else None
    lesson = Lesson(objective, source, examples, watched)
    return plan_network(experiment, phase, spec, model, lesson)


def plan_network(
    experiment: Experiment,
    phase: str,
    spec: NetworkSpec,
    model: Model,
    lesson: Lesson,
    teacher: ResolvedTeacher | None = None,
) -> Training:
    """Return how one network is trained: as students are, or by what a teacher has of its own.

    A teacher may have a rate of its own; by default it is that of the settings. The step is
    compiled at its first use.
    """
    settings, layout_fn = experiment.settings, experiment.run.layout_fn
    own, examples, batch_size = teacher or settings, lesson.examples, settings.batch_size
    num_steps = _num_steps(experiment, own.epochs, examples, whole=teacher is not None)
    asked, norm_limit = settings.optimizer, (teacher or settings.student).max_norm
    if teacher and teacher.learning_rate:
        asked = dataclasses.replace(asked, learning_rate=teacher.learning_rate)
    optimizer = recipes.make_optimizer(
        asked, batch_size=batch_size, num_steps=num_steps, norm_limit=norm_limit
    )
    view_fn = _views(experiment, own.augment, examples)
    average = None if teacher else recipes.make_average(settings.average, model)
    if "resized-crop" in own.augment:
        examples = {**examples, "image": examples["image"].cropped(data.random_crop)}
    model = models.rematerialized(model) if settings.rematerialise else model
    train_step = step.make_train_step(
        model,
        lesson.objective,
        optimizer,
        num_micro_batches=settings.num_micro_batches,
        skip_nonfinite=settings.on_nonfinite == "skip",
        layout_fn=layout_fn,
        average=average,
    )
    validation = lesson.validation or tasks.arrays_of(experiment.dataset.validation)
    return Training(
        *(phase, spec, model, lesson.objective, optimizer, lesson.teacher),
        lambda setting, teacher: step.with_teacher(train_step, teacher, view_fn=view_fn),
        *(examples, batch_size, num_steps),
        eval_step=tasks.eval_step(experiment.task, model, layout_fn),
        watched={"validation": validation} if len(validation["label"]) else {},
        average=average,
        start=None if teacher else _start(experiment, spec),
        task=experiment.task,
    )


def _start(experiment: Experiment, spec: NetworkSpec) -> Variables | None:
    """Return where the student of the settings starts, None where it, or another, is drawn."""
    own = dataclasses.replace(spec, reused_width=0) == student_spec(experiment)
    if experiment.student_start is None or not own:
        return None
    return networks.in_place(experiment.student_start, spec)


def _views(
    experiment: Experiment, augment: Sequence[Augmentation], examples: Arrays
) -> step.ViewFn | None:
    """Return the views of the settings, by which classes are weighed too."""
    settings, num_classes = experiment.settings, experiment.dataset.num_classes
    weights = None
    if settings.class_weights is not None:
        weights = np.array(settings.class_weights, np.float32)
    elif settings.balanced_classes:
        weights = data.balanced_weights(np.asarray(examples["label"]), num_classes)
    return recipes.make_views(
        tuple(augment),
        crop_padding=settings.crop_padding,
        jitter_pixels=settings.jitter_pixels,
        mixing=recipes.mixing_of(settings, num_classes),
        class_weights=weights,
    )


def student_spec(experiment: Experiment) -> NetworkSpec:
    """Describe the student of the settings."""
    return spec_of(experiment.settings, experiment.dataset, experiment.settings.student)


def student_examples(experiment: Experiment) -> Arrays:
    """Pick the training examples that students see, balanced over the classes if there are some."""
    train, count = experiment.dataset.train, experiment.settings.data.student_examples
    said = _said(experiment, "train")
    if count < len(train.label):
        labels = np.asarray(train.label)
        if labels.ndim > 1:
            labels = np.random.default_rng(0).permutation(len(labels))
        chosen = balanced_subset(labels, count)
        train, said = data.take(train, chosen), {name: x[chosen] for name, x in said.items()}
    return {**tasks.arrays_of(train), **said}


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


def with_answers(experiment: Experiment, teacher: TeacherResult, examples: Arrays) -> Arrays:
    """Put the teacher's logits beside examples in memory whose views stay the same."""
    if recipes.changes_images(experiment.settings.augment) or data.is_lazy(examples):
        return examples
    return with_logits(experiment.run, _teaching(experiment, teacher.network), examples)


def with_logits(run: Run, network: Network, examples: Arrays) -> Arrays:
    """Put a network's logits beside examples that have none yet, unless they would be too many."""
    places = examples["label"].shape
    num_logits = network.spec.num_classes * math.prod(places if len(places) == 3 else places[:1])
    if "teacher_logits" in examples or not 0 < num_logits <= MOST_KEPT:
        return examples
    whole = {name: array for name, array in examples.items() if name != "mask"}
    logits = evaluation.predict(run, network.model, network.variables, whole)
    return {**examples, "teacher_logits": logits}


def _teaching(experiment: Experiment, network: Network) -> Network:
    """Return the teacher in the precision and on the devices that it has while it teaches."""
    if stored.is_stored(network):
        return network
    settings, mesh = experiment.settings, experiment.run.mesh
    precision = settings.teacher.precision or network.spec.precision
    spec = dataclasses.replace(network.spec, precision=precision)
    axes = dict(sharding.LOGICAL_AXES)
    if settings.mesh.split_teacher:
        axes["fsdp"] = sharding.BATCH_AXES
    variables = sharding.place(
        network.variables, mesh, sharding.NETWORK_RULES, axes=axes, dtype=settings.teacher.precision
    )
    return Network(spec, models.build(spec), variables)


def _num_steps(
    experiment: Experiment, epochs: int, examples: Arrays, *, whole: bool = False
) -> int:
    """Return the steps of some epochs: of a teacher over its examples, or of any student.

    Where there are images without labels, they belong to an epoch of every student, so that one
    that does not see them takes as many steps as one that does.
    """
    count, more = len(examples["label"]), experiment.dataset.unlabelled
    if more is not None and not whole:
        count = experiment.settings.data.student_examples + len(more)
    steps = math.ceil(epochs * count / experiment.settings.batch_size)
    if steps >= 2**31:
        raise ValueError(f"--epochs {epochs} are {steps} steps; 2,147,483,647 can be counted")
    return steps
