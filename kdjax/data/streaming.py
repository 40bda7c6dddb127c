"""Reading ahead: batches made by Grain's threads or processes, and put on the device in time."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from kdjax._extras import needs

T = TypeVar("T")

_MAX_THREADS = 8
_PER_WORKER = 2


def streamed(
    read_fn: Callable[[int], dict[str, np.ndarray]], numbers: range, *, workers: int = 0
) -> Generator[dict[str, np.ndarray], None, None]:
    """Make numbered batches ahead of their use, in order.

    Args:
        read_fn: makes the batch of a number; it is pickled where there are workers.
        numbers: which batches.
        workers: processes that make them, a few batches ahead each; 0 for threads of this one.

    Yields:
        `read_fn(number)`, whatever the workers.
    """
    with needs("data"):
        import grain

    threads = _PER_WORKER if workers else min(_MAX_THREADS, max(2, os.cpu_count() or 2))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    steps = grain.MapDataset.range(numbers.start, numbers.stop, numbers.step)
    batches: Any = steps.map(read_fn).to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            # Grain asks absl for flags of its own, which nobody has to have set.
            flags.FLAGS.mark_as_parsed()
        several = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_PER_WORKER)
        batches = batches.mp_prefetch(several, worker_init_fn=_leave_interrupts_to_the_parent)
    with contextlib.closing(iter(batches)) as made:
        yield from made


def _leave_interrupts_to_the_parent(worker: int, num_workers: int) -> None:
    # Ctrl-C reaches all processes; the training stops after its step, and needs its batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prefetch(
    batches: Iterable[Any], place_fn: Callable[[Any], T], *, depth: int = 2
) -> Iterator[T]:
    """Place batches ahead of their use, in a thread.

    Args:
        batches: what is to be placed, asked for in the thread.
        place_fn: puts a batch where it is needed, such as
            `functools.partial(sharding.shard_batch, mesh=mesh)`.
        depth: batches that wait; one more is on its way.

    Yields:
        `place_fn(batch)`, in order.

    Raises:
        ValueError: if the depth is not positive; and whatever `batches` and `place_fn` raise.
    """
    if depth < 1:
        raise ValueError(f"prefetch: depth is {depth}, expected 1 or more")
    source = iter(batches)
    with ThreadPoolExecutor(1, "prefetch") as thread:

        def ask() -> Future[T]:
            return thread.submit(lambda: place_fn(next(source)))

        asked = deque(ask() for _ in range(depth + 1))
        try:
            while True:
                try:
                    placed = asked.popleft().result()
                except StopIteration:
                    return
                asked.append(ask())
                yield placed
        finally:
            # What reads ahead must not go on when nobody is waiting.
            thread.shutdown(cancel_futures=True)
            getattr(batches, "close", lambda: None)()
