"""Turn our docstrings, plain text with code in single backquotes, into what Sphinx reads."""

import functools
import inspect
import re

from sphinx.application import Sphinx

SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Example:", "References:")
FORMULA = re.compile(r"[=^*/+|]|sum|mean|log|KL")


def marked_up(lines: list[str]) -> list[str]:
    """Return a docstring with formulas and code as blocks, and nothing that looks like markup."""
    out, paragraph, number, section = [], [], 0, ""
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
            continue
        if paragraph:
            section = paragraph[0] if paragraph[0] in SECTIONS else section
            out += [*_block(paragraph, number, section), ""]
            number, paragraph = number + 1, []
        else:
            out.append("")
    return out


def _block(lines: list[str], number: int, section: str) -> list[str]:
    if section == "Example:":
        return lines
    is_code = all(line.startswith("    ") for line in lines)
    text = " ".join(lines)
    is_formula = number == 1 and FORMULA.search(text) and not text.endswith(".") and "`" not in text
    if not section and (is_code or (is_formula and not lines[0].startswith("- "))):
        return [".. code-block:: text", "", *(f"    {line.removeprefix('    ')}" for line in lines)]
    return [_escaped(line) for line in lines]


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    for i, part in enumerate(parts):
        if i % 2:
            after = parts[i + 1][:1]
            parts[i] = f"`{part}`" + ("\\ " if after.isalnum() else "")
        else:
            plain = re.sub(r"([\\*|`])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part)
            parts[i] = re.sub(
                r"arXiv:([\d.]+\d)", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", plain
            )
    return "".join(parts)


def _process(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]):
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        own = value.func.__name__
        first = inspect.getdoc(value.func).partition("\n")[0]
        lines[:] = [f"``{own}`` with ``{', '.join(given)}``. {_escaped(first)}"]
    else:
        lines[:] = marked_up(lines)


def _skip(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object):
    """Leave out what no one here wrote: the fields of tuples, what Flax gives its modules."""
    text = getattr(value, "__doc__", None) or ""
    if text.startswith("Alias for field number") or not text:
        return True
    home = getattr(value, "__module__", None) or getattr(
        getattr(value, "fget", None), "__module__", ""
    )
    return True if not str(home).startswith("kdjax") else None


def _signature(
    app: Sphinx, what: str, name: str, value: object, options: object, text: str, to: str
):
    """Shorten the fields of a class; a Flax module's own two are no business of a reader's."""
    if what == "class" and text:
        text = re.sub(r"(, )?parent: .*_Sentinel.*\)$", ")", text)
        return re.sub(r"~?(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text), to
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Come before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
