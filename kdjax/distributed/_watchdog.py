"""The watchdog: every process gives a sign of life, one judges, and all say who is missing.

Signs of life go into the key-value store of JAX's coordination service; process 0, where that
service runs, judges. Only the death of process 0 is noticed by the runtime first; its abort is held
up for the line that names it. A sign says how far the main thread has come, too: all processes do
the same things in the same order, so that one that stays behind the others hangs, unless it
compiles.

The store's client and its address are private parts of JAX, and this is the one file that uses
them. With a JAX that has them elsewhere there is a line that says so, and no watchdog.
"""

import atexit
import contextlib
import ctypes
import importlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

__all__ = ["MISSING", "advance", "client", "joining", "leaving", "retire", "several", "start"]

MISSING = 75
"""Exit status where another process went missing: EX_TEMPFAIL, the same command may go on."""

_PRIVATE = "jax._src.distributed"
_PULSE = 1.0
# For the others to leave too; JAX's own barrier comes then, which fails.
_PATIENCE = 300.0
_PULSES, _LEFT, _VERDICT = "kdjax/pulse/", "kdjax/left/", "kdjax/verdict/"
# The statuses that processes end with together: done, or asked to stop.
_AGREED = (0, 130)


def client() -> Any:
    """Return the client of the coordination service's store, None where JAX does not have it."""
    found = _private("client")
    used = ("key_value_set", "key_value_dir_get", "blocking_key_value_get", "key_value_delete")
    return found if all(hasattr(found, name) for name in used) else None


def several() -> bool:
    """Return whether several processes have been joined, without a device where JAX says so."""
    return int(_private("num_processes") or jax.process_count()) > 1


def _me() -> int:
    """Return which process this is, without a device: JAX waits for all others where it has one."""
    return int(_private("process_id"))


def _count() -> int:
    return int(_private("num_processes"))


def _private(name: str) -> Any:
    """Return what JAX knows of the processes it has joined, None where this JAX does not say."""
    try:
        state = importlib.import_module(_PRIVATE).global_state
    except (ImportError, AttributeError):
        return None
    return getattr(state, name, None)


@contextlib.contextmanager
def joining(timeout: float) -> Iterator[None]:
    """End this process when what runs inside has not met all others in time.

    Args:
        timeout: seconds.
    """

    def end() -> None:
        line = (
            f"error: not all processes have joined within {timeout:g} s: start those that are "
            "missing, or give them more time (--distributed.timeout)"
        )
        print(line, file=sys.stderr, flush=True)
        os._exit(MISSING)

    # JAX itself would abort, with a stack trace.
    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def advance() -> None:
    """Say that the main thread goes on, in places that all processes pass in the same order.

    Example:
        >>> from kdjax import distributed
        >>> distributed.advance()  # nothing to say where there is one process
    """
    if threading.current_thread() is threading.main_thread():
        _progress[0] += 1


def start(timeout: float) -> None:
    """Watch over the processes that have been joined, until `retire`.

    Args:
        timeout: seconds without a sign of life after which a process counts as missing.
    """
    if client() is None:
        line = f"warning: no watchdog: JAX {jax.__version__} does not have the store that it uses"
        print(line, file=sys.stderr, flush=True)
        return
    _silence[0], _heard[0] = timeout, time.monotonic()
    _watching.set()
    threading.Thread(target=_pulse, name="kdjax-pulse", daemon=True).start()
    threading.Thread(target=_time, name="kdjax-watchdog", daemon=True).start()
    # Behind JAX's own hook, and so before it: the coordination service is still there.
    atexit.register(retire)
    if _me():
        _libc.signal(int(signal.SIGABRT), _abort_handler)


def retire() -> None:
    """Leave in order, when all others have: who never comes is named meanwhile."""
    if _watching.is_set():
        advance()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _set(f"{_LEFT}{_me()}", "0")
            end = time.monotonic() + _PATIENCE
            while len(_entries(_LEFT)) < _count() and time.monotonic() < end:
                time.sleep(_PULSE / 4)
        _watching.clear()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End this process so that the others learn of it at once, if what runs inside fails.

    Processes that wait for a failed one in a collective, or in JAX's own barrier at exit, would do
    so for minutes. Nothing changes where `initialize` has not joined several processes.

    Raises:
        SystemExit: as it came, with status 0 or 130, the end that all processes agree on.

    Example:
        >>> from kdjax import distributed
        >>> with distributed.leaving():
        ...     pass  # the training; a failure here ends the other processes at once
        ...
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
    """End after telling the others, past JAX's barrier at exit."""
    me = _me()
    sys.stdout.flush()
    sys.stderr.flush()
    _set(f"{_LEFT}{me}", str(status))
    if me == 0:
        _pass_verdict(f"process 0 ended with status {status}, see its own output")
    os._exit(status)


def _pulse() -> None:
    """Give a sign of life and ask for the verdict; on process 0, judge."""
    me, count = _me(), itertools.count()
    seen: dict[tuple[int, str], tuple[object, float]] = {}
    who = f"{socket.gethostname()}, pid {os.getpid()}"
    while _watching.is_set():
        try:
            _set(f"{_PULSES}{me}", f"{next(count)} {_position()} {who}")
            verdict = _entries(_VERDICT).get("0") if me else _judge(seen)
        except jax.errors.JaxRuntimeError as error:
            if _watching.is_set():
                _end(f"process 0, the coordinator, is gone ({str(error).splitlines()[0][:80]})")
            return
        _heard[0] = time.monotonic()
        if verdict is not None:
            if me == 0:
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


def _position() -> str:
    """Return how far the main thread has come, or that it compiles, which takes what it takes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and not frame.f_code.co_filename.endswith("jax/_src/compiler.py"):
        frame = frame.f_back
    return "compiling" if frame else str(_progress[0])


def _judge(seen: dict[tuple[int, str], tuple[object, float]]) -> str | None:
    """Return which process is missing or hangs, None if there is none.

    Args:
        seen: of every process its last sign of life, and the place where it stays behind the
            others, each with when it was first seen.
    """
    signs, left = _entries(_PULSES), _entries(_LEFT)
    front = max((_place(sign) for sign in signs.values()), default=0)

    def silence(process: int, kind: str, value: object) -> float:
        now = time.monotonic()
        if seen.get((process, kind), (None, now))[0] != value:
            seen[process, kind] = value, now
        return now - seen[process, kind][1]

    for process in range(_count()):
        sign, status = signs.get(str(process), ""), left.get(str(process))
        if status is not None:
            if int(status) not in _AGREED:
                return f"process {process} ended with status {status}, see its own output"
            continue
        named = f"process {process} ({' '.join(sign.split(' ')[2:]) or 'never heard of'})"
        seconds = silence(process, "sign", sign)
        if seconds > _silence[0]:
            return f"{named} has given no sign of life for {seconds:.0f} s"
        place = _place(sign)
        # A time that goes on is one that has just begun.
        seconds = silence(process, "place", place if 0 <= place < front else object())
        if seconds > _silence[0]:
            return f"{named} hangs: the others have waited for it for {seconds:.0f} s"
    return None


def _place(sign: str) -> int:
    """Return how far a process has come by its sign of life, -1 where it does not say."""
    place = sign.split(" ")[1] if " " in sign else ""
    return int(place) if place.isdecimal() else -1


def _pass_verdict(verdict: str) -> None:
    """Publish a verdict and leave the others the time to read it: process 0 is who they ask."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _set(f"{_VERDICT}0", verdict)
        time.sleep(3 * _PULSE)


def _set(key: str, text: str) -> None:
    client().key_value_set(key, text, allow_overwrite=True)


def _entries(folder: str) -> dict[str, str]:
    """Read a folder of the coordination service's key-value store, by the last part of the key."""
    try:
        found = client().key_value_dir_get(folder)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return {}
        raise
    return {key.rpartition("/")[2]: value for key, value in found}


def _end(verdict: str) -> NoReturn:
    """End with one line that says who is missing: the runtime would hang or abort."""
    with _last_words:
        me = _me()
        line = f"error: {verdict}; process {me} ends, the same command goes on from the checkpoint"
        print(line, file=sys.stderr, flush=True)
        os._exit(MISSING)


def _on_abort(number: int) -> None:
    """Name process 0 if it is why the runtime is about to abort this one."""
    host, _, port = (_private("coordinator_address") or "").rpartition(":")
    if not port:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        _end("process 0, the coordinator, is gone")


_watching, _last_words, _progress = threading.Event(), threading.Lock(), [0]
_silence, _heard = [0.0], [0.0]
# The runtime aborts in a thread of its own, where no handler of Python's would ever be called.
_libc = ctypes.CDLL(None)
_abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)
