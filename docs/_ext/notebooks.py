"""Give each notebook its badge, and a copy in the format that other places open."""

import configparser
import re
from pathlib import Path

import jupytext
from nbformat.v4 import new_code_cell
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]


def address(name: str) -> str:
    """Return where a notebook opens: Colab reads the copy that the published site holds."""
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    place = package["metadata"]["url"].removeprefix("https://")
    place = place.replace("github.com", "github", 1)
    return f"https://colab.research.google.com/{place}/blob/gh-pages/notebooks/{name}.ipynb"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    folder, _, name = page.partition("/")
    if folder == "notebooks" and name != "index":
        badge = f"\n[![Open in Colab](/_static/colab.svg)]({address(name)})\n"
        source[0] = re.sub(r"^(# .*\n)", rf"\1{badge}", source[0], count=1, flags=re.MULTILINE)


def _write(app: Sphinx, error: Exception | None) -> None:
    """Leave the copies beside the pages; a first cell installs what they import."""
    if error is not None or app.builder.name != "html":
        return
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    install = f"%pip install -q 'kdjax[train,text] @ git+{package['metadata']['url']}'"
    for path in sorted(Path(app.srcdir, "notebooks").glob("*.md")):
        if path.stem != "index":
            notebook = jupytext.read(path)
            notebook.cells.insert(1, new_code_cell(install))
            jupytext.write(notebook, Path(app.outdir, "notebooks", f"{path.stem}.ipynb"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Put badges into what is read, and copies beside what is written."""
    app.connect("source-read", _read)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True}
