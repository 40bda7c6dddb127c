"""Training a panel of specialists, one after another, each kept as soon as it is done."""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.hinton2015 import networks
from experiments.hinton2015.study import PanelRecipe, Study, Trainings
from kdjax import checkpoint, models, specialists, step, teachers
from kdjax.models import Network, NetworkSpec
from kdjax.runs import evaluation, recipes, teaching, training, workdir
from kdjax.runs.evaluation import Run
from kdjax.runs.training import Training
from kdjax.types import PyTree, Teacher, Variables


class Panel(NamedTuple):
    """Specialists: their classes [specialists, set_size], variables, and dustbin's corrections."""

    spec: NetworkSpec
    class_sets: np.ndarray
    variables: list[Variables]
    shifts: list[float]

    def answers(self, run: Run, images: np.ndarray) -> np.ndarray:
        """Return the specialists' corrected logits, [specialists, examples, set_size + 1]."""
        model = models.build(self.spec)
        logits = [networks.predict(run, model, own, images) for own in self.variables]
        pairs = zip(logits, self.shifts, strict=True)
        return np.stack([specialists.shift_dustbin(*pair) for pair in pairs])


def obtain(study: Study, recipe: PanelRecipe, generalist: Network, seed: int) -> Panel:
    """Train the specialists of a perceptron that an earlier run in this directory has not.

    Args:
        study: where, and when to stop.
        recipe: how many, and how they are trained.
        generalist: where they start from, and whose confusions say what they are for.
        seed: of the clustering and the batches; part of the folder's name.

    Returns:
        The panel.

    Raises:
        NonFiniteLoss: if a loss was nan or infinite.
        Stopped: if the run was asked to stop; the specialists that were done are saved.
        ValueError: if the folder holds specialists of another recipe or generalist.
        OSError: if another run is at work in the folder.
    """
    taught_by = checkpoint.params_sha256(generalist.variables)
    asked = {"recipe": dataclasses.asdict(recipe), "generalist": taught_by}
    name = f"{study.section}/panel_{seed}"
    room = study.root / name
    folders = [room / f"specialist_{i:02d}" for i in range(recipe.num_sets)]
    found = _kept(folders)
    if len(found) < len(folders):
        with checkpoint.lock(room):
            networks.claim(room, asked)
            workdir.begin(room / networks.ASKED, **evaluation.trained_by(study.run.mesh))
            _train_missing(study, recipe, generalist, seed, folders)
        found = _kept(folders)
    networks.claim(room, asked)
    seconds = sum(metadata["seconds"] for _, metadata in found)
    by = workdir.trained_by(room / networks.ASKED)
    study.trainings[name] = Trainings(len(found), seconds, by)
    spec = dataclasses.replace(generalist.spec, num_classes=recipe.set_size + 1)
    class_sets = np.array([metadata["classes"] for _, metadata in found])
    shifts = [metadata["shift"] for _, metadata in found]
    return Panel(spec, class_sets, [variables for variables, _ in found], shifts)


def _kept(folders: list[Path]) -> list[tuple[Variables, dict[str, Any]]]:
    """Read the specialists that are trained."""
    return [own for own in map(networks.kept, folders) if own is not None]


def start_of(generalist: Variables, classes: np.ndarray, shift: float) -> Variables:
    """Start a specialist: the generalist, with a head for the specialist's classes.

    The dustbin starts lower by `shift`, as it must be on batches that oversample the classes: the
    corrected specialist starts as the generalist.
    """
    head = generalist.params["head"]
    kernel, bias = specialists.specialist_head(head["kernel"], head["bias"], classes)
    lowered = specialists.shift_dustbin(bias, -shift)
    params = {**generalist.params, "head": {"kernel": kernel, "bias": lowered}}
    return Variables(params, generalist.state)


def rows(
    recipe: PanelRecipe, labels: np.ndarray, seed: int, start: int
) -> Iterator[dict[str, Any]]:
    """Yield the examples of every batch, half of them of the specialist's classes."""
    special = labels < recipe.set_size
    for at in itertools.count(start):
        index = specialists.specialist_indices(
            seed, at, is_special=special, batch_size=recipe.batch_size
        )
        yield {"index": np.asarray(index, np.int32)}


def _train_missing(
    study: Study, recipe: PanelRecipe, generalist: Network, seed: int, folders: list[Path]
) -> None:
    images, labels = study.train
    num_classes = len(study.label_names)
    logits = networks.predict(study.run, generalist.model, generalist.variables, images)
    sets = specialists.confusable_classes(
        jax.random.key(seed), logits, num_sets=recipe.num_sets, set_size=recipe.set_size
    )
    plan = _plan(study, recipe, generalist)
    for i, (folder, classes) in enumerate(zip(folders, np.asarray(sets), strict=True)):
        if networks.kept(folder):
            continue
        own = np.asarray(specialists.specialist_labels(labels, classes, num_classes=num_classes))
        shift = specialists.dustbin_shift(float((own < recipe.set_size).mean()))
        training_of = dataclasses.replace(
            plan,
            phase=f"specialist {i + 1}",
            examples={"image": images, "label": own},
            start=start_of(generalist.variables, classes, shift),
            rows_fn=functools.partial(rows, recipe, own),
        )
        own_seed, state = seed * recipe.num_sets + i, folder.with_suffix(".state")
        variables = training.train(study.run, training_of, own_seed, directory=state)
        seconds = study.run.log.seconds(training_of.phase, own_seed)
        metadata = {"classes": classes.tolist(), "shift": shift, "seconds": seconds}
        checkpoint.save_variables(folder, variables, metadata)
        shutil.rmtree(state, ignore_errors=True)


def _plan(study: Study, recipe: PanelRecipe, generalist: Network) -> Training:
    """Return what all specialists have in common, their compiled step among it."""
    spec = dataclasses.replace(generalist.spec, num_classes=recipe.set_size + 1)
    num_steps = recipe.num_steps(len(study.train.label), len(study.label_names))
    optimizer = networks.optimizer_of(recipe, num_steps)
    model, objective = models.build(spec), teaching.labels_only()
    view_fn = recipes.make_views(recipe.augment, crop_padding=4, jitter_pixels=2)
    train_step = step.make_train_step(model, objective, optimizer)

    def step_fn(setting: PyTree, teacher: Teacher) -> training.Step:
        return step.with_teacher(train_step, teacher, view_fn=view_fn)

    absent, run = teachers.absent(), (study.train._asdict(), recipe.batch_size, num_steps)
    return Training("specialist", spec, model, objective, optimizer, absent, step_fn, *run)
