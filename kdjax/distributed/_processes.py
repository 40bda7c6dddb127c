"""Joining processes, and what each of them knows and tells the others."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.distributed import _watchdog
from kdjax.types import PyTree

_A_DAY = 24 * 3600 * 1000
_turns: dict[str, Iterator[int]] = defaultdict(itertools.count)


def initialize(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 60.0,
) -> None:
    """Join the processes of a run, before anything else touches a device, and start the watchdog.

    Args:
        coordinator: host:port where process 0 listens; None where JAX finds out (TPU, SLURM, MPI).
        num_processes: how many processes there are; None where JAX finds out.
        process_id: which of them this is, from 0; None where JAX finds out.
        timeout: seconds after which a process counts as missing that has not joined, gives no sign
            of life, or stays behind the others.

    Raises:
        ValueError: if JAX cannot find out what was not given, or the processes do not meet.

    Example:
        >>> from kdjax import distributed
        >>> def main():
        ...     with distributed.leaving():
        ...         distributed.initialize(
        ...             coordinator="10.0.0.1:7890", num_processes=2, process_id=0
        ...         )
        ...
    """
    try:
        with _watchdog.joining(timeout):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                # Behind the watchdog: the runtime's own judgement is the last resort.
                initialization_timeout=max(300, int(3 * timeout)),
                heartbeat_timeout_seconds=max(100, int(3 * timeout)),
            )
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the processes cannot be joined: {reason}") from error
    if _watchdog.several():
        _watchdog.start(timeout)
        _watchdog.advance()
        # The processes meet once more where their devices are made known.
        jax.devices()


def is_leader() -> bool:
    """Return whether this is the process that writes: the first one.

    Example:
        >>> from kdjax import distributed
        >>> distributed.is_leader()
        True
    """
    return jax.process_index() == 0


def exchange(name: str, text: str) -> list[str]:
    """Exchange a text with all processes; all of them must call it in the same order.

    It uses no device, so that a thread may call it beside the training, unless
    `exchange_needs_devices`.

    Args:
        name: what the exchange is about; threads must use different names.
        text: what this process has to say.

    Returns:
        The texts of all processes, in their order.

    Example:
        >>> from kdjax import distributed
        >>> distributed.exchange("greeting", "hello")
        ['hello']
    """
    if jax.process_count() == 1:
        return [text]
    _watchdog.advance()
    if exchange_needs_devices():
        return _exchanged_on_devices(text)
    turn, me, client = next(_turns[name]), jax.process_index(), _watchdog.client()
    client.key_value_set(f"kdjax/say/{name}/{turn}/{me}", text)
    texts = [
        client.blocking_key_value_get(f"kdjax/say/{name}/{turn}/{i}", _A_DAY)
        for i in range(jax.process_count())
    ]
    if turn > 1:
        # Whoever has answered in the last turn has read everything of the one before.
        client.key_value_delete(f"kdjax/say/{name}/{turn - 2}/{me}")
    return texts


def exchange_needs_devices() -> bool:
    """Return whether devices carry the texts: this JAX does not have the store that we use.

    Example:
        >>> from kdjax import distributed
        >>> distributed.exchange_needs_devices() in (True, False)
        True
    """
    return jax.process_count() > 1 and _watchdog.client() is None


def gathered(tree: PyTree) -> PyTree:
    """Make NumPy arrays of all arrays; all processes must call it where one holds only a part.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import distributed
        >>> type(distributed.gathered({"w": jnp.ones(2)})["w"]).__name__
        'ndarray'
    """

    def whole(array: Any) -> Any:
        if is_whole(array):
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(whole, tree)


def is_whole(array: Any) -> bool:
    """Return whether this process holds all of an array.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import distributed
        >>> distributed.is_whole(jnp.ones(2))
        True
    """
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    return here or array.is_fully_replicated


def _exchanged_on_devices(text: str) -> list[str]:
    """Gather texts of different lengths as arrays of one length."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(own)))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]
