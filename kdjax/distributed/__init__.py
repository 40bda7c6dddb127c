"""Several processes as one: `jax.distributed.initialize`, and a watchdog that says who is missing.

The runtime ends all processes when one dies, after minutes and with a stack trace. Here every
process gives a sign of life each second; who has been silent for too long, or has stayed behind
the others, is named in one line on the error stream of all, which then end with status 75: try
again.
"""

from kdjax.distributed._processes import (  # isort: skip
    exchange, exchange_needs_devices, gathered, initialize, is_leader, is_whole,
)  # fmt: skip
from kdjax.distributed._watchdog import MISSING, advance, leaving

__all__ = [
    "MISSING", "advance", "exchange", "exchange_needs_devices", "gathered", "initialize",
    "is_leader", "is_whole", "leaving",
]  # fmt: skip
