"""The architecture as a test: who may import whom, and how large a function may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top to the bottom: a module imports from the lines above its own, or its own folder.
LEVELS = [
    "_version",
    "_extras",
    "_renamed",
    "losses",
    "types",
    "distributed",
    "checkpoint",
    "metrics",
    "heads",
    "optimizers",
    "models",
    "generation",
    "teachers",
    "terms",
    "objective",
    "sharding",
    "many",
    "_steps",
    "step",
    "online",
    "data",
    "specialists",
    "loop",
    "testing",
    "runs",
    "bias",
    "resident",
    "sweep",
    "__main__",
]
# Found under its old name for one release, but not among the parts.
OLD = {"bias", "resident", "sweep"}
FILES = sorted(
    p for room in ("kdjax", "experiments", "benchmarks") for p in (ROOT / room).rglob("*.py")
)


def level(module):
    parts = module.split(".")
    return LEVELS.index(parts[1]) if len(parts) > 1 else -1


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(tree):
    """Yield what a module imports wherever it stands: for type checkers, in a function too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def functions_of(path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def circles(graph):
    """Return the sets of nodes from each of which all others are reached (Kosaraju)."""

    def collect(node, edges, seen, out):
        stack = [(node, iter(edges[node]))]
        seen.add(node)
        while stack:
            top, following = stack[-1]
            for other in following:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(edges[other])))
                    break
            else:
                out.append(top)
                stack.pop()

    order, seen = [], set()
    for node in graph:
        if node not in seen:
            collect(node, graph, seen, order)
    back = {node: [n for n in graph if node in graph[n]] for node in graph}
    found, seen = [], set()
    for node in reversed(order):
        if node not in seen:
            found.append([])
            collect(node, back, seen, found[-1])
    return [sorted(c) for c in found if len(c) > 1 or c[0] in graph[c[0]]]


def test_circles_are_found():
    graph = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["e"]}
    assert sorted(circles(graph)) == [["a", "b", "c"], ["e"]]


def test_imports_make_no_circle():
    graph = {
        name: sorted(set(imports(ast.parse(path.read_text()))) & MODULES.keys())
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    found = [" <-> ".join(circle) for circle in circles(graph)]
    assert not found


def test_imports_point_up():
    wrong = []
    for own, path in MODULES.items():
        for module in imports(ast.parse(path.read_text())):
            house = module.split(".")[0]
            if own.startswith("kdjax") and house in ("experiments", "benchmarks", "tests"):
                wrong.append(f"{own} imports {module}")
            if own.startswith("kdjax.") and house == "kdjax" and level(module) > level(own):
                wrong.append(f"{own} imports {module}")
    assert not wrong


def test_importing_the_package_imports_no_part():
    code = (
        "import sys, kdjax; kdjax.__version__; dir(kdjax); "
        "bad = {m for m in sys.modules if m.startswith('kdjax.')} - {'kdjax._version'}; "
        "sys.exit(f'imported {bad}' if bad or 'jax' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_part_loads_when_it_is_named():
    import kdjax

    parts = {p.stem for p in (ROOT / "kdjax").glob("*") if p.suffix in ("", ".py")}
    parts = {name for name in parts if not name.startswith((".", "_"))} - OLD
    assert set(kdjax.__all__) == {*parts, "__version__"}
    assert parts == {name for name in LEVELS if not name.startswith("_")} - OLD
    assert set(kdjax.__all__) <= set(dir(kdjax))
    for name in parts:
        assert getattr(kdjax, name).__name__ == f"kdjax.{name}"
    with pytest.raises(AttributeError, match="module 'kdjax' has no attribute 'lossses'"):
        kdjax.lossses
    checked = {
        alias.asname
        for node in ast.walk(ast.parse((ROOT / "kdjax" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "kdjax"
        for alias in node.names
    }
    assert checked == parts


def test_rooms_import_what_they_may():
    allowed, wrong = {"losses": {"jax", "numpy"}, "types": {"jax"}}, []
    for room, packages in allowed.items():
        own = {name for name in MODULES if f"{name}.".startswith(f"kdjax.{room}.")}
        assert own
        for name in own:
            for module in imports(ast.parse(MODULES[name].read_text())):
                package = module.split(".")[0]
                if package not in packages | sys.stdlib_module_names and module not in own:
                    wrong.append(f"{name} imports {module}")
    assert not wrong


def test_importing_losses_leaves_flax_and_data_alone():
    code = (
        "import sys, kdjax.losses; "
        "bad = {'flax', 'optax', 'orbax', 'tensorflow_datasets', 'grain', 'matplotlib'}; "
        "bad &= set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_root_modules_list_what_they_offer():
    paths = [MODULES[f"kdjax.{name}"] for name in LEVELS if not name.startswith("__")]
    without = [p.relative_to(ROOT) for p in paths if not exported(p)]
    assert not without


def exported(path):
    """Whether a module lists its public names; what has an underscore has none."""
    assigned = [
        node.id
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return "__all__" in assigned or (path.stem.startswith("_") and path.stem != "__init__")


def lines_of(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def parameters_of(function):
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def paths_through(function):
    """Count one, and one for every place where the way through may differ (cyclomatic)."""
    branches = (
        *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While),
        *(ast.ExceptHandler, ast.Assert, ast.comprehension, ast.match_case),
    )
    nodes = list(ast.walk(function))
    count = 1 + sum(isinstance(node, branches) for node in nodes)
    count += sum(len(node.ifs) for node in nodes if isinstance(node, ast.comprehension))
    return count + sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))


def test_sizes_are_counted():
    text = '''
def f(self, a, /, b, *, c):
    """One."""
    if a and b or c:
        return [x for x in a if x]
    return None
'''
    (function,) = ast.parse(text).body
    assert (lines_of(function), parameters_of(function), paths_through(function)) == (3, 3, 6)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_small_and_files_are_read_in_one_go(path):
    text = re.sub(r"\n+ +Example:\n(?:(?: {8}.*)?\n)+", "\n", path.read_text())
    assert len(text.splitlines()) <= 450, "without the examples of its docstrings"
    for function in functions_of(path):
        name = f"{path.relative_to(ROOT)}: {function.name}"
        assert lines_of(function) <= 54, f"{name} has {lines_of(function)} lines"
        assert parameters_of(function) <= 12, f"{name} has {parameters_of(function)} parameters"
        assert paths_through(function) <= 12, f"{name} has {paths_through(function)} paths"


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
