"""The architecture as a test: who may import whom, and how long a function may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top to the bottom: a module imports from the lines above its own, or its own folder.
LEVELS = [
    "losses",
    "types",
    "distributed",
    "checkpoint",
    "metrics",
    "transforms",
    "models",
    "teachers",
    "terms",
    "objective",
    "scans",
    "sharding",
    "step",
    "resident",
    "online",
    "sweep",
    "bias",
    "data",
    "specialists",
    "loop",
    "report",
    "testing",
    "runs",
]
FILES = sorted(
    p for room in ("kdjax", "experiments", "benchmarks") for p in (ROOT / room).rglob("*.py")
)


def level(module):
    parts = module.split(".")
    return LEVELS.index(parts[1]) if len(parts) > 1 else -1


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "kdjax":
                yield from (f"kdjax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def functions_of(path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_imports_point_up():
    wrong = []
    for path in sorted((ROOT / "kdjax").rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for module in imports(ast.parse(path.read_text())):
            if module == "experiments" or module.startswith("experiments."):
                wrong.append(f"{own} imports {module}")
            if module.startswith("kdjax.") and level(module) > level(own):
                wrong.append(f"{own} imports {module}")
    assert not wrong


def test_package_root_imports_nothing():
    assert not list(imports(ast.parse((ROOT / "kdjax" / "__init__.py").read_text())))


def test_losses_need_jax_and_nothing_else():
    allowed = {"jax", "optax", "kdjax.losses", "numpy", *sys.stdlib_module_names}
    for path in (ROOT / "kdjax" / "losses").glob("*.py"):
        for module in imports(ast.parse(path.read_text())):
            assert module.split(".")[0] in allowed or module.startswith("kdjax.losses"), (
                path.name,
                module,
            )


def test_importing_losses_leaves_flax_and_data_alone():
    code = (
        "import sys, kdjax.losses; "
        "bad = {'flax', 'orbax', 'tensorflow_datasets', 'grain', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_files_are_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= 450
    for function in functions_of(path):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert length <= 60, f"{function.name} has {length} lines"


def test_public_names_are_exported_and_documented():
    import kdjax.data
    import kdjax.losses
    import kdjax.models

    for module in (kdjax.losses, kdjax.models, kdjax.data):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    for name in kdjax.losses.__all__:
        doc = getattr(kdjax.losses, name).__doc__
        for part in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
            assert part in doc, (name, part)
