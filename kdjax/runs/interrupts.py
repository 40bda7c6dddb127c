"""Ctrl-C and SIGTERM while there is nothing to save yet: one line, and the end.

Imports nothing that takes time: whoever runs a script calls it before anything else.
"""

import os
import signal


def leave_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end the process, until somebody else takes them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: object) -> None:
    # Past Python: an exception in the middle of an import may be swallowed, or be a traceback.
    os.write(2, b"error: interrupted; the same command starts or goes on\n")
    os._exit(128 + number)
