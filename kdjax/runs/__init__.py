"""The engine of a run: what scripts need beyond the library.

A script is one file: its flags, then `run` from top to bottom. The scripts are `distill`,
`compare`, `generations` and `data_free`; they stand on

- `flags`, `settings`, `presets`: the command line;
- `experiment`, `workdir`, `console`, `log`: data, mesh, work directory, what is kept and said;
- `methods`, `teaching`, `training`: what `--method` names, who teaches whom, how networks train;
- `evaluation`, `measures`, `report`, `page`: what came out.

Rooms load when they are first named, as `runs.training`, so that a script shows its flags without
the seconds that it takes to import JAX.
"""

import importlib
from types import ModuleType

# As in `typing`, whose import would take longer than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from kdjax.runs import (
        answers,
        console,
        evaluation,
        experiment,
        fingerprints,
        generator,
        log,
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
    "answers", "console", "evaluation", "experiment", "fingerprints", "generator", "log",
    "measures", "methods", "networks", "numbers", "page", "recipes", "report", "teaching",
    "training", "workdir",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
