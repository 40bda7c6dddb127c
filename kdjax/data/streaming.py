"""Reading ahead: batches made by Grain's threads or processes, and put on the device in time."""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
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

    Raises:
        ChildProcessError: if a worker ended, such as by a kill.
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
        batches = batches.mp_prefetch(several, worker_init_fn=_begin)
    with contextlib.closing(iter(batches)) as made:
        yield from _whole(made)


def _whole(made: Iterator[T]) -> Iterator[T]:
    """Hand batches on; that a worker is gone is a line of ours.

    Raises:
        ChildProcessError: if a worker ended, such as by a kill.
    """
    while True:
        try:
            batch = next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            if "terminated" not in str(error):
                raise
            code = re.search(r"exit code (-?\d+)", str(error))
            raise ChildProcessError(
                f"a worker that reads ahead has ended (status {code[1] if code else 'unknown'}; -9 "
                "is a kill, often for want of memory): with fewer --data.workers, or 0, there may "
                "be room"
            ) from error
        yield batch


def _begin(worker: int, num_workers: int) -> None:
    # Ctrl-C reaches all processes; the training stops after its step, and needs its batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, name="kdjax-parent", daemon=True).start()


def _end_with_the_parent() -> None:
    """End when the training does, however it does: a worker that is not asked for would wait."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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

    Example:
        >>> import jax
        >>> from kdjax import data
        >>> [int(x) for x in data.prefetch(iter([1, 2, 3]), jax.numpy.asarray)]
        [1, 2, 3]
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
