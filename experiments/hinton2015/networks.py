"""The networks of the paper's sections: trained together, many in one program, and kept."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.hinton2015.study import Recipe, Study, Trainings
from experiments.hinton2015.together import train_together
from kdjax import checkpoint, many, models, step, teachers, terms
from kdjax.models import NetworkSpec
from kdjax.objective import combine
from kdjax.runs import evaluation, recipes, teaching, training, workdir
from kdjax.runs.evaluation import Arrays, Run
from kdjax.runs.settings import OptimizerSettings
from kdjax.runs.training import Training
from kdjax.types import Array, Model, Objective, PyTree, Teacher, Variables

ASKED = "asked.json"
"""What is trained in a folder, and by what."""
EVAL_BATCH_SIZE = 1000
ObjectiveFn = Callable[[Any], Objective]


class Cohort(NamedTuple):
    """Networks that train together: where, what they are and how they learn.

    `seeds` has one per member: initial values, order of the batches, dropout and views. `examples`
    are `image`, `label` and what the teacher needs, [examples, ...]: the means of a stored
    teacher's logits tell students of one teacher from those of another.
    """

    study: Study
    spec: NetworkSpec
    recipe: Recipe
    examples: Arrays
    seeds: Sequence[int]


class Networks(NamedTuple):
    """Trained networks of one architecture; `variables` have a leading axis [members]."""

    model: Model
    variables: Variables

    def member(self, index: int) -> Variables:
        """Return one network's variables."""
        variables: Variables = many.member(self.variables, index)
        return variables

    def logits(self, run: Run, images: np.ndarray) -> np.ndarray:
        """Compute the logits of all members, [members, images, num_classes]."""
        members = jax.tree.leaves(self.variables)[0].shape[0]
        return np.stack([predict(run, self.model, self.member(i), images) for i in range(members)])


def mlp_spec(study: Study, widths: Sequence[int], dropout: float = 0.0) -> NetworkSpec:
    """Describe a perceptron for the data of a study."""
    of_data = len(study.label_names), study.image_shape, study.mean, study.std
    return NetworkSpec("mlp", tuple(widths), *of_data, dropout)


def labels_only(setting: Any) -> Objective:
    """Make the objective of training from labels alone, whatever the setting."""
    return teaching.labels_only()


def soft_and_hard(setting: Mapping[str, Array]) -> Objective:
    """Make the objective of distillation at a setting's `temperature` and `soft_weight`."""
    soft = terms.soft_targets(temperature=setting["temperature"])
    weights = {"soft": setting["soft_weight"], "hard": 1 - setting["soft_weight"]}
    return combine({"soft": soft, "hard": terms.cross_entropy()}, weights)


def distil(
    cohort: Cohort,
    name: str,
    *,
    temperature: float | Sequence[float],
    soft_weight: float = 1.0,
    **watch: Any,
) -> Networks:
    """Train networks on the stored soft targets of a teacher, at one temperature or each its own.

    Args, returns and raises as those of `train`.
    """
    each = {"temperature": temperature, "soft_weight": soft_weight}
    count = len(cohort.seeds)
    wide = {k: np.broadcast_to(np.asarray(v, np.float32), count) for k, v in each.items()}
    return train(
        cohort, name, settings=wide, objective_fn=soft_and_hard, teacher=teachers.stored(), **watch
    )


def train(
    cohort: Cohort,
    name: str,
    *,
    settings: PyTree = None,
    objective_fn: ObjectiveFn = labels_only,
    teacher: Teacher | None = None,
    **watch: Any,
) -> Networks:
    """Train networks together, or read them where an earlier run has trained them.

    Args:
        cohort: the networks, and where they are trained.
        name: their folder below the work directory.
        settings: arrays [members] that the objective depends on.
        objective_fn: one member's setting -> objective.
        teacher: where the teacher's outputs come from; None for none.
        **watch: `watch_fn`, called with a step and the variables [members, ...] now and then (a
            training that was interrupted calls it for the remaining steps only), and
            `watch_every`, the steps between these calls.

    Returns:
        The trained networks.

    Raises:
        NonFiniteLoss: if a member's loss was nan or infinite.
        Stopped: if the run was asked to stop; the state is saved.
        ValueError: if the folder holds networks of another recipe, or of other examples.
        OSError: if another run is at work in the folder.
    """
    study, spec, recipe, examples, seeds = cohort
    directory = study.root / name
    asked = {
        "spec": dataclasses.asdict(spec),
        "recipe": dataclasses.asdict(recipe),
        "seeds": list(seeds),
        "settings": jax.tree.map(lambda x: np.asarray(x).tolist(), settings),
        **_told(examples),
        "objective": objective_fn.__name__,
    }
    found = kept(directory / "trained")
    if found is None:
        with checkpoint.lock(directory):
            claim(directory, asked)
            workdir.begin(directory / ASKED, **evaluation.trained_by(study.run.mesh))
            plan = _plan(cohort, name, settings, objective_fn, teacher or teachers.absent())
            variables, seconds = train_together(
                study.run, plan, seeds, settings=settings, directory=directory / "state", **watch
            )
            checkpoint.save_variables(directory / "trained", variables, {"seconds": seconds})
            shutil.rmtree(directory / "state", ignore_errors=True)
        found = checkpoint.load_variables(directory / "trained")
    claim(directory, asked)
    variables, metadata = found
    by = workdir.trained_by(directory / ASKED)
    study.trainings[name] = Trainings(len(seeds), metadata["seconds"], by)
    return Networks(models.build(spec), variables)


def _told(examples: Arrays) -> dict[str, Any]:
    """Return what tells examples from others: a hash, and what the teacher says on average.

    Its logits are computed: on another device, or on more cores, their last digits are others.
    """
    rest = {name: x for name, x in examples.items() if name != "teacher_logits"}
    told: dict[str, Any] = {"examples": checkpoint.params_sha256(rest)}
    if len(rest) < len(examples):
        told["answers"] = np.mean(examples["teacher_logits"], axis=0, dtype=float).round(2).tolist()
    return told


def kept(directory: Path) -> tuple[Variables, dict[str, Any]] | None:
    """Read what is trained, with what is known of it; None where it is missing or not whole yet.

    Raises:
        checkpoint.CheckpointError: if it is damaged.
    """
    try:
        return checkpoint.load_variables(directory)
    except FileNotFoundError:
        # A kill in the first write leaves a folder without a network.
        return None


def claim(directory: Path, asked: Mapping[str, Any]) -> None:
    """Write into a folder what is trained there, or hold it against what an earlier run wrote.

    Raises:
        ValueError: if it was something else.
    """
    workdir.claim(
        *(directory / ASKED, workdir.plain(asked)),
        otherwise="networks trained otherwise",
        prefix="",
        orphans=("trained/[0-9]", "state", "specialist_*"),
    )


def predict(run: Run, model: Model, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Compute one network's logits for all images, [images, num_classes]."""
    arrays = {"image": images, "label": np.zeros(len(images), np.int32)}
    return evaluation.predict(run, model, variables, arrays, batch_size=EVAL_BATCH_SIZE)


def errors(logits: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Count the wrong answers of every member, logits [members, examples, num_classes]."""
    return tuple(float(x) for x in (logits.argmax(-1) != labels).sum(-1))


def test_errors(study: Study, trained: Networks) -> tuple[float, ...]:
    """Count every member's errors on the examples to measure on."""
    return errors(trained.logits(study.run, study.test.image), study.test.label)


def deviation(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over the last axis, zero where it has one entry."""
    return values.std(-1, ddof=1) if values.shape[-1] > 1 else np.zeros(values.shape[:-1])


def optimizer_of(recipe: Any, num_steps: int) -> optax.GradientTransformation:
    """Make the optimizer of a recipe."""
    asked, size = OptimizerSettings(learning_rate=recipe.learning_rate), recipe.batch_size
    limit = getattr(recipe, "max_norm", None)
    return recipes.make_optimizer(asked, batch_size=size, num_steps=num_steps, norm_limit=limit)


def _plan(
    cohort: Cohort, name: str, settings: PyTree, objective_fn: ObjectiveFn, teacher: Teacher
) -> Training:
    _, spec, recipe, examples, _ = cohort
    model, num_steps = models.build(spec), recipe.num_steps(len(examples["label"]))
    optimizer = optimizer_of(recipe, num_steps)
    view_fn = recipes.make_views(recipe.augment, crop_padding=4, jitter_pixels=2)

    def step_fn(setting: PyTree, source: Teacher) -> training.Step:
        train_step = step.make_train_step(model, objective_fn(setting), optimizer)
        return step.with_teacher(train_step, source, view_fn=view_fn)

    first = objective_fn(jax.tree.map(lambda x: float(x[0]), settings))
    run = examples, recipe.batch_size, num_steps
    return Training(name, spec, model, first, optimizer, teacher, step_fn, *run)
