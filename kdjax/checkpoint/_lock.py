"""One run at a time in a directory."""

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from kdjax.distributed import is_leader


class InUse(OSError):
    """Another process writes in the directory."""


@contextlib.contextmanager
def lock(directory: str | Path) -> Iterator[None]:
    """Lock a directory against other runs; process 0 does so for all processes of its run.

    The operating system holds the lock, not the file: whoever dies, however, loses it, and a file
    that is left over means nothing.

    Args:
        directory: made if need be.

    Raises:
        InUse: if another process holds it, naming that process.
        OSError: if the directory cannot be written.
    """
    if not is_leader():
        yield
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    path = Path(directory) / ".lock"
    with path.open("a+") as file:
        _hold(file.fileno(), path)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = path.read_text().strip() or "another process"
        raise InUse(f"{path.parent} is in use by {holder}") from error
    except OSError as error:
        # Some network file systems have no locks.
        warnings.warn(
            f"{path.parent} cannot be locked ({error.strerror}): a second run there would not be "
            "noticed",
            stacklevel=4,
        )
