"""Scripts of ours as a user runs them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from xla import QUICK_COMPILATION

ROOT = Path(__file__).parents[1]


def run(module, *flags, check=False):
    """Run `python -m module` with some flags on the CPU; return what it printed and its status."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILATION}
    command = [sys.executable, "-m", module, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=check)


def page_maker(name):
    """Load a script of docs/, such as `make_catalogue`, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
