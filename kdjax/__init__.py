"""Knowledge distillation in JAX. A part loads when it is first named: `kdjax.losses.kd_loss`."""

from __future__ import annotations

import importlib

from kdjax._version import __version__

# As in `typing`, whose import would take longer than all of this.
TYPE_CHECKING = False
# Type checkers read this list; Python reads `__getattr__`, and loads what is named alone.
if TYPE_CHECKING:
    from typing import Any

    from kdjax import (  # isort: skip
        checkpoint as checkpoint, data as data, distributed as distributed,
        generation as generation, heads as heads, loop as loop, losses as losses, many as many,
        metrics as metrics, models as models,
        objective as objective, online as online, optimizers as optimizers, runs as runs,
        sharding as sharding, specialists as specialists, step as step, teachers as teachers,
        terms as terms, testing as testing, types as types,
    )  # fmt: skip

__all__ = [
    "__version__", "checkpoint", "data", "distributed", "generation", "heads", "loop", "losses",
    "many", "metrics", "models", "objective", "online", "optimizers", "runs", "sharding",
    "specialists", "step", "teachers", "terms", "testing", "types",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a part when it is first named."""
    if name in __all__:
        return importlib.import_module(f"kdjax.{name}")
    raise AttributeError(f"module 'kdjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the parts, loaded or not, beside what is here."""
    return sorted({*globals(), *__all__})
