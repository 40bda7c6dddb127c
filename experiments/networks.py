"""The former place of `kdjax.models.load_network`, which older code still imports from here."""

import warnings
from typing import Any

from kdjax import models


def __getattr__(name: str) -> Any:
    if name not in ("Network", "NetworkSpec", "build", "load_network", "save_network"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"experiments.networks.{name} is now kdjax.models.{name}", DeprecationWarning, stacklevel=2
    )
    return getattr(models, name)
