"""Batches as a pure function of (seed, step): resuming needs the step and nothing else."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.data.records import Column, read_columns
from kdjax.data.streaming import streamed

Arrays = Mapping[str, Any]
"""Arrays by name, [examples, ...] each: NumPy arrays, `LazyImages` or `LazyLabels`."""

# Sets the draws of crops apart from those of the order of examples.
_CROPS = 1
_NO_END = 2**31 - 1


@functools.lru_cache(maxsize=8)
def example_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return the order in which an epoch visits the examples, [num_examples].

    Example:
        >>> from kdjax import data
        >>> print(data.example_order(0, 1, 5))
        [3 1 4 2 0]
    """
    order = np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_examples)
    order.setflags(write=False)
    return order


def batch_indices(seed: int, step: int, *, batch_size: int, num_examples: int) -> np.ndarray:
    """Return which examples make up a batch.

    Epochs follow one another without a gap: a batch may end one and begin the next, no example is
    dropped, and a set may be smaller than a batch.

    Args:
        seed: names the sequence of batches.
        step: which batch, from 0.
        batch_size: examples in a batch.
        num_examples: examples in the set.

    Returns:
        Indices, [batch_size].

    Example:
        >>> from kdjax import data
        >>> print(data.batch_indices(0, 7, batch_size=4, num_examples=10))
        [5 7 8 2]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    parts = [
        example_order(seed, int(epoch), num_examples)[offsets[epochs == epoch]]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


def train_batches(
    arrays: Arrays,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this process's share of every batch, without end.

    Arrays in memory are gathered on the spot. Where examples are still to be read and decoded,
    Grain does it ahead of the training, in threads or processes; the batches are the same.

    Args:
        arrays: the examples, for example `dataset.train._asdict()`.
        seed: names the sequence of batches.
        batch_size: examples in a batch, over all processes.
        start_step: the first batch to yield.
        rows: which of them this process reads, `sharding.local_rows` of a mesh; all by default.
        workers: processes that read and decode; 0 for threads of this one.

    Yields:
        The arrays' rows and their `index`, [rows, ...].

    Raises:
        ValueError: if the arrays do not hold the same number of examples each.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> arrays = {"image": np.zeros((10, 8, 8, 1)), "label": np.arange(10)}
        >>> batch = next(data.train_batches(arrays, seed=0, batch_size=4))
        >>> batch["image"].shape, sorted(batch)
        ((4, 8, 8, 1), ['image', 'index', 'label'])
    """
    batch_at = functools.partial(
        train_batch,
        seed=seed,
        batch_size=batch_size,
        num_examples=_count("train_batches", arrays),
        rows=np.arange(batch_size) if rows is None else rows,
    )
    yield from _batches(arrays, batch_at, range(start_step, _NO_END), workers)


def train_rows(
    num_examples: int, *, seed: int, batch_size: int, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield which examples make up every batch, without end: for a set that is on the device.

    Args:
        num_examples: in the set.
        seed: names the sequence of batches.
        batch_size: examples in a batch, over all processes.
        start_step: the first batch to yield.

    Yields:
        `index`, [batch_size]: of the whole batch, in every process.

    Example:
        >>> from kdjax import data
        >>> print(next(data.train_rows(10, seed=0, batch_size=4))["index"].shape)
        (4,)
    """
    for step in itertools.count(start_step):
        index = batch_indices(seed, step, batch_size=batch_size, num_examples=num_examples)
        yield {"index": index.astype(np.int32)}


def train_batch(
    arrays: Arrays,
    step: int,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    num_examples: int | None = None,
) -> dict[str, np.ndarray]:
    """Make some rows of one batch, here and now.

    Args:
        arrays: the examples.
        step: which batch, from 0.
        seed: names the sequence of batches.
        batch_size: examples in a batch, over all processes.
        rows: which of them, [rows].
        num_examples: in the set; by default as many as the arrays have.

    Returns:
        The arrays' rows and their `index`. What is seen of an image that is cropped at random
        depends on seed, step and row.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> arrays = {"image": np.zeros((10, 8, 8, 1)), "label": np.arange(10)}
        >>> batch = data.train_batch(arrays, 5, seed=0, batch_size=4, rows=np.arange(4))
        >>> batch["label"].shape
        (4,)
    """
    num_examples = num_examples or _count("train_batch", arrays)
    index = batch_indices(seed, step, batch_size=batch_size, num_examples=num_examples)[rows]
    numbers = [(seed, step, int(row), _CROPS) for row in rows]
    return {**_gathered(arrays, index, numbers), "index": index.astype(np.int32)}


def eval_batches(
    arrays: Arrays, *, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every example exactly once; the last batch is filled up and masked.

    Args:
        arrays: the examples by name.
        batch_size: examples in a batch, over all processes.
        rows: which of them this process reads, `sharding.local_rows` of a mesh; all by default.
        workers: processes that read and decode; 0 for threads of this one.

    Yields:
        The arrays' rows, and `mask` [rows], false where a row only fills up; a `mask` that the
        arrays have is kept elsewhere. Every process yields the same number of batches.

    Raises:
        ValueError: if the arrays do not hold the same number of examples each.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> arrays = {"image": np.zeros((10, 8, 8, 1)), "label": np.arange(10)}
        >>> [int(batch["mask"].sum()) for batch in data.eval_batches(arrays, batch_size=4)]
        [4, 4, 2]
    """
    num_examples = _count("eval_batches", arrays)
    batch_at = functools.partial(
        _eval_batch,
        batch_size=batch_size,
        num_examples=num_examples,
        rows=np.arange(batch_size) if rows is None else rows,
    )
    yield from _batches(arrays, batch_at, range(-(-num_examples // batch_size)), workers)


def _eval_batch(
    arrays: Arrays, number: int, *, batch_size: int, num_examples: int, rows: np.ndarray
) -> dict[str, np.ndarray]:
    positions = number * batch_size + rows
    mask = positions < num_examples
    # Filled up with the first example: any will do, the mask keeps it out.
    chosen = np.where(mask, positions, 0)
    found = _gathered(arrays, chosen, [(int(i),) for i in chosen])
    if "mask" in found:
        own = found["mask"]
        mask = own * np.reshape(mask, (-1, *[1] * (own.ndim - 1))).astype(own.dtype)
    return {**found, "mask": mask}


def _count(function: str, arrays: Arrays) -> int:
    """Return how many examples arrays hold, all the same number."""
    shapes = {name: getattr(array, "shape", ()) for name, array in arrays.items()}
    counts = {name: shape[0] if shape else "no" for name, shape in shapes.items()}
    if len({*counts.values()}) != 1 or "no" in counts.values():
        found = ", ".join(f"{count} in {name}" for name, count in sorted(counts.items()))
        raise ValueError(
            f"{function}: the arrays hold {found or 'no'} examples, expected as many in each"
        )
    return int(next(iter(counts.values())))


def _gathered(arrays: Arrays, index: np.ndarray, numbers: Any) -> dict[str, np.ndarray]:
    lazy, held = _split(arrays)
    gathered = {name: array[index] for name, array in held.items()}
    return {**read_columns(lazy, index, numbers), **gathered}


def _split(arrays: Arrays) -> tuple[dict[str, Column], dict[str, Any]]:
    """Return what is still to be read, and what is in memory."""
    lazy = {name: array for name, array in arrays.items() if isinstance(array, Column)}
    return lazy, {name: array for name, array in arrays.items() if name not in lazy}


def _batches(
    arrays: Arrays, batch_at: Any, numbers: range, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """Make numbered batches: what is to be read by Grain, what is in memory here."""
    lazy, held = _split(arrays)
    if not lazy:
        yield from (batch_at(arrays, number) for number in numbers)
        return
    # A worker is handed what it reads, and none of the arrays in memory.
    read_fn = functools.partial(batch_at, lazy)
    with contextlib.closing(streamed(read_fn, numbers, workers=workers)) as parts:
        for number, part in zip(numbers, parts, strict=False):
            yield {**part, **batch_at(held, number)}
