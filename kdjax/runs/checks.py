"""Whether settings, data, task and devices fit together, before anything is trained."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from kdjax import data, sharding
from kdjax.runs import methods, recipes, tasks, unlabelled, workdir
from kdjax.runs.needs import Need
from kdjax.runs.resolved import Resolved
from kdjax.runs.settings import Augmentation, RunSettings


def check(asked: RunSettings, settings: Resolved, dataset: data.Dataset, mesh: Mesh) -> None:
    """Raise a ValueError that names the flag of the first setting that does not fit.

    Args:
        asked: the settings as the flags gave them.
        settings: with nothing left to the data.
        dataset: the examples.
        mesh: how the devices are arranged.
    """
    _check_rows(asked, settings, dataset)
    _check_task(settings, dataset)
    _check_stored(settings, dataset)
    _check_examples(asked, settings, dataset)
    _check_unlabelled(asked, settings, dataset)
    check_batches(settings, mesh)


def _views(settings: Resolved) -> list[Augmentation]:
    """Return the augmentations of any training, each once."""
    named = dict.fromkeys((*settings.augment, *settings.teacher.augment))
    return [name for name in named if name != "none"]


def unread(asked: RunSettings, settings: Resolved) -> list[str]:
    """Name the flags that were given and that nothing in a run looks at.

    Args:
        asked: the settings as the flags gave them.
        settings: the same, decided.
    """
    usual = workdir.flatten(workdir.plain(dataclasses.asdict(type(asked)())))
    given = workdir.flatten(workdir.plain(dataclasses.asdict(asked)))
    owners: dict[str, str] = {}
    if "kd" not in methods.methods_in(settings.method):
        whose = f"of kd, and --method is {settings.method}"
        owners |= dict.fromkeys(("temperature", "soft_weight", "anneal_soft_weight"), whose)
    if settings.optimizer.name != "sgd":
        whose = f"of sgd, and --optimizer.name is {settings.optimizer.name}"
        owners |= dict.fromkeys(("optimizer.momentum", "optimizer.nesterov"), whose)
    return [
        f"--{name.replace('_', '-')} changes nothing here: it is {whose}"
        for name, whose in owners.items()
        if given.get(name) != usual.get(name)
    ]


def _check_rows(asked: RunSettings, settings: Resolved, dataset: data.Dataset) -> None:
    """Raise a ValueError if something needs images, and there are rows of numbers."""
    if len(dataset.image_shape) == 3:
        return
    views = _views(settings)
    named = {"--student": settings.student.name, "--teacher": settings.teacher.name}
    wrong = [f"{flag}.name {name}" for flag, name in named.items() if name not in (None, "mlp")]
    wrong += [f"--augment {views[0]}"] if views else []
    wrong += ["a generator of images"] if asked.made_up else []
    if wrong:
        raise ValueError(
            f"{wrong[0]} is for images, and {dataset.name} has rows of {dataset.image_shape[0]} "
            "numbers: an mlp, or a module of your own, reads them"
        )


def _check_task(settings: Resolved, dataset: data.Dataset) -> None:
    """Raise a ValueError if a setting asks for what a task has not."""
    task = tasks.of(settings.task, dataset)
    single, pixels = task.name == "single-label", task.name == "pixels"
    views = _views(settings)
    mixers = recipes.mixers_in(views)
    weighed = settings.class_weights is not None or settings.balanced_classes
    wrong = {
        f"--augment {' '.join(views)}: labels of pixels stay where they are": pixels and views,
        f"--augment {' '.join(mixers)} mixes classes": not single and mixers,
        "--label-smoothing is of classes": settings.label_smoothing and not (single or pixels),
        "class weights need one class for each image": weighed and not task.of_classes,
        "--teacher.head probe is fitted to classes": settings.teacher.head != "own" and not single,
        "--data.unlabelled stands beside images with a class each": settings.data.unlabelled
        and len(dataset.train.label.shape) > 1,
        "--embedding-size is that of embeddings": settings.embedding_size
        and task.name != "embeddings",
    }
    for words, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"--task {task.name}: {words}; leave it out")


def _check_stored(settings: Resolved, dataset: data.Dataset) -> None:
    """Raise a ValueError if something needs more of a teacher than what it said of the images."""
    if settings.stored_logits is None:
        return
    views, given = recipes.changes_images(settings.augment), settings.teacher
    needs = Need.FEATURES | Need.MAPS | Need.CLASSIFIER
    wrong = {
        f"--augment {' '.join(settings.augment)} makes others of them": views,
        f"--method {settings.method} looks into the teacher": any(
            methods.METHODS[name].needs & needs for name in methods.methods_in(settings.method)
        ),
        "--teacher.checkpoint or .module is another teacher": given.checkpoint or given.module,
        "--data.unlabelled has none": settings.data.unlabelled,
        "--data.streaming keeps none beside its images": data.is_lazy(dataset.train._asdict()),
    }
    for words, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"--stored-logits are of the images as they are, and {words}")


def _check_examples(asked: RunSettings, settings: Resolved, dataset: data.Dataset) -> None:
    """Raise a ValueError where settings and data do not fit together."""
    seen, present = settings.data.student_examples, len(dataset.train.label)
    if seen > present:
        raise ValueError(
            f"--data.student-examples is {seen}, but there are {present} training examples"
        )
    of_classes = tasks.of(settings.task, dataset).of_classes
    if of_classes and seen < min(present, dataset.num_classes):
        raise ValueError(
            f"--data.student-examples is {seen}, but there are {dataset.num_classes} classes: at "
            "least one example of each is needed"
        )
    # A default may be more than a few examples are; the next ones come from the next epoch.
    most = present if asked.made_up else max(seen, 64)
    if settings.batch_size > most:
        raise ValueError(
            f"--batch-size is {settings.batch_size}, more than the {most} that the examples allow"
        )
    lazy = data.is_lazy(dataset.train._asdict())
    if lazy and (settings.steps_per_call or 1) > 1:
        raise ValueError(
            f"--steps-per-call {settings.steps_per_call}: examples that stream are on no device"
        )
    _check_mixtures(settings)
    _check_weights(settings, dataset, lazy)
    if "resized-crop" in {*settings.augment, *settings.teacher.augment} and not lazy:
        raise ValueError("--augment resized-crop needs --data.streaming: it crops what is read")


def _check_mixtures(settings: Resolved) -> None:
    """Raise a ValueError if the method cannot learn from images that are mixed."""
    mixers = recipes.mixers_in(settings.augment)
    for method in methods.methods_in(settings.method) if mixers else ():
        if methods.METHODS[method].needs & (Need.LABELS | Need.INDEX):
            raise ValueError(
                f"--augment {mixers[0]} gives an image two classes, and --method {method} needs "
                "one for each"
            )


def _check_weights(settings: Resolved, dataset: data.Dataset, lazy: bool) -> None:
    """Raise a ValueError where class weights do not fit."""
    weights = settings.class_weights
    if weights is not None and settings.balanced_classes:
        raise ValueError("--balanced-classes makes the weights that --class-weights gives")
    if weights is not None and (len(weights) != dataset.num_classes or not any(weights)):
        raise ValueError(
            f"--class-weights are {weights}, expected {dataset.num_classes} of which one is not 0"
        )
    if settings.balanced_classes and lazy:
        raise ValueError(
            "--balanced-classes counts the labels, and these stream; give --class-weights"
        )


def _check_unlabelled(asked: RunSettings, settings: Resolved, dataset: data.Dataset) -> None:
    """Raise a ValueError where nobody could learn from images without labels."""
    if dataset.unlabelled is None:
        return
    parts, why = settings.num_micro_batches, ""
    mixers = recipes.mixers_in(settings.augment)
    if mixers:
        why = f"--augment {mixers[0]} needs a label for each"
    elif settings.class_weights is not None or settings.balanced_classes:
        why = "class weights need a label for each"
    elif asked.made_up:
        why = "students see no images"
    elif unlabelled.reads_labels(settings.method):
        why = f"--method {settings.method} reads labels"
    elif parts > 1:
        why = f"the label's mean is over whole batches, and --num-micro-batches is {parts}"
    if why:
        raise ValueError(f"--data.unlabelled {settings.data.unlabelled}: {why}; leave it out")


def check_batches(settings: Any, mesh: Mesh) -> None:
    """Raise a ValueError where the batch does not divide over the devices."""
    parts = settings.num_micro_batches
    try:
        sharding.check_batch_size(settings.batch_size, mesh, num_micro_batches=parts)
    except ValueError as error:
        raise ValueError(f"--batch-size: {error}") from error
