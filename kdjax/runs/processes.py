"""One process of several: joining those that train together."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from kdjax.runs.settings import DistributedSettings


@contextlib.contextmanager
def together(settings: DistributedSettings) -> Iterator[Callable[[], None]]:
    """Make this process one of several, if the settings ask for it; only process 0 prints.

    Args:
        settings: the flags under `--distributed`.

    Yields:
        A function that joins the processes, to be called before anything touches a device.
    """
    with contextlib.ExitStack() as stack:

        def join() -> None:
            if not settings.auto and settings.coordinator is None:
                return
            # Here and not above: flags are parsed before the seconds that this import takes.
            from kdjax import distributed

            stack.enter_context(distributed.leaving())
            # Who waits for the others, waits in C, where no handler of Python's is called.
            heard = signal.signal(signal.SIGINT, signal.SIG_DFL)
            try:
                distributed.initialize(
                    coordinator=settings.coordinator,
                    num_processes=settings.num_processes,
                    process_id=settings.process_id,
                    timeout=settings.timeout,
                )
            finally:
                signal.signal(signal.SIGINT, heard)
            if not distributed.is_leader():
                # The descriptor and not sys.stdout: collectives in C++ announce themselves there.
                sys.stdout.flush()
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        yield join
