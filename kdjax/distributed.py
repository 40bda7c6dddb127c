"""Several processes as one: `jax.distributed.initialize`, and a watchdog that says who is missing.

The runtime ends all processes when one dies, after minutes and with a stack trace. Here every
process gives a sign of life each second in the key-value store of JAX's coordination service;
process 0, where that service runs, judges. Who has been silent for too long is named in one line on
the error stream of all others, which then end with status 75: try again. Only the death of process
0 is noticed by the runtime first; its abort is held up for the line.
"""

import atexit
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from kdjax.types import PyTree

MISSING = 75
"""Exit status where another process went missing: EX_TEMPFAIL, the same command may go on."""

_PULSE = 1.0
_A_DAY = 24 * 3600 * 1000
_PULSES, _LEFT, _VERDICT = "kdjax/pulse/", "kdjax/left/", "kdjax/verdict/"
# The statuses that processes end with together: done, or asked to stop.
_AGREED = (0, 130)
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
        num_processes: how many processes there are; None likewise.
        process_id: which of them this is, from 0; None likewise.
        timeout: seconds without a sign of life after which a process counts as missing.

    Raises:
        ValueError: if JAX cannot find out what was not given, or the processes do not meet.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Behind the watchdog: the runtime's own judgement is the last resort.
            heartbeat_timeout_seconds=max(100, int(3 * timeout)),
        )
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the processes cannot be joined: {reason}") from error
    if jax.process_count() > 1:
        _start_watchdog(timeout)


def is_leader() -> bool:
    """Return whether this is the process that writes: the first one."""
    return jax.process_index() == 0


def exchange(name: str, text: str) -> list[str]:
    """Tell a text to all processes and hear theirs; all of them must call it in the same order.

    It uses no device, so that a thread may call it beside the training.

    Args:
        name: what the exchange is about; threads must use different names.
        text: what this process has to say.

    Returns:
        The texts of all processes, in their order.
    """
    if jax.process_count() == 1:
        return [text]
    turn, me, client = next(_turns[name]), jax.process_index(), _client()
    client.key_value_set(f"kdjax/say/{name}/{turn}/{me}", text)
    texts = [
        client.blocking_key_value_get(f"kdjax/say/{name}/{turn}/{i}", _A_DAY)
        for i in range(jax.process_count())
    ]
    if turn > 1:
        # Whoever has answered in the last turn has read everything of the one before.
        client.key_value_delete(f"kdjax/say/{name}/{turn - 2}/{me}")
    return texts


def gathered(tree: PyTree) -> PyTree:
    """Make NumPy arrays of all arrays; all processes must call it where one holds only a part."""
    return jax.tree.map(_gathered, tree)


def is_whole(array: Any) -> bool:
    """Return whether this process holds all of an array."""
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    return here or array.is_fully_replicated


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End this process so that the others learn of it at once, if what runs inside fails.

    Processes that wait for a failed one in a collective, or in JAX's own barrier at exit, would do
    so for minutes. Nothing changes where `initialize` has not joined several processes.

    Raises:
        SystemExit: as it came, with status 0 or 130, the end that all processes agree on.
    """
    try:
        yield
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not _watching.is_set() or status in _AGREED:
            raise
        if isinstance(stop.code, str):
            # Python prints it where this exception reaches the top, which it does not.
            print(stop.code, file=sys.stderr)
        _leave(status)
    except BaseException as error:
        if not _watching.is_set():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            # A collective broke, most likely because a process went missing: let it be named.
            time.sleep(_silence[0] + 5 * _PULSE)
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> NoReturn:
    """Tell the others and go, past JAX's barrier at exit."""
    me = jax.process_index()
    sys.stdout.flush()
    sys.stderr.flush()
    _client().key_value_set(f"{_LEFT}{me}", str(status), allow_overwrite=True)
    if is_leader():
        _pass_verdict(f"process 0 ended with status {status}, see its own output")
    os._exit(status)


def _start_watchdog(timeout: float) -> None:
    _silence[0] = timeout
    _heard[0] = time.monotonic()
    _watching.set()
    threading.Thread(target=_pulse, name="kdjax-pulse", daemon=True).start()
    threading.Thread(target=_time, name="kdjax-watchdog", daemon=True).start()
    # Behind JAX's own hook, and so before it: the coordination service is still there.
    atexit.register(_retire)
    if not is_leader():
        _libc.signal(int(signal.SIGABRT), _abort_handler)


def _retire() -> None:
    """Leave in order: from now on silence means nothing."""
    if _watching.is_set():
        _watching.clear()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_LEFT}{jax.process_index()}", "0", allow_overwrite=True)


def _pulse() -> None:
    """Give a sign of life and ask for the verdict; on process 0, judge."""
    me, count, seen = jax.process_index(), itertools.count(), _Seen({}, {})
    who = f"{socket.gethostname()}, pid {os.getpid()}"
    while _watching.is_set():
        try:
            _client().key_value_set(f"{_PULSES}{me}", f"{next(count)} {who}", allow_overwrite=True)
            verdict = _judge(seen) if is_leader() else _entries(_VERDICT).get("0")
        except jax.errors.JaxRuntimeError as error:
            if _watching.is_set():
                _end(f"process 0, the coordinator, is gone ({str(error).splitlines()[0][:80]})")
            return
        _heard[0] = time.monotonic()
        if verdict is not None:
            if is_leader():
                _pass_verdict(verdict)
            _end(verdict)
        time.sleep(_PULSE)


def _time() -> None:
    """End this process when the coordination service itself gives no answer."""
    while _watching.is_set():
        silence = time.monotonic() - _heard[0]
        if silence > _silence[0]:
            _end(f"process 0, the coordinator, has given no answer for {silence:.0f} s")
        time.sleep(_PULSE)


class _Seen(NamedTuple):
    """The last sign of life of every process, and when it was first seen."""

    sign: dict[int, str]
    since: dict[int, float]


def _judge(seen: _Seen) -> str | None:
    """Say which process is missing, None if there is none."""
    now, signs = time.monotonic(), _entries(_PULSES)
    left = _entries(_LEFT)
    for process in range(jax.process_count()):
        sign, status = signs.get(str(process), ""), left.get(str(process))
        if status is not None:
            if int(status) not in _AGREED:
                return f"process {process} ended with status {status}, see its own output"
            continue
        if seen.sign.get(process) != sign:
            seen.sign[process], seen.since[process] = sign, now
        silence = now - seen.since[process]
        if silence > _silence[0]:
            who = sign.partition(" ")[2] or "never heard of"
            return f"process {process} ({who}) has given no sign of life for {silence:.0f} s"
    return None


def _pass_verdict(verdict: str) -> None:
    """Publish a verdict and leave the others the time to read it: process 0 is who they ask."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{_VERDICT}0", verdict, allow_overwrite=True)
        time.sleep(3 * _PULSE)


def _entries(folder: str) -> dict[str, str]:
    """Read a folder of the coordination service's key-value store, by the last part of the key."""
    try:
        found = _client().key_value_dir_get(folder)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return {}
        raise
    return {key.rpartition("/")[2]: value for key, value in found}


def _end(verdict: str) -> NoReturn:
    """Say who is missing, in one line, and end: the runtime would hang or abort."""
    with _last_words:
        me = jax.process_index()
        line = f"error: {verdict}; process {me} ends, the same command goes on from the checkpoint"
        print(line, file=sys.stderr, flush=True)
        os._exit(MISSING)


def _on_abort(number: int) -> None:
    """Name process 0 if it is why the runtime is about to abort this one."""
    host, _, port = (global_state.coordinator_address or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        _end("process 0, the coordinator, is gone")


def _gathered(array: Any) -> np.ndarray:
    if is_whole(array):
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _client() -> Any:
    return global_state.client


_watching, _last_words = threading.Event(), threading.Lock()
_silence, _heard = [0.0], [0.0]
# The runtime aborts in a thread of its own, where no handler of Python's would ever be called.
_libc = ctypes.CDLL(None)
_abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)
