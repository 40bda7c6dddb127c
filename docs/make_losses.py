"""Make docs/losses.md from the table in the docstring of `kdjax.losses`.

python docs/make_losses.py > docs/losses.md
"""

import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from kdjax import losses

HEAD = """# The losses by their names

The names that papers gave their methods, the functions of `kdjax.losses` and the room of each. The
docstrings have formulas, arguments and deviations from the papers;
[the catalogue](catalogue.md) has the methods that the scripts know.

| name | function | room | what it does |
| --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """The names of a method, its functions, and the room that they are in."""

    names: str
    functions: tuple[str, ...]
    room: str


def rows() -> list[Row]:
    """Return the lines of the docstring's table."""
    found = re.findall(r"^    (\S.*?)  +(\w+(?:, \w+)*)  +(_\w+)$", losses.__doc__, re.MULTILINE)
    return [Row(names, tuple(functions.split(", ")), room) for names, functions, room in found]


def parts() -> dict[str, str]:
    """Return the functions that are parts of methods, each with the name of its method."""
    text = " ".join(losses.__doc__.partition("Parts of these: ")[2].split())
    groups = re.findall(r"([\w, ]+) \(([\w-]+)\)", text)
    return {name: method for names, method in groups for name in names.strip().split(", ")}


def page() -> str:
    """Return the page: the table, then the parts of the methods."""
    lines = [_line(row.names, f, row.room) for row in rows() for f in row.functions]
    lines += ["", "## Parts", "", "| of | function | room | what it does |", "| --- " * 4 + "|"]
    for name, method in parts().items():
        lines.append(_line(method, name, getattr(losses, name).__module__.rpartition(".")[2]))
    return HEAD + "\n".join(lines) + "\n"


def _line(names: str, function: str, room: str) -> str:
    what = inspect.getdoc(getattr(losses, function)).split("\n", 1)[0].rstrip(".")
    what = what.replace("|", "\\|")
    return f"| {names} | `{function}` | [`{room}`](../kdjax/losses/{room}.py) | {what} |"


if __name__ == "__main__":
    print(page(), end="")
