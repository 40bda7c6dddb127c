"""The paper's experiments that public data permits, one script a section; rooms load when named."""

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name in ("networks", "panel", "superclasses", "teacher"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
