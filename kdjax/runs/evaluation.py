"""What all trainings of a run share, and networks measured and asked on its devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax import data, loop, sharding, teachers
from kdjax._version import __version__
from kdjax.distributed import is_leader
from kdjax.runs import workdir
from kdjax.runs.workdir import Claim, MetricsLog
from kdjax.types import Array, Batch, Model, Outputs, PyTree, Teacher, Variables

Arrays = Mapping[str, Any]
"""NumPy arrays by name, columns of `kdjax.data` that are read while they are used, or, where
networks are measured and asked, what finds an array for a batch: `logits_fn`."""
EVAL_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """What all trainings of a run share."""

    workdir: Path
    mesh: Mesh
    log: MetricsLog
    stop_fn: Callable[[], bool]
    claim: Claim | None = None
    log_every: int = 50
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    keep_best: bool = False
    profile: bool = False
    workers: int = 0
    steps_per_call: int | None = None

    def owner(self, phase: str, seed: int | None) -> dict[str, Any] | None:
        """Return what tells the checkpoints of a training from those of others.

        None where the directory is of a version that did not say so.
        """
        if self.claim is None or self.claim.run is None:
            return None
        return {"run": self.claim.run, "phase": phase, "seed": seed}

    def begin(self) -> None:
        """Note in the work directory by what its networks are trained from now on."""
        if self.claim is not None and is_leader():
            workdir.begin(self.claim.path, **trained_by(self.mesh))

    def layout_fn(self, tree: PyTree) -> PyTree:
        """Return where arrays of ours live: a training's state, a network's variables."""
        return sharding.shardings(tree, self.mesh, sharding.NETWORK_RULES)


def trained_by(mesh: Mesh) -> dict[str, str]:
    """Return by what networks are trained in this process: commit, device and versions."""
    device = mesh.devices.flat[0]
    return {
        "commit": workdir.commit(),
        "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "versions": f"kdjax {__version__}, jax {jax.__version__}",
    }


def measure(
    run: Run,
    eval_step: Any,
    variables: Variables,
    arrays: Arrays,
    *,
    batch_size: int = EVAL_BATCH_SIZE,
) -> dict[str, Any]:
    """Evaluate a network on every example once, as `{name: (total, count)}`."""
    return loop.evaluate(eval_step, variables, _eval_batches(run, arrays, batch_size))


def answers(
    run: Run,
    answer_fn: Callable[[Batch], Array],
    arrays: Arrays,
    *,
    batch_size: int = EVAL_BATCH_SIZE,
) -> np.ndarray:
    """Collect what a function says of every example, by batches on the mesh, [examples, ...]."""
    return loop.predict(answer_fn, _eval_batches(run, arrays, batch_size))


def predict(
    run: Run,
    model: Model,
    variables: Variables,
    arrays: Arrays,
    *,
    batch_size: int = EVAL_BATCH_SIZE,
) -> np.ndarray:
    """Compute the logits of a network on the mesh for every example, [examples, num_classes]."""
    return answers(run, logits_fn(model, variables), arrays, batch_size=batch_size)


def logits_fn(model: Model, variables: Variables) -> Callable[[Batch], Array]:
    """Return what computes the logits of a network for a batch on the mesh."""
    leaves, tree = jax.tree.flatten(sharding.layout_of(variables))
    return functools.partial(_logits, model, (tuple(leaves), tree), variables)


def said(run: Run, arrays: Arrays) -> np.ndarray:
    """Return the teacher's logits of all examples, kept or asked for now, [examples, ...]."""
    kept = arrays["teacher_logits"]
    return answers(run, itemgetter("teacher_logits"), arrays) if callable(kept) else kept


def least_steps_between(watched: Mapping[str, Arrays], batch_size: int) -> int:
    """Return the steps between validations that then take about a quarter of the time.

    By the number of examples, not by a clock: what is measured is the same on every machine. A
    step learns from an example in the time that measures three.

    Args:
        watched: the splits that are measured, by name.
        batch_size: examples in a step.
    """
    measured = sum(len(arrays["label"]) for arrays in watched.values())
    return max(1, -(-4 * measured // (3 * batch_size)))


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


def forget_programs() -> None:
    """Free the memory of compiled programs that nothing will call again."""
    jax.clear_caches()


def on_mesh(run: Run, arrays: Arrays, batches: Iterator[Any]) -> Iterator[Batch]:
    """Put batches on the mesh: ahead of their use where it takes time to make them."""
    place_fn = functools.partial(sharding.shard_batch, mesh=run.mesh)
    return data.prefetch(batches, place_fn) if data.is_lazy(arrays) else map(place_fn, batches)


def _eval_batches(run: Run, arrays: Arrays, batch_size: int) -> Iterator[Batch]:
    """Cut examples into padded, masked batches on the mesh, with what is asked for each."""
    asked = {name: array for name, array in arrays.items() if callable(array)}
    arrays = {name: array for name, array in arrays.items() if name not in asked}
    devices = run.mesh.size
    size = -(-min(batch_size, len(arrays["label"])) // devices) * devices
    rows = sharding.local_rows(run.mesh, size)
    batches = data.eval_batches(arrays, batch_size=size, rows=rows, workers=run.workers)
    for batch in on_mesh(run, arrays, batches):
        yield {**batch, **{name: answer_fn(batch) for name, answer_fn in asked.items()}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model: Model, layout: Any, variables: Variables, batch: Batch) -> Array:
    leaves, tree = layout
    whole: Variables = sharding.gather(variables, jax.tree.unflatten(tree, leaves))
    outputs, _ = model.apply(whole.params, whole.state, batch["image"], train=False)
    return outputs.logits.astype(np.float32)
