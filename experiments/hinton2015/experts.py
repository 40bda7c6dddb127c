"""Training a panel of specialists, one after another, each kept as soon as it is done."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import training
from experiments.console import progress
from experiments.hinton2015.halves import Halves, read, with_head
from experiments.hinton2015.lab import Lab
from experiments.settings import OptimizerSettings
from experiments.workdir import plain
from kdjax import checkpoint, data, specialists, step, teachers, terms
from kdjax.loop import NonFiniteLoss, Stopped
from kdjax.objective import combine
from kdjax.types import Array, Batch, Model, Variables


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How many specialists there are, of what size, and how each is trained: SGD, cosine decay."""

    num_sets: int = 20
    set_size: int = 12
    epochs: float = 3
    batch_size: int = 128
    learning_rate: float = 0.03
    weight_decay: float = 5e-4
    max_shift: int = 4
    """Pixels by which the second view of an image is shifted at random, each way."""
    mirrored: bool = True
    """Whether the second view is the mirror image."""

    def num_steps(self, num_examples: int, num_classes: int) -> int:
        """Return the steps in which a specialist sees examples of its classes `epochs` times."""
        special = num_examples * self.set_size / num_classes
        return max(1, round(self.epochs * 2 * special / self.batch_size))


class Panel(NamedTuple):
    """Specialists: their classes [specialists, set_size], variables, and dustbin's corrections."""

    class_sets: np.ndarray
    variables: list[Variables]
    shifts: list[float]


def obtain(lab: Lab, recipe: Recipe, parts: Halves, generalist: str) -> Panel:
    """Train the specialists that an earlier run in this directory has not."""
    asked = plain({"recipe": dataclasses.asdict(recipe), "generalist": generalist})
    folders = [lab.root / lab.section / f"specialist_{i:02d}" for i in range(recipe.num_sets)]
    found = [checkpoint.load_variables(folder) for folder in folders if folder.exists()]
    if any(metadata["asked"] != asked for _, metadata in found):
        raise ValueError(f"{lab.root / lab.section} holds specialists trained otherwise: remove it")
    if len(found) < len(folders):
        _train_missing(lab, recipe, parts, folders, asked)
        found = [checkpoint.load_variables(folder) for folder in folders]
    lab.trainings["specialists"] = len(found), sum(metadata["seconds"] for _, metadata in found)
    return Panel(
        np.array([metadata["classes"] for _, metadata in found]),
        [variables for variables, _ in found],
        [metadata["shift"] for _, metadata in found],
    )


def answers(parts: Halves, panel: Panel, features: np.ndarray) -> np.ndarray:
    """Return the specialists' corrected logits for features, [specialists, examples, size + 1]."""
    model = parts.above_fn(panel.class_sets.shape[1] + 1)

    @jax.jit
    def answer(variables: Variables, part: Array) -> Array:
        return model.apply(*variables, part.astype(jnp.float32), train=False)[0].logits

    chunks = np.split(features, range(1000, len(features), 1000))
    logits = [np.concatenate([answer(v, chunk) for chunk in chunks]) for v in panel.variables]
    shifted = [specialists.shift_dustbin(*pair) for pair in zip(logits, panel.shifts, strict=True)]
    return np.stack(shifted)


def _train_missing(
    lab: Lab, recipe: Recipe, parts: Halves, folders: Sequence[Path], asked: dict[str, Any]
) -> None:
    images, labels = lab.train
    features, logits = read(parts, images)
    views = [features]
    if recipe.max_shift or recipe.mirrored:
        views.append(read(parts, _second_view(recipe, images, lab.settings.seed))[0])
    sets = specialists.confusable_classes(
        jax.random.key(lab.settings.seed),
        logits,
        num_sets=recipe.num_sets,
        set_size=recipe.set_size,
    )
    num_classes = len(lab.label_names)
    model = parts.above_fn(recipe.set_size + 1)
    program = _program(model, recipe, recipe.num_steps(len(labels), num_classes))
    for i, (folder, classes) in enumerate(zip(folders, np.asarray(sets), strict=True)):
        if folder.exists():
            continue
        names = np.asarray(specialists.specialist_labels(labels, classes, num_classes=num_classes))
        shift = specialists.dustbin_shift(float((names < recipe.set_size).mean()))
        began = time.perf_counter()
        start = with_head(parts.above, classes, shift)
        variables = program(lab, f"specialist {i + 1}", start, views, names, i)
        metadata = {
            "asked": asked,
            "classes": classes.tolist(),
            "shift": shift,
            "seconds": time.perf_counter() - began,
        }
        checkpoint.save_variables(folder, variables, metadata)


def _program(model: Model, recipe: Recipe, num_steps: int) -> Callable[..., Variables]:
    """Compile the training of a specialist, the same program for all."""
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    optimizer = training.make_optimizer(
        OptimizerSettings("sgd", recipe.learning_rate, recipe.weight_decay),
        batch_size=recipe.batch_size,
        num_steps=num_steps,
        norm_limit=None,
    )
    train_step = step.with_teacher(
        step.make_train_step(model, objective, optimizer),
        teachers.absent(),
        view_fn=_widened,
    )

    def train(
        lab: Lab,
        name: str,
        start: Variables,
        views: list[np.ndarray],
        labels: np.ndarray,
        seed: int,
    ) -> Variables:
        batch_at = functools.partial(_batch, recipe, views, labels, seed)
        example = _widened(jax.random.key(0), batch_at(0))
        state = step.init_train_state(
            jax.random.key(seed), model, objective, optimizer, example, None
        )
        # The step donates its buffers, and the generalist's must survive.
        params, model_state = jax.tree.map(jnp.copy, start)
        state = dataclasses.replace(
            state, params={**state.params, "student": params}, model_state=model_state
        )
        with progress(name, 0, num_steps) as update:
            for at in range(num_steps):
                state, metrics = train_step(state, batch_at(at))
                total, count = metrics["loss"]
                if not np.isfinite(total):
                    raise NonFiniteLoss(f"{name}: the loss is {total} at step {at}")
                update(at + 1, f"train loss {float(total) / float(count):.4f}")
                if lab.stop_fn():
                    raise Stopped(at)
        return Variables(state.params["student"], state.model_state)

    return train


def _batch(
    recipe: Recipe, views: list[np.ndarray], labels: np.ndarray, seed: int, at: int
) -> Batch:
    """Gather a batch, of each example one of the views: a pure function of (seed, at)."""
    special = labels < recipe.set_size
    index = specialists.specialist_indices(
        seed, at, is_special=special, batch_size=recipe.batch_size
    )
    which = np.random.Generator(np.random.Philox([seed, at])).integers(len(views), size=len(index))
    rows = [views[v][i] for v, i in zip(which, index, strict=True)]
    return {"image": np.stack(rows), "label": labels[index]}


def _second_view(recipe: Recipe, images: np.ndarray, seed: int) -> np.ndarray:
    """Make the other view that specialists see of every image, once and for all."""
    if recipe.mirrored:
        images = images[:, :, ::-1]
    key = jax.random.key(seed)
    return np.asarray(data.jitter(key, jnp.asarray(images), max_shift=recipe.max_shift))


def _widened(key: Array, batch: Batch) -> Batch:
    return {**batch, "image": jnp.asarray(batch["image"], jnp.float32)}
