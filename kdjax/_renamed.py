"""Public names that have moved: each works for one release, with a warning."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["NEW_NAMES", "moved"]

NEW_NAMES = {
    "experiments.networks.load_network": "kdjax.models.load_network",
    "kdjax.bias.match_class_prior": "kdjax.specialists.match_class_prior",
    "kdjax.models.normalisation_of": "kdjax.models.normalization_of",
    "kdjax.models.rematerialised": "kdjax.models.rematerialized",
    "kdjax.resident.fits": "kdjax.many.has_room",
    "kdjax.resident.several": "kdjax.many.several",
    "kdjax.resident.with_examples": "kdjax.many.with_examples",
    "kdjax.sharding.initialise": "kdjax.sharding.initialize",
    "kdjax.sweep.make_sweep_step": "kdjax.many.make_sweep_step",
    "kdjax.sweep.member": "kdjax.many.member",
    "kdjax.sweep.scan_steps": "kdjax.many.scan_steps",
    "kdjax.sweep.stack": "kdjax.many.stack",
    "kdjax.data.centre_crop": "kdjax.data.center_crop",
}


def moved(module: str) -> tuple[list[str], Callable[[str], Any]]:
    """Make what a module needs so that names that have moved are found in it.

    Args:
        module: its name.

    Returns:
        The old names, and a `__getattr__` that finds each where it is now, with a
        `DeprecationWarning`.
    """
    names = [old.rpartition(".")[2] for old in NEW_NAMES if old.startswith(f"{module}.")]

    def find(name: str) -> Any:
        old = f"{module}.{name}"
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = NEW_NAMES[old]
        message = f"{old} is {new} now; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        room, _, own = new.rpartition(".")
        return getattr(importlib.import_module(room), own)

    return names, find
