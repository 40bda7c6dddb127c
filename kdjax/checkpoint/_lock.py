"""One run at a time in a directory."""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from kdjax.distributed import is_leader


class InUse(OSError):
    """Another run writes in the directory."""


# The system's locks are those of a process, which would be granted its own once more.
_held: set[Path] = set()


@contextlib.contextmanager
def lock(directory: str | Path) -> Iterator[None]:
    """Lock a directory against other runs; process 0 does so for all processes of its run.

    The operating system holds the lock, not the file: whoever dies, however, loses it, and a file
    that is left over means nothing.

    Args:
        directory: made if need be.

    Raises:
        InUse: if another process holds it, or this one does already, naming the process.
        OSError: if the directory cannot be written.

    Example:
        >>> import tempfile
        >>> from kdjax import checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> with checkpoint.lock(folder):
        ...     pass  # a second run in the folder ends in one line
        ...
    """
    if not is_leader():
        yield
        return
    Path(directory).mkdir(parents=True, exist_ok=True)
    own, path = Path(directory).resolve(), Path(directory) / ".lock"
    if own in _held:
        # To open the file again would free the lock when it is closed.
        raise InUse(f"{directory} is in use by {_this_process()}")
    with open(path, "a+", opener=_not_elsewhere) as file, contextlib.ExitStack() as stack:
        _hold(file.fileno(), path)
        _held.add(own)
        stack.callback(_held.discard, own)
        file.truncate(0)
        file.write(_this_process())
        file.flush()
        yield
        file.truncate(0)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _not_elsewhere(path: str, flags: int) -> int:
    """Open a file of this folder: what a link leads to is someone else's, and would be emptied."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a symbolic link, expected a file: remove it") from error
        raise


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
