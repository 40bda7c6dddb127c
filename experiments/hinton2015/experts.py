"""Training a panel of specialists, one after another, each kept as soon as it is done."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hinton2015 import group
from experiments.hinton2015.lab import Lab
from kdjax import checkpoint, models, specialists, step, teachers
from kdjax.loop import NonFiniteLoss, Stopped
from kdjax.models import Network, NetworkSpec
from kdjax.runs import plans, training
from kdjax.runs.console import progress
from kdjax.runs.settings import Augmentation, OptimizerSettings
from kdjax.types import Batch, Model, Variables


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How many specialists there are, of what size, and how each is trained: Adam, cosine decay."""

    num_sets: int = 40
    set_size: int = 12
    epochs: float = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    augment: tuple[Augmentation, ...] = ("crop", "flip")

    def num_steps(self, num_examples: int, num_classes: int) -> int:
        """Return the steps in which a specialist sees examples of its classes `epochs` times."""
        special = num_examples * self.set_size / num_classes
        return max(1, round(self.epochs * 2 * special / self.batch_size))


class Panel(NamedTuple):
    """Specialists: their classes [specialists, set_size], variables, and dustbin's corrections."""

    spec: NetworkSpec
    class_sets: np.ndarray
    variables: list[Variables]
    shifts: list[float]

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Return the specialists' corrected logits, [specialists, examples, set_size + 1]."""
        model = models.build(self.spec)
        logits = [group.predict(model, variables, images) for variables in self.variables]
        pairs = zip(logits, self.shifts, strict=True)
        return np.stack([specialists.shift_dustbin(*pair) for pair in pairs])


def obtain(lab: Lab, recipe: Recipe, generalist: Network, seed: int) -> Panel:
    """Train the specialists of a perceptron that an earlier run in this directory has not.

    Args:
        lab: where, and when to stop.
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
    spec = dataclasses.replace(generalist.spec, num_classes=recipe.set_size + 1)
    asked = {
        "recipe": dataclasses.asdict(recipe),
        "generalist": checkpoint.params_sha256(generalist.variables),
    }
    room = lab.root / lab.section / f"panel_{seed}"
    folders = [room / f"specialist_{i:02d}" for i in range(recipe.num_sets)]
    if not all(folder.exists() for folder in folders):
        with checkpoint.lock(room):
            group.claim(room, asked)
            _train_missing(lab, recipe, generalist, spec, seed, folders)
    group.claim(room, asked)
    found = [checkpoint.load_variables(folder) for folder in folders]
    seconds = sum(metadata["seconds"] for _, metadata in found)
    lab.trainings[f"{lab.section}/panel_{seed}"] = len(found), seconds
    return Panel(
        spec,
        np.array([metadata["classes"] for _, metadata in found]),
        [variables for variables, _ in found],
        [metadata["shift"] for _, metadata in found],
    )


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


def _train_missing(
    lab: Lab,
    recipe: Recipe,
    generalist: Network,
    spec: NetworkSpec,
    seed: int,
    folders: list[Path],
) -> None:
    images, labels = lab.train
    num_classes = len(lab.label_names)
    sets = specialists.confusable_classes(
        jax.random.key(seed),
        group.predict(generalist.model, generalist.variables, images),
        num_sets=recipe.num_sets,
        set_size=recipe.set_size,
    )
    program = _program(models.build(spec), recipe, recipe.num_steps(len(labels), num_classes))
    for i, (folder, classes) in enumerate(zip(folders, np.asarray(sets), strict=True)):
        if folder.exists():
            continue
        own = np.asarray(specialists.specialist_labels(labels, classes, num_classes=num_classes))
        shift = specialists.dustbin_shift(float((own < recipe.set_size).mean()))
        began = time.perf_counter()
        start = start_of(generalist.variables, classes, shift)
        own_seed = seed * recipe.num_sets + i
        batch_fn = functools.partial(_batch, recipe, images, own, own_seed)
        variables = program(lab, f"specialist {i + 1}", start, batch_fn, own_seed)
        metadata = {
            "classes": classes.tolist(),
            "shift": shift,
            "seconds": time.perf_counter() - began,
        }
        checkpoint.save_variables(folder, variables, metadata)


def _program(model: Model, recipe: Recipe, num_steps: int) -> Callable[..., Variables]:
    """Compile the training of a specialist, the same program for all."""
    objective = plans.labels_only()
    optimizer = training.make_optimizer(
        OptimizerSettings(learning_rate=recipe.learning_rate),
        batch_size=recipe.batch_size,
        num_steps=num_steps,
        norm_limit=None,
    )
    train_step = step.with_teacher(
        step.make_train_step(model, objective, optimizer),
        teachers.absent(),
        view_fn=training.make_views(recipe.augment, crop_padding=4, jitter_pixels=2),
    )

    def train(
        lab: Lab, name: str, start: Variables, batch_fn: Callable[[int], Batch], seed: int
    ) -> Variables:
        key = jax.random.key(seed)
        state = step.init_train_state(key, model, objective, optimizer, batch_fn(0), None)
        # The step donates its buffers, and the generalist's must survive.
        params, model_state = jax.tree.map(jnp.copy, start)
        state = dataclasses.replace(
            state, params={**state.params, "student": params}, model_state=model_state
        )
        with progress(name, 0, num_steps) as update:
            for at in range(num_steps):
                state, metrics = train_step(state, batch_fn(at))
                total, count = metrics["loss"]
                if not np.isfinite(total):
                    raise NonFiniteLoss(f"{name}: the loss is {total} at step {at}")
                update(at + 1, f"train loss {float(total) / float(count):.4f}")
                if lab.stop_fn() and at + 1 < num_steps:
                    raise Stopped(at)
        return Variables(state.params["student"], state.model_state)

    return train


def _batch(recipe: Recipe, images: np.ndarray, labels: np.ndarray, seed: int, at: int) -> Batch:
    """Gather a batch, half of it of the specialist's classes: a pure function of (seed, at)."""
    special = labels < recipe.set_size
    index = specialists.specialist_indices(
        seed, at, is_special=special, batch_size=recipe.batch_size
    )
    return {"image": images[index], "label": labels[index]}
