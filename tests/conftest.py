"""A hostile environment: eight devices, no silent rank promotion, warnings are errors."""

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from xla import EIGHT_DEVICES, QUICK_COMPILATION

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", ""), QUICK_COMPILATION, EIGHT_DEVICES
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Scripts that the tests start compile the same programs again and again: once is enough.
OWN = "KDJAX_TESTS_COMPILED" not in os.environ
if OWN:
    os.environ["KDJAX_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="kdjax-tests-")


def pytest_unconfigure():
    if OWN:
        shutil.rmtree(os.environ["KDJAX_TESTS_COMPILED"], ignore_errors=True)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures of a page empty: what is not looked at takes a second to draw."""
    monkeypatch.setattr("kdjax.runs.report._page._render", lambda *args, **options: b"<defs>")


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """Forget compiled programs between files once they fill more than a gigabyte, on Linux."""
    yield
    statistics = Path("/proc/self/statm")
    pages = int(statistics.read_text().split()[1]) if statistics.exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > 2**30:
        import jax

        jax.clear_caches()
        # The allocator keeps what it was given back; other C libraries than GNU's lack the call.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)(0)
