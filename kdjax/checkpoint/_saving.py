"""Saving beside the training: the step waits for a copy on the device, a thread does the rest."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.checkpoint._arrays import write
from kdjax.checkpoint._files import prune
from kdjax.checkpoint._lock import lock
from kdjax.distributed import exchange, exchange_needs_devices, is_leader
from kdjax.types import PyTree


class Save(Protocol):
    """Writes a checkpoint, now or soon."""

    def __call__(self, step: int, tree: PyTree, *, score: float | None = None) -> None:
        """Write the state of a step; a score says how good it is."""


def save(
    directory: str | Path,
    step: int,
    tree: PyTree,
    *,
    keep: int = 2,
    keep_best: bool = False,
    score: float | None = None,
    owner: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint that is either complete or not there, then remove old ones.

    Checkpoints of later steps are removed too: training came back to this step without them,
    because they were damaged. Where several processes train together, all of them must call, on a
    directory that all of them see.

    Args:
        directory: where the checkpoints of one training live; made if need be.
        step: names the checkpoint; one that has the name already is replaced.
        tree: arrays, typed PRNG keys included.
        keep: how many of the newest checkpoints stay; with two, one can be damaged.
        keep_best: whether the one with the highest score stays too.
        score: how good this one is, for example its accuracy on validation examples.
        owner: what tells this training from others, such as `{"seed": 1}`, in what JSON can hold:
            `restore(owner=...)` takes no checkpoint of another.

    Raises:
        OSError: if it cannot be written; earlier checkpoints are untouched.
        ValueError: if `keep` is below two.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from kdjax import checkpoint
        >>> folder, tree = tempfile.mkdtemp(), {"w": np.ones(2, np.float32)}
        >>> checkpoint.save(folder, 3, tree)
        >>> step, found = checkpoint.restore(folder, tree)
        >>> step, found["w"].shape
        (3, (2,))
    """
    _check_keep("save", keep)
    _save(Path(directory).absolute(), step, tree, keep, keep_best, score, owner)


@contextlib.contextmanager
def saving(
    directory: str | Path,
    *,
    keep: int = 2,
    keep_best: bool = False,
    owner: Mapping[str, Any] | None = None,
) -> Iterator[Save]:
    """Write checkpoints in a thread while training goes on.

    The call copies the arrays on their devices, so that training may donate them, and returns. One
    checkpoint is written at a time: a call waits for the one before. The directory is locked
    against other runs meanwhile.

    Args:
        directory: where the checkpoints of one training live; made if need be.
        keep: how many of the newest checkpoints stay; with two, one can be damaged.
        keep_best: whether the one with the highest score stays too.
        owner: as for `save`.

    Yields:
        `save(step, tree, *, score=None)`. What it could not write is raised by its next call, or
        at the end of the `with`, which waits for the last checkpoint. A second call for a step is
        ignored.

    Raises:
        OSError: if a checkpoint cannot be written, or another run uses the directory.
        ValueError: if `keep` is below two.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from kdjax import checkpoint
        >>> folder, tree = tempfile.mkdtemp(), {"w": np.ones(2, np.float32)}
        >>> with checkpoint.saving(folder) as save:
        ...     save(1, tree)
        ...
        >>> checkpoint.restore(folder, tree)[0]
        1
    """
    _check_keep("saving", keep)
    directory = Path(directory).absolute()
    pending: list[Future[None]] = []
    saved: list[int] = []

    def wait() -> None:
        while pending:
            pending.pop().result()

    def save_soon(step: int, tree: PyTree, *, score: float | None = None) -> None:
        wait()
        if saved[-1:] != [step]:
            saved.append(step)
            copies = jax.tree.map(_copy, tree)
            args = step, copies, keep, keep_best, score, owner
            pending.append(pool.submit(_save, directory, *args))
            if exchange_needs_devices():
                wait()

    with lock(directory), ThreadPoolExecutor(1, "kdjax-checkpoint") as pool:
        try:
            yield save_soon
        except BaseException:
            # What ends the training matters more than what its last checkpoint has to say.
            with contextlib.suppress(OSError):
                wait()
            raise
        wait()


def _save(
    directory: Path,
    step: int,
    tree: PyTree,
    keep: int,
    keep_best: bool,
    score: float | None,
    owner: Mapping[str, Any] | None,
) -> None:
    scored = {} if score is None or not math.isfinite(score) else {"score": float(score)}
    write(directory / str(step), tree, {**(owner or {}), "step": step, **scored})
    if is_leader():
        prune(directory, step, keep, keep_best=keep_best)
    exchange(f"prune {directory}", "done")


def _copy(leaf: Any) -> Any:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else np.copy(leaf)


def _check_keep(function: str, keep: int) -> None:
    if keep < 2:
        raise ValueError(
            f"{function}: keep is {keep}, expected 2 or more, so that one can be damaged"
        )
