"""Knowledge distillation in JAX. A part loads when it is first named: `kdjax.losses.kd_loss`."""

import importlib
from typing import TYPE_CHECKING, Any

from kdjax._version import __version__

# Type checkers read these lines; Python reads `__getattr__`, and loads what is named alone.
if TYPE_CHECKING:
    from kdjax import checkpoint as checkpoint
    from kdjax import data as data
    from kdjax import distributed as distributed
    from kdjax import loop as loop
    from kdjax import losses as losses
    from kdjax import many as many
    from kdjax import metrics as metrics
    from kdjax import models as models
    from kdjax import objective as objective
    from kdjax import online as online
    from kdjax import optimizers as optimizers
    from kdjax import runs as runs
    from kdjax import sharding as sharding
    from kdjax import specialists as specialists
    from kdjax import step as step
    from kdjax import teachers as teachers
    from kdjax import terms as terms
    from kdjax import testing as testing
    from kdjax import types as types

__all__ = [
    "__version__",
    "checkpoint",
    "data",
    "distributed",
    "loop",
    "losses",
    "many",
    "metrics",
    "models",
    "objective",
    "online",
    "optimizers",
    "runs",
    "sharding",
    "specialists",
    "step",
    "teachers",
    "terms",
    "testing",
    "types",
]


def __getattr__(name: str) -> Any:
    """Load a part when it is first named."""
    if name in __all__:
        return importlib.import_module(f"kdjax.{name}")
    raise AttributeError(f"module 'kdjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the parts, loaded or not, beside what is here."""
    return sorted({*globals(), *__all__})
