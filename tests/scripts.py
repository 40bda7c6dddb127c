"""Scripts of ours as a user runs them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from xla import QUICK_COMPILATION

ROOT = Path(__file__).parents[1]


def environment(**extra):
    """Return what scripts run in: one CPU, and programs that are compiled quickly, and once."""
    kept = {name: value for name, value in os.environ.items() if name != "TFDS_DATA_DIR"}
    # Apart for each worker: jax reads what another process is still writing.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["KDJAX_TESTS_COMPILED"], worker)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**kept, **compiled, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILATION, **extra}


def killable():
    """Return the same for a process that is to be killed, perhaps while it writes a program."""
    own = environment()
    return {name: value for name, value in own.items() if name != "JAX_COMPILATION_CACHE_DIR"}


def run(module, *flags, check=False, **extra):
    """Run `python -m module` with some flags on the CPU; return what it printed and its status."""
    command = [sys.executable, "-m", module, *map(str, flags)]
    env = environment(**extra)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=check)


def refusal(main, flags, capsys):
    """Run a script in this process with flags that it refuses; return the one line that it says."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, flags)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def page_maker(name):
    """Load a script of docs/, such as `make_catalogue`, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
