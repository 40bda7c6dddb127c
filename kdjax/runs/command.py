"""The command `kdjax`: a word chooses the run, its flags follow.

Nothing of the parts, of jax or of the parser of flags loads before the word is known.
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import kdjax
from kdjax._extras import MissingPackage, needs

RUNS = ("distill", "compare", "generations", "data-free")


def main(args: Sequence[str] | None = None, *, prog: str = "kdjax") -> None:
    """Run the command line.

    Args:
        args: the word and its flags; those of the process by default.
        prog: how the command was started, for its messages.

    Raises:
        SystemExit: with status 0 after `--help` and `--version`, with 2 and one line where the word
            is none of `RUNS`, and as the run does.
    """
    word, *flags = [*(sys.argv[1:] if args is None else args)] or [""]
    if word in ("-h", "--help"):
        print(_help(prog))
    elif word == "--version":
        print(f"kdjax {kdjax.__version__}")
    elif word in RUNS:
        start(word, f"{prog} {word}", flags)
    else:
        near = difflib.get_close_matches(word, RUNS, n=1, cutoff=0.4)
        hint = f"; perhaps you meant {near[0]}" if near else f", expected {', '.join(RUNS)}"
        said = f"{word} is no command of kdjax" if word else "kdjax needs a command"
        _fail(f"{said}{hint} (see {prog} --help)")


def start(word: str, prog: str, flags: Sequence[str] | None = None) -> None:
    """Start a run.

    Args:
        word: one of `RUNS`.
        prog: how it was started: the command that goes on with it begins so.
        flags: those of the process by default.

    Raises:
        SystemExit: with status 2 and one line where a package is missing, and as the run does.
    """
    try:
        with needs("train"):
            run = importlib.import_module(f"kdjax.runs.{_module(word)}")
        run.main(flags, prog=prog)
    except MissingPackage as missing:
        _fail(str(missing))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _module(word: str) -> str:
    return word.replace("-", "_")


def _help(prog: str) -> str:
    width = max(map(len, RUNS))
    return "\n".join(
        [
            f"usage: {prog} COMMAND [flags]",
            "",
            "Knowledge distillation in JAX.",
            "",
            *(f"  {word:<{width}}  {_line(word)}" for word in RUNS),
            "",
            f"{prog} COMMAND --help lists the flags of a command; {prog} --version the version.",
        ]
    )


def _line(word: str) -> str:
    """Return the first line of a run's docstring, read and not imported."""
    source = Path(__file__).with_name(f"{_module(word)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
