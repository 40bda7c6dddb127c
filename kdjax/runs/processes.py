"""One process of several: joining those that train together, and that they mean the same run."""

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdjax.runs import workdir
from kdjax.runs.flags import require
from kdjax.runs.settings import DistributedSettings

# Where a process finds things, and how it reads them, is its own affair.
OWN_SETTINGS = ("workdir", "data.dir", "data.file", "data.unlabelled", "data.workers")


def check(distributed: DistributedSettings) -> None:
    """Raise a ValueError that names the flag where those of the processes do not go together."""
    explicit = (distributed.coordinator, distributed.num_processes, distributed.process_id)
    if all(value is None for value in explicit):
        return
    for name, value in zip(("coordinator", "num-processes", "process-id"), explicit, strict=True):
        together = "given with --distributed.coordinator, .num-processes and .process-id together"
        require(value is not None or distributed.auto, f"--distributed.{name}", together, value)
    address, count, own = explicit
    port = (address or "a:1").rpartition(":")[2]
    require(port.isdecimal(), "--distributed.coordinator", "HOST:PORT", address)
    below = own is None or 0 <= own < (count or math.inf)
    require(below, "--distributed.process-id", f"from 0 to {count} - 1", own)


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


def agree(about: str, known: Mapping[str, Any], *, prefix: str = "") -> None:
    """Hold what this process knows against what the others do; all of them must call.

    Args:
        about: what it is about, in a word.
        known: nested, as JSON holds it.
        prefix: what comes before the name of the first entry that differs.

    Raises:
        ValueError: in all processes, naming the first entry that differs, and who differs.
    """
    from kdjax import distributed

    mine = {
        name: value
        for name, value in workdir.flatten(workdir.plain(known)).items()
        if name not in OWN_SETTINGS and not name.startswith("distributed.")
    }
    first, *others = map(json.loads, distributed.exchange(f"agree {about}", json.dumps(mine)))
    for process, other in enumerate(others, 1):
        if other != first:
            name = min(n for n in first | other if first.get(n) != other.get(n))
            raise ValueError(
                f"process 0 has {prefix}{name.replace('_', '-')} {first.get(name)}, process "
                f"{process} has {other.get(name)}: start all processes of a run alike"
            )
