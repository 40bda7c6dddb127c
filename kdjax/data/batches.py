"""Batches as a pure function of (seed, step): resuming needs the step and nothing else."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.data.sources import LazyImages

Arrays = Mapping[str, Any]
"""Arrays by name, [examples, ...] each: NumPy arrays, or `LazyImages`."""


@functools.lru_cache(maxsize=8)
def example_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return the order in which an epoch visits the examples, [num_examples]."""
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
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield this process's share of every batch, without end.

    Arrays in memory are gathered on the spot. Where images are still to be read and decoded, Grain
    does it in threads, ahead of the training; the batches are the same.

    Args:
        arrays: the examples, for example `dataset.train._asdict()`.
        seed: names the sequence of batches.
        batch_size: examples in a batch, over all processes.
        start_step: the first batch to yield.
        process_index: which share of each batch, from 0.
        process_count: into how many a batch is split.
        rows: the share itself, where a mesh has laid it out otherwise: `sharding.local_rows`.

    Yields:
        The arrays' rows and their `index`, [batch_size / process_count, ...].

    Raises:
        ValueError: if the batch does not divide over the processes.
    """
    num_examples = len(arrays["label"])
    mine = _share("train_batches", batch_size, process_index, process_count, rows)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        index = batch_indices(seed, step, batch_size=batch_size, num_examples=num_examples)[mine]
        return {"index": index.astype(np.int32)} | {n: a[index] for n, a in arrays.items()}

    if any(isinstance(array, LazyImages) for array in arrays.values()):
        yield from _streamed(batch_at, start_step)
    step = start_step
    while True:
        yield batch_at(step)
        step += 1


def eval_batches(
    arrays: Arrays,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every example exactly once; the last batch is filled up and masked.

    Args:
        arrays: the examples by name.
        batch_size: examples in a batch, over all processes.
        process_index: which share of each batch, from 0.
        process_count: into how many a batch is split.
        rows: the share itself, where a mesh has laid it out otherwise: `sharding.local_rows`.

    Yields:
        The arrays' rows, and `mask` [batch], false where a row only fills up. Every process yields
        the same number of batches.

    Raises:
        ValueError: if the batch does not divide over the processes.
    """
    num_examples = len(arrays["label"])
    mine = _share("eval_batches", batch_size, process_index, process_count, rows)
    for start in range(0, num_examples, batch_size):
        positions = start + mine
        mask = positions < num_examples
        # Filled up with the first example: any will do, the mask keeps it out.
        chosen = np.where(mask, positions, 0)
        yield {name: array[chosen] for name, array in arrays.items()} | {"mask": mask}


def _share(
    function: str,
    batch_size: int,
    process_index: int,
    process_count: int,
    rows: np.ndarray | None,
) -> np.ndarray:
    """Settle which rows of a batch this process reads."""
    if rows is not None:
        return rows
    if batch_size % process_count:
        raise ValueError(
            f"{function}: a batch of {batch_size} does not divide over {process_count} processes"
        )
    share = batch_size // process_count
    return np.arange(process_index * share, (process_index + 1) * share)


def _streamed(batch_at: Any, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    import grain

    steps = grain.MapDataset.range(start_step, np.iinfo(np.int32).max)
    options = grain.ReadOptions(num_threads=8, prefetch_buffer_size=16)
    yield from steps.map(batch_at).to_iter_dataset(options)
