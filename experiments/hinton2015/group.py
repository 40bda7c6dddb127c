"""Training groups of networks, each group in one compiled program; resumable and logged."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hinton2015.lab import Lab
from kdjax import checkpoint, data, many, step, teachers, terms
from kdjax.loop import NonFiniteLoss, Stopped
from kdjax.objective import combine
from kdjax.runs import networks, plans, training, workdir
from kdjax.runs.console import progress
from kdjax.runs.networks import NetworkSpec
from kdjax.runs.settings import Augmentation, OptimizerSettings
from kdjax.runs.training import mean_of as mean_of
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Model,
    Objective,
    PyTree,
    Teacher,
    Variables,
)

Arrays = Mapping[str, Any]
_STEPS_PER_CALL = 50
_SECONDS_BETWEEN_CHECKPOINTS = 120.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, warm-up and cosine decay."""

    epochs: float
    batch_size: int = 256
    learning_rate: float = 1e-3
    augment: tuple[Augmentation, ...] = ()
    max_norm: float | None = None

    def num_steps(self, num_examples: int) -> int:
        """Return the steps of a training, rounded up to whole calls of a program."""
        least = max(1, round(self.epochs * num_examples / self.batch_size))
        num_calls = -(-least // _STEPS_PER_CALL)
        return -(-least // num_calls) * num_calls


class Group(NamedTuple):
    """Trained networks of one architecture; `variables` have a leading axis [members]."""

    model: Model
    variables: Variables

    def member(self, index: int) -> Variables:
        """Return one network's variables."""
        return many.member(self.variables, index)


def labels_only(setting: Any) -> Objective:
    """Make the objective of training from labels alone, whatever the setting."""
    return plans.labels_only()


def soft_and_hard(setting: Mapping[str, Array]) -> Objective:
    """Make the objective of distillation at a setting's `temperature` and `soft_weight`."""
    soft = terms.soft_targets(temperature=setting["temperature"])
    weights = {"soft": setting["soft_weight"], "hard": 1 - setting["soft_weight"]}
    return combine({"soft": soft, "hard": terms.cross_entropy()}, weights)


def mlp_spec(
    lab: Lab, widths: Sequence[int], dropout: float = 0.0, input_dropout: float = 0.0
) -> NetworkSpec:
    """Describe a perceptron for the lab's data."""
    return NetworkSpec(
        name="mlp",
        widths=tuple(widths),
        num_classes=len(lab.label_names),
        image_shape=lab.image_shape,
        mean=lab.mean,
        std=lab.std,
        dropout=dropout,
        input_dropout=input_dropout,
    )


def train_group(
    lab: Lab,
    name: str,
    spec: NetworkSpec,
    recipe: Recipe,
    examples: Arrays,
    *,
    seeds: Sequence[int],
    settings: PyTree = None,
    objective_fn: Callable[[Any], Objective] = labels_only,
    teacher: Teacher | None = None,
    watch_fn: Callable[[int, Variables], None] | None = None,
    watch_every: int | None = None,
) -> Group:
    """Train networks together, or read them where an earlier run has trained them.

    Args:
        lab: where, and when to stop.
        name: folder of the group below the lab's root.
        spec: the architecture.
        recipe: how they are trained.
        examples: `image`, `label` and what the teacher needs, [examples, ...]: a stored teacher's
            logits are what tells students of one teacher from those of another.
        seeds: one per member: initial values, order of the batches, dropout and views.
        settings: arrays [members] that the objective depends on.
        objective_fn: one member's setting -> objective.
        teacher: where the teacher's outputs come from; None for none.
        watch_fn: called with a step and the variables [members, ...] now and then; a training that
            was interrupted calls it for the remaining steps only.
        watch_every: steps between these calls, rounded up to whole calls of the program.

    Returns:
        The trained networks.

    Raises:
        NonFiniteLoss: if a member's loss was nan or infinite.
        Stopped: if the run was asked to stop; the state is saved.
        ValueError: if the folder holds networks of another recipe, or of other examples.
        OSError: if another run is at work in the folder.
    """
    model, directory = networks.build(spec), lab.root / name
    asked = _describe(spec, recipe, seeds, settings, examples, objective_fn)
    if not (directory / "trained").exists():
        with checkpoint.lock(directory):
            claim(directory, asked)
            teacher = teacher or teachers.absent()
            examples = jax.device_put(dict(examples))
            program = _program(model, recipe, len(examples["label"]), objective_fn, teacher)
            states = _initial(model, recipe, examples, seeds, settings, objective_fn, teacher)
            watch = (watch_fn, watch_every or 10**9) if watch_fn else None
            variables, seconds = _run(
                lab, name, program, states, recipe, examples, seeds, settings, teacher, watch
            )
            checkpoint.save_variables(directory / "trained", variables, {"seconds": seconds})
            shutil.rmtree(directory / "state", ignore_errors=True)
    claim(directory, asked)
    variables, found = checkpoint.load_variables(directory / "trained")
    lab.trainings[name] = len(seeds), found["seconds"]
    return Group(model, variables)


def claim(directory: Path, asked: Mapping[str, Any]) -> None:
    """Say in a folder what is trained there, or hold it against what an earlier run has said.

    Raises:
        ValueError: if it was something else.
    """
    path, mine = directory / "asked.json", workdir.plain(asked)
    old = workdir.read_json(path)
    if old is None and not (directory / "trained").exists():
        workdir.write_json(path, mine)
    elif old != mine:
        raise ValueError(f"{directory} holds networks trained otherwise: remove it first")


def predict(model: Model, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Compute one network's logits for all images, [examples, num_classes]."""
    size = min(1000, len(images))
    parts = [
        np.asarray(_logits(model, variables, batch["image"]))[batch["mask"]]
        for batch in data.eval_batches(
            {"image": images, "label": np.zeros(len(images), np.int32)}, batch_size=size
        )
    ]
    return np.concatenate(parts)


def test_logits(lab: Lab, group: Group) -> np.ndarray:
    """Compute the logits of all members for the examples to measure on, [members, examples, k]."""
    return all_logits(group, lab.test.image)


def all_logits(group: Group, images: np.ndarray) -> np.ndarray:
    """Compute the logits of all members for some images, [members, examples, num_classes]."""
    members = jax.tree.leaves(group.variables)[0].shape[0]
    return np.stack([predict(group.model, group.member(i), images) for i in range(members)])


def constant(num_members: int, **values: float) -> dict[str, np.ndarray]:
    """Give all members the same settings, [members] each."""
    return {name: np.full(num_members, value, np.float32) for name, value in values.items()}


def errors(logits: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Count the wrong answers of every member, logits [members, examples, num_classes]."""
    return tuple(float(x) for x in (logits.argmax(-1) != labels).sum(-1))


def _logits_of(model: Model, variables: Variables, images: Array) -> Array:
    return model.apply(*variables, images, train=False)[0].logits.astype(jnp.float32)


_logits = jax.jit(_logits_of, static_argnums=0)


def _program(
    model: Model,
    recipe: Recipe,
    num_examples: int,
    objective_fn: Callable[[Any], Objective],
    teacher: Teacher,
) -> Callable[..., tuple[Any, Metrics]]:
    """Compile some steps of all members: (states, order, settings, examples, teacher's arrays)."""
    optimizer = _optimizer(recipe, num_examples)
    view_fn = training.make_views(recipe.augment, crop_padding=4, jitter_pixels=2)

    def one_step(
        state: Any, index: Array, setting: Any, examples: Batch, variables: PyTree
    ) -> tuple[Any, Metrics]:
        batch = {name: x[index] for name, x in examples.items()}
        train_step = step.make_train_step(model, objective_fn(setting), optimizer)
        source = teacher._replace(variables=variables)
        return step.with_teacher(train_step, source, view_fn=view_fn)(state, batch)

    steps = many.scan_steps(one_step)
    return many.make_sweep_step(steps, in_axes=(0, 0, 0, None, None))


def _optimizer(recipe: Recipe, num_examples: int) -> Any:
    return training.make_optimizer(
        OptimizerSettings(learning_rate=recipe.learning_rate),
        batch_size=recipe.batch_size,
        num_steps=recipe.num_steps(num_examples),
        norm_limit=recipe.max_norm,
    )


def _initial(
    model: Model,
    recipe: Recipe,
    examples: Arrays,
    seeds: Sequence[int],
    settings: PyTree,
    objective_fn: Callable[[Any], Objective],
    teacher: Teacher,
) -> Any:
    optimizer = _optimizer(recipe, len(examples["label"]))
    batch = {name: x[:2] for name, x in examples.items()}
    outputs = teacher.apply(teacher.variables, batch)
    objective = objective_fn(jax.tree.map(lambda x: float(x[0]), settings))

    def new(seed: int) -> Any:
        key = jax.random.key(seed)
        return step.init_train_state(key, model, objective, optimizer, batch, outputs)

    return many.stack([new(seed) for seed in seeds])


def _run(
    lab: Lab,
    name: str,
    program: Callable[..., tuple[Any, Metrics]],
    states: Any,
    recipe: Recipe,
    examples: Arrays,
    seeds: Sequence[int],
    settings: PyTree,
    teacher: Teacher,
    watch: tuple[Callable[[int, Variables], None], int] | None,
) -> tuple[Variables, float]:
    num_examples = len(examples["label"])
    total = recipe.num_steps(num_examples)
    stride = total // -(-total // _STEPS_PER_CALL)
    directory = lab.root / name / "state"
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states)
    found = checkpoint.restore(directory, {"states": like, "seconds": np.zeros((), np.float32)})
    at, before = 0, 0.0
    if found is not None:
        at, states, before = found[0], found[1]["states"], float(found[1]["seconds"])
    began = saved = time.perf_counter()
    with progress(name, at, total) as update:
        while at < total:
            order = jnp.asarray(_orders(seeds, at, stride, recipe.batch_size, num_examples))
            states, metrics = program(states, order, settings, examples, teacher.variables)
            at += stride
            update(at, _note(name, at, metrics))
            now, stopping = time.perf_counter(), lab.stop_fn() and at < total
            if watch and (at == total or at % watch[1] < stride):
                watch[0](at, _variables(states))
            if stopping or (at < total and now - saved > _SECONDS_BETWEEN_CHECKPOINTS):
                saved, seconds = now, before + now - began
                checkpoint.save(directory, at, {"states": states, "seconds": np.float32(seconds)})
            if stopping:
                raise Stopped(at)
    return _variables(states), before + time.perf_counter() - began


def _variables(states: Any) -> Variables:
    return Variables(states.params["student"], states.model_state)


def _orders(
    seeds: Sequence[int], start: int, count: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Return which examples make up the batches, [members, steps, batch]."""
    orders = {
        seed: [
            data.batch_indices(seed, at, batch_size=batch_size, num_examples=num_examples)
            for at in range(start, start + count)
        ]
        for seed in set(seeds)
    }
    return np.stack([orders[seed] for seed in seeds]).astype(np.int32)


def _note(name: str, at: int, metrics: Metrics) -> str:
    """Sum up what the members are at; stop where one has diverged."""
    loss, accuracy = (np.asarray(t) / np.asarray(n) for t, n in _pairs(metrics))
    for member in np.flatnonzero(~np.isfinite(loss)):
        raise NonFiniteLoss(f"{name}: the loss of member {member} is {loss[member]} by step {at}")
    return f"train loss {loss.mean():.4f}, {accuracy.mean():.2%} right"


def _pairs(metrics: Metrics) -> list[tuple[Array, Array]]:
    return [metrics["loss"], metrics["accuracy"]]


def _describe(
    spec: NetworkSpec,
    recipe: Recipe,
    seeds: Sequence[int],
    settings: PyTree,
    examples: Arrays,
    objective_fn: Callable[[Any], Objective],
) -> dict[str, Any]:
    """Return what tells one training from another."""
    return {
        "spec": dataclasses.asdict(spec),
        "recipe": dataclasses.asdict(recipe),
        "seeds": list(seeds),
        "settings": jax.tree.map(lambda x: np.asarray(x).tolist(), settings),
        "examples": checkpoint.params_sha256(dict(examples)),
        "objective": objective_fn.__name__,
    }


def deviation(values: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over the last axis, zero where it has one entry."""
    return values.std(-1, ddof=1) if values.shape[-1] > 1 else np.zeros(values.shape[:-1])
