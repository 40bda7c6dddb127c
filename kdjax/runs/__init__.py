"""The engine of a run: what scripts need beyond the library.

A script is one file: its flags, then `run` from top to bottom. Rooms: `flags` and `settings` (the
command line), `presets`, `experiment` (data, mesh, work directory), `workdir` and `console` (what is
kept and said), `methods` (what `--method` names), `teaching` (who teaches whom), `training`,
`measures`, `report`; and the scripts `distill`, `compare`, `generations`, `data_free`.

Rooms load when they are first named, as `runs.training`, so that a script shows its flags without
the seconds that it takes to import JAX.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdjax.runs import (
        console,
        experiment,
        generator,
        measures,
        methods,
        networks,
        numbers,
        page,
        recipes,
        report,
        teaching,
        training,
        workdir,
    )

__all__ = [
    "console",
    "experiment",
    "generator",
    "measures",
    "methods",
    "networks",
    "numbers",
    "page",
    "recipes",
    "report",
    "teaching",
    "training",
    "workdir",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
