"""Write the pages of the API, docs/api/, from what the modules of kdjax list as public.

A part has a page; one with many names has a page for each of its rooms, as `kdjax.losses` has.
"""

import contextlib
import functools
import inspect
import io
import json
import sys
from pathlib import Path
from textwrap import indent
from types import ModuleType

from docstrings import marked_up
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import kdjax
from kdjax.runs import command, methods

DOCS = Path(__file__).parents[1]
sys.path.append(str(DOCS))
import make_catalogue  # noqa: E402
import make_losses  # noqa: E402

FOLDER = DOCS / "api"
MANY = 30
LAST = {"runs.rst", "flags.md"}


def parts() -> dict[str, ModuleType]:
    """Return the parts whose names are public, in the order of the sidebar."""
    order = ("losses", "terms", "models", "teachers", "objective", "step", "online", "many")
    rest = [name for name in kdjax.__all__ if name not in (*order, "__version__", "runs")]
    found = {f"kdjax.{name}": getattr(kdjax, name) for name in (*order, *rest)}
    return found | {"kdjax.data.text": kdjax.data.text}


def write(app: Sphinx) -> None:
    """Write all pages, and leave alone those that are as they should be."""
    pages = {
        "runs.rst": _title("kdjax.runs") + ".. automodule:: kdjax.runs\n",
        "flags.md": _flags(),
    }
    for name, module in parts().items():
        pages |= _pages(name, module)
    tops = sorted((page for page in pages if "-" not in page), key=LAST.__contains__)
    head = "# The library\n\nEvery public function, with its formula, its arguments and an example."
    text = "\n".join(
        ["```{toctree}", ":maxdepth: 1", "", *(p.rpartition(".")[0] for p in tops), "```", ""]
    )
    pages["index.md"] = f"{head}\n\n{text}"
    FOLDER.mkdir(exist_ok=True)
    (DOCS / "_static" / "names.json").write_text(json.dumps(names(), indent=1))
    for old in {path.name for path in FOLDER.iterdir()} - set(pages):
        (FOLDER / old).unlink()
    for page, text in pages.items():
        path = FOLDER / page
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _pages(name: str, module: ModuleType) -> dict[str, str]:
    short = name.removeprefix("kdjax.")
    rooms = _rooms(module)
    head = _title(name) + f".. automodule:: {name}\n\n"
    if len(module.__all__) <= MANY:
        body = "".join(_entry(name, module, own) for names in rooms.values() for own in names)
        return {f"{short}.rst": head + body}
    pages = {}
    for room, names in rooms.items():
        own = room.rpartition(".")[2].lstrip("_")
        text = _title(f"{name}: {own}") + f".. currentmodule:: {name}\n\n"
        text += f".. automodule:: {room}\n   :no-index:\n\n" if room != name else ""
        pages[f"{short}-{own}.rst"] = text + "".join(_entry(name, module, n) for n in names)
    tree = "\n".join(["Rooms", "-----", "", ".. toctree::", "   :titlesonly:", "", ""])
    return {f"{short}.rst": head + tree + "".join(f"   {p[:-4]}\n" for p in pages), **pages}


def _rooms(module: ModuleType) -> dict[str, list[str]]:
    """Return public names by the module that holds them."""
    rooms: dict[str, list[str]] = {}
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.ismodule(value):
            home = getattr(getattr(value, "func", value), "__module__", "")
            own = home if callable(value) and home.startswith(module.__name__) else module.__name__
            rooms.setdefault(own, []).append(name)
    return rooms


def _entry(name: str, module: ModuleType, own: str) -> str:
    value = getattr(module, own)
    if inspect.isclass(value):
        return f".. autoclass:: {name}.{own}\n   :members:\n   :special-members: __call__\n\n"
    if inspect.isfunction(inspect.unwrap(value)):
        return f".. autofunction:: {name}.{own}\n\n"
    if isinstance(value, functools.partial):
        return f".. autodata:: {name}.{own}\n   :no-value:\n\n"
    # Its comment is where it is assigned, its name where it is public.
    said = ModuleAnalyzer.for_module(_home(module, own)).find_attr_docs()["", own]
    body = indent("\n".join(marked_up(said)), "   ")
    return f".. py:data:: {own}\n   :module: {name}\n\n{body}\n\n"


def _home(module: ModuleType, name: str) -> str:
    """Return the module that assigns a constant, whose comment is there."""
    for path in sorted(Path(module.__file__).parent.glob("*.py")):
        if any(line.startswith((f"{name} =", f"{name}:")) for line in path.open()):
            own = "" if path.stem == "__init__" else path.stem
            return ".".join(filter(None, (module.__spec__.parent, own)))
    return module.__name__


def names() -> dict[str, str]:
    """Return what papers call the methods and functions of the catalogue, for its search."""
    called: dict[str, list[str]] = {}
    for row in make_losses.rows():
        for function in row.functions:
            called.setdefault(function, []).append(row.names)
    for function, method in make_losses.parts().items():
        called.setdefault(function, []).append(method)
    for method in methods.METHODS:
        functions = make_catalogue.losses_of(method)
        called[method] = [*functions, *(name for f in functions for name in called.get(f, ()))]
    return {name: " ".join(dict.fromkeys(words)) for name, words in called.items()}


def _flags() -> str:
    """Return the page of the commands' flags, as `--help` prints them."""
    text = "# The flags of the commands\n\nEach command prints its own with `--help`.\n"
    for word, about in command.SCRIPTS.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command.main([word, "--help"])
        text += f"\n## kdjax {word}\n\n{about}\n\n```text\n{printed.getvalue().strip()}\n```\n"
    return text


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
