"""What is trained in an experiment, and how: the teacher, and the student of any method."""

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax.runs import methods, training
from kdjax.models import Network, NetworkSpec
from kdjax.runs.settings import Augmentation, NetworkSettings
from kdjax.runs.training import Arrays, Run, Training
from kdjax import data, distributed, models, sharding, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model, Objective, Teacher

if TYPE_CHECKING:
    from kdjax.runs.distill import Settings

from kdjax.runs.opening import Experiment, spec_of


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
    # On the host: methods make constants of them, which all processes need whole.
    params = distributed.gathered(teacher.network.variables.params)
    spec = student_spec(experiment)
    setup = methods.Setup(
        student=models.build(spec).paths,
        teacher=model.paths,
        teacher_params=params,
        num_examples=len(examples["label"]),
        num_steps=_num_steps(settings, settings.epochs or 1, examples),
        temperature=settings.temperature,
        soft_weight=settings.soft_weight,
    )
    objective = methods.objective_of(method, setup, scale=scale)
    if methods.looks_at_features(method):
        source = teachers.frozen(models.build(teacher_spec, features=model.paths.all), variables)
        spec = methods.student_of(method, spec, setup)
        classifier = params.get(model.paths.head)
        student = models.build(spec, features=setup.student.all, classifier=classifier)
        return plan_student(experiment, phase, Taught(student, objective, source, examples))
    examples = with_answers(experiment, teacher, examples)
    stored = "teacher_logits" in examples
    source = teachers.stored() if stored else teachers.frozen(model, variables)
    taught = Taught(models.build(spec), objective, source, examples)
    return plan_student(experiment, phase, taught)


def plan_student(experiment: Experiment, phase: str, taught: Taught) -> Training:
    """Settle how a student of the settings is trained, as `plan_network` does."""
    settings = experiment.settings
    return plan_network(
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


def plan_network(
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
    learning_rate: float | None = None,
) -> Training:
    """Settle how one network is trained, at a rate of its own or that of the settings.

    The step is compiled at its first use.
    """
    settings = experiment.settings
    batch_size = settings.batch_size or 1
    num_steps = _num_steps(settings, epochs, examples)
    rate = learning_rate or settings.optimizer.learning_rate
    optimizer = training.make_optimizer(
        dataclasses.replace(settings.optimizer, learning_rate=rate),
        batch_size=batch_size,
        num_steps=num_steps,
        norm_limit=network.max_norm,
    )
    view_fn = training.make_views(
        augment, crop_padding=settings.crop_padding, jitter_pixels=settings.jitter_pixels
    )
    if "resized-crop" in augment:
        examples = {**examples, "image": examples["image"].cropped(data.random_crop)}
    layout_fn = experiment.run.layout_fn
    model = models.rematerialized(model) if settings.rematerialise else model
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


def student_spec(experiment: Experiment) -> NetworkSpec:
    """Describe the student of the settings."""
    return spec_of(experiment.settings, experiment.dataset, experiment.settings.student)


def labels_only() -> Objective:
    """Make the objective of training from labels alone."""
    return combine({"hard": terms.cross_entropy()}, {"hard": 1.0})


def student_examples(experiment: Experiment) -> Arrays:
    """Pick the training examples that students see, balanced over the classes."""
    train = experiment.dataset.train
    count = experiment.settings.data.student_examples or len(train.label)
    if count < len(train.label):
        train = data.take(train, balanced_subset(np.asarray(train.label), count))
    return train._asdict()


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
    augment = experiment.settings.augment or ()
    views = training.make_views(augment, crop_padding=1, jitter_pixels=1)
    if views is not None or data.is_lazy(examples):
        return examples
    return with_logits(experiment.run, _teaching(experiment, teacher.network), examples)


def with_logits(run: Run, network: Network, examples: Arrays) -> Arrays:
    """Put a network's logits beside examples that have none yet."""
    if "teacher_logits" in examples or not len(examples["label"]):
        return examples
    logits = training.predict_logits(run, network.model, network.variables, examples)
    return {**examples, "teacher_logits": logits}


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
    return Network(spec, models.build(spec), variables)


def _num_steps(settings: "Settings", epochs: int, examples: Arrays) -> int:
    return math.ceil(epochs * len(examples["label"]) / (settings.batch_size or 1))
