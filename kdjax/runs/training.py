"""Training one network of an experiment: resumable, logged, measured. Shared by the scripts."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kdjax.runs.console import progress, say
from kdjax.runs.settings import Augmentation, OptimizerSettings, default_learning_rate
from kdjax.runs.workdir import MetricsLog
from kdjax import checkpoint, data, loop, many, metrics, sharding, step, teachers
from kdjax.distributed import gathered
from kdjax.sharding import local_rows, shard_batch
from kdjax.optimizers import max_norm
from kdjax.types import (
    Array,
    Batch,
    Model,
    Objective,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
    Variables,
)

Arrays = Mapping[str, Any]
"""NumPy arrays by name, or columns of `kdjax.data` that are read while they are used."""
EVAL_BATCH_SIZE = 500
_STEPS_PER_CALL = 50


@dataclasses.dataclass(frozen=True)
class Run:
    """What all trainings of a run share."""

    workdir: Path
    mesh: Mesh
    log: MetricsLog
    stop_fn: Callable[[], bool]
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None
    keep_last: int = 2
    keep_best: bool = False
    profile: bool = False
    workers: int = 0
    steps_per_call: int | None = None

    def layout_fn(self, tree: PyTree) -> PyTree:
        """Say where arrays of ours live: a training's state, a network's variables."""
        return sharding.shardings(tree, self.mesh, sharding.NETWORK_RULES)


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained, whatever the seed: the compiled step is shared by all seeds."""

    phase: str
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    teacher: Teacher
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    eval_step: Callable[[Variables, Batch], Any]
    examples: Arrays
    watched: Mapping[str, Arrays]
    """Splits that are measured now and then, by name; empty ones are left out."""
    batch_size: int
    num_steps: int


def make_optimizer(
    settings: OptimizerSettings, *, batch_size: int, num_steps: int, norm_limit: float | None
) -> optax.GradientTransformation:
    """Make the optimizer of some settings for a training of that length."""
    peak = settings.learning_rate or default_learning_rate(settings.name, batch_size)
    schedule = _schedule(settings.schedule, peak, num_steps)
    if settings.name == "sgd":
        decay = optax.add_decayed_weights(settings.weight_decay)
        chain = [decay, optax.sgd(schedule, momentum=0.9, nesterov=settings.nesterov is not False)]
    else:
        chain = [optax.adamw(schedule, weight_decay=settings.weight_decay)]
    return optax.chain(*chain, *([max_norm(norm_limit)] if norm_limit else []))


def _schedule(name: str, peak: float, num_steps: int) -> optax.Schedule:
    if name == "steps":
        drops = {round(share * num_steps): 0.1 for share in (0.625, 0.75, 0.875)}
        return optax.piecewise_constant_schedule(peak, drops)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=max(1, num_steps // 50), decay_steps=max(2, num_steps)
    )


def make_views(
    augment: tuple[Augmentation, ...], *, crop_padding: int, jitter_pixels: int
) -> step.ViewFn | None:
    """Compose the augmentations of the command line, None if there are none on the device."""
    functions = {
        "crop": lambda key, images: data.pad_and_crop(key, images, padding=crop_padding),
        "flip": data.flip,
        "jitter": lambda key, images: data.jitter(key, images, max_shift=jitter_pixels),
        "translate": lambda key, images: data.translate(key, images, max_shift=jitter_pixels),
        "warp": lambda key, images: data.warp(key, images, max_shift=jitter_pixels),
    }
    chosen = [functions[name] for name in augment if name in functions]
    return data.augment(*chosen) if chosen else None


def train(run: Run, training: Training, seed: int) -> Variables:
    """Train a network from a seed, or from where an earlier run in this directory left it.

    Args:
        run: where to log and save.
        training: what to train and how.
        seed: where its initial values, batches, dropout and views come from.

    Returns:
        The trained variables of the network alone.

    Raises:
        loop.NonFiniteLoss: if a loss was nan or infinite.
        loop.Stopped: if the run was asked to stop; the state is saved.
    """
    directory = run.workdir / "checkpoints" / f"{training.phase}-{seed}"
    state = _restored_or_made(run, training, directory, seed)
    start = int(state.step)
    label = label_of(training, seed)
    run.log.rewind(training.phase, seed, start)
    if start:
        done = "is trained" if start == training.num_steps else f"goes on from step {start}"
        say(f"{label:<14} {done} (read from its checkpoint)")
    if start < training.num_steps:
        with (
            contextlib.ExitStack() as stack,
            progress(label, start, training.num_steps) as update,
            checkpoint.saving(directory, keep=run.keep_last, keep_best=run.keep_best) as save_fn,
            _fed(run, training, seed, state) as (train_step, batches, steps_per_call),
        ):
            log_fn, eval_fn = _observers(run, training, seed, update, save_fn)
            trace = run.workdir / "profile" / f"{training.phase}-{seed}"
            cadence = max(1, training.num_steps // 20)
            if run.profile:
                train_step = stack.enter_context(loop.profiled(train_step, trace))
            state = loop.fit(
                train_step,
                state,
                batches,
                num_steps=training.num_steps,
                steps_per_call=steps_per_call,
                log_every=run.log_every,
                log_fn=log_fn,
                eval_every=run.eval_every or cadence,
                eval_fn=eval_fn if training.watched else None,
                checkpoint_every=run.checkpoint_every or max(500, cadence),
                save_fn=save_fn,
                stop_fn=run.stop_fn,
            )
    return Variables(state.params["student"], state.model_state)


@contextlib.contextmanager
def _fed(
    run: Run, training: Training, seed: int, state: TrainState
) -> Iterator[tuple[Any, Any, int]]:
    """Feed a training, and end the threads and processes that read ahead, if there are any.

    Yields:
        A step, what it is called with, and the most steps that it takes in a call.
    """
    train_step, examples, start = training.train_step, training.examples, int(state.step)
    most = _steps_per_call(run, training, seed, state)
    if most > 1:
        size = training.batch_size
        held = many.with_examples(train_step, examples, run.mesh)
        rows = data.train_rows(len(examples["label"]), seed=seed, batch_size=size, start_step=start)
        yield many.several(held), rows, most
        return
    batches = _batches(run, training, seed, start)
    try:
        yield train_step, batches, 1
    finally:
        getattr(batches, "close", lambda: None)()


def _steps_per_call(run: Run, training: Training, seed: int, state: TrainState) -> int:
    """Settle how many steps a call takes at most: several where the examples are on the devices.

    A trace is one of single steps. Processes that train together cannot each go by their clock;
    they take one step a call unless they are told.
    """
    asked, examples = run.steps_per_call, training.examples
    if run.profile or data.is_lazy(examples) or asked == 1:
        return 1
    fits = many.has_room(examples, run.mesh)
    if asked is not None and not fits:
        raise ValueError(f"--steps-per-call {asked}: the examples do not fit on every device")
    if asked is not None or not fits or jax.process_count() > 1:
        return asked or 1
    rows, platform = np.arange(training.batch_size), run.mesh.devices.flat[0].platform
    batch = data.train_batch(examples, 0, seed=seed, batch_size=len(rows), rows=rows)
    if platform == "cpu" and many.has_convolutions(
        jax.make_jaxpr(training.train_step)(state, batch)
    ):
        return 1
    return _STEPS_PER_CALL


def label_of(training: Training, seed: int) -> str:
    """Name a training on the console."""
    return f"{training.phase}, seed {seed}"


def audit(
    run: Run, training: Training, seed: int, *, exempt: Mapping[str, tuple[str, ...]]
) -> None:
    """Hold the objective against what it should satisfy, on the first batch of a training.

    Args:
        run: where it takes place.
        training: what is about to be trained.
        seed: of that training.
        exempt: for the name of a term, what it rightly breaks.

    Raises:
        ValueError: naming what does not hold, after the table that says why.
    """
    # Here and not above: its imports take time that most runs have no use for.
    from kdjax import testing

    size = training.batch_size
    batch = data.train_batch(training.examples, 0, seed=seed, batch_size=size, rows=np.arange(size))
    outputs = training.teacher.apply(gathered(training.teacher.variables), batch)
    variables = training.model.init(jax.random.key(seed), batch["image"])
    student, _ = training.model.apply(*variables, batch["image"], train=False)
    on_host = jax.device_get((batch, student, outputs))
    report = testing.audit(training.objective, *on_host, exempt=exempt)
    say(f"audit of {training.phase} on the first batch:\n{report}")
    if not report.passed:
        names = ", ".join(finding.name for finding in report.failures)
        raise ValueError(f"--audit: does not hold: {names}; the table above says what to do")


def measure(run: Run, eval_step: Any, variables: Variables, arrays: Arrays) -> dict[str, Any]:
    """Evaluate a network on every example once, as `{name: (total, count)}`."""
    return loop.evaluate(eval_step, variables, eval_batches(run, arrays))


def eval_batches(run: Run, arrays: Arrays) -> Iterator[Batch]:
    """Cut examples into padded, masked batches on the mesh."""
    devices = run.mesh.size
    size = -(-min(EVAL_BATCH_SIZE, len(arrays["label"])) // devices) * devices
    rows = local_rows(run.mesh, size)
    batches = data.eval_batches(arrays, batch_size=size, rows=rows, workers=run.workers)
    yield from _placed(run, arrays, batches)


def predict_logits(run: Run, model: Model, variables: Variables, arrays: Arrays) -> np.ndarray:
    """Compute the logits of a network on the mesh for every example, [examples, num_classes]."""
    layout = sharding.layout_of(variables)

    @jax.jit
    def apply(variables: Variables, batch: Batch) -> Any:
        variables = sharding.gather(variables, layout)
        outputs, _ = model.apply(*variables, batch["image"], train=False)
        return outputs.logits.astype(np.float32)

    return loop.predict(lambda batch: apply(variables, batch), eval_batches(run, arrays))


def mean_of(logits: Sequence[np.ndarray] | np.ndarray, temperature: float) -> np.ndarray:
    """Average the probabilities of several networks at a temperature.

    Args:
        logits: [networks, ..., num_classes].
        temperature: where the probabilities are averaged.

    Returns:
        Logits of the mean, [..., num_classes].
    """
    given = [Teacher(jnp.asarray(z), lambda own, batch: Outputs(own)) for z in logits]
    mean = teachers.ensemble(given, temperature=temperature)
    return np.asarray(mean.apply(mean.variables, {}).logits)


def _restored_or_made(run: Run, training: Training, directory: Path, seed: int) -> TrainState:
    """Read the newest state, or make one, where its arrays live on this run's mesh."""

    def make(key: Array, batch: Batch, outputs: Outputs | None) -> TrainState:
        return step.init_train_state(
            key, training.model, training.objective, training.optimizer, batch, outputs
        )

    size = training.batch_size
    rows = local_rows(run.mesh, size)
    first = data.train_batch(training.examples, 0, seed=seed, batch_size=size, rows=rows)
    batch = shard_batch(first, run.mesh)
    outputs = jax.jit(training.teacher.apply)(training.teacher.variables, batch)
    args = jax.random.key(seed), batch, outputs
    like = sharding.abstract(make, *args, layout_fn=run.layout_fn)
    found = checkpoint.restore(directory, like)
    return found[1] if found else sharding.initialize(make, *args, layout_fn=run.layout_fn)


def _batches(run: Run, training: Training, seed: int, start: int) -> Iterator[Batch]:
    size = training.batch_size
    batches = data.train_batches(
        training.examples,
        seed=seed,
        batch_size=size,
        start_step=start,
        rows=local_rows(run.mesh, size),
        workers=run.workers,
    )
    return _placed(run, training.examples, batches)


def _placed(run: Run, arrays: Arrays, batches: Iterator[Any]) -> Iterator[Batch]:
    """Put batches on the mesh: ahead of their use where it takes time to make them."""
    place_fn = functools.partial(shard_batch, mesh=run.mesh)
    return data.prefetch(batches, place_fn) if data.is_lazy(arrays) else map(place_fn, batches)


def _observers(
    run: Run, training: Training, seed: int, update: Any, save_fn: checkpoint.Save
) -> tuple[Any, Any]:
    """Make the functions that log metrics and move the progress bar.

    Where the best checkpoint is kept, that of validation saves it.
    """
    notes, best = dict.fromkeys(("train", *training.watched), ""), [-np.inf]

    def write(at: int, split: str, measured: Mapping[str, Any]) -> None:
        numbers = {name: metrics.value(metric) for name, metric in measured.items()}
        run.log.append(phase=training.phase, seed=seed, step=at, split=split, **numbers)
        loss = numbers["loss"] if split == "train" else numbers["nll"]
        notes[split] = f"{split} loss {loss:.3f}, {numbers['accuracy']:.1%} right"
        if split == "train" and (skipped := int(measured.get("skipped", (0, 0))[0])):
            say(f"{label_of(training, seed)} skipped {skipped} non-finite steps up to step {at}")
        update(at, "  ".join(filter(None, notes.values())))

    def eval_fn(at: int, state: TrainState) -> None:
        variables = Variables(state.params["student"], state.model_state)
        scores = {}
        for split, arrays in training.watched.items():
            measured = measure(run, training.eval_step, variables, arrays)
            scores[split] = metrics.value(measured["accuracy"])
            write(at, split, {"loss": measured["nll"], **measured})
        if run.keep_best and scores.get("validation", -np.inf) > best[0]:
            best[0] = scores["validation"]
            save_fn(at, state, score=best[0])

    return lambda at, measured: write(at, "train", measured), eval_fn
