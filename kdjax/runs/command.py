"""The command `kdjax`: a word chooses the script, its flags follow."""

import importlib
import sys
from collections.abc import Sequence

from kdjax._version import __version__
from kdjax.runs import interrupts

SCRIPTS = {
    "distill": "Distil a teacher into a student, and compare it with one trained on labels alone.",
    "lm": "Distil a language model, and compare it with one trained on the text alone.",
    "compare": "Compare the ways of distilling: every method with one budget.",
    "generations": "Distil along a chain: born-again generations, or teacher assistants.",
    "data-free": "Distil without data: a generator makes up the images.",
}


def main(args: Sequence[str] | None = None, *, program: str = "kdjax") -> None:
    """Run the command line.

    Args:
        args: the word and its flags; those of the process by default.
        program: how the command was started, for its messages.

    Raises:
        SystemExit: with status 0 after `--help` and `--version`, with 2 and one line where the word
            is none of `SCRIPTS`, and as the script does.
    """
    if args is None:
        interrupts.leave_at_once()
    # Here and not above: a Ctrl-C is heard before the time that these imports take.
    import difflib

    from kdjax.runs.flags import fail

    word, *flags = [*(sys.argv[1:] if args is None else args)] or [""]
    if word in ("-h", "--help"):
        print(_help(program))
    elif word == "--version":
        print(f"kdjax {__version__}")
    elif word in SCRIPTS:
        script = importlib.import_module(f"kdjax.runs.{word.replace('-', '_')}")
        script.main(flags, program=f"{program} {word}")
    else:
        near = difflib.get_close_matches(word, SCRIPTS, n=1, cutoff=0.4)
        hint = f"; perhaps you meant {near[0]}" if near else f", expected {', '.join(SCRIPTS)}"
        wrong = f"{word} is no command of kdjax" if word else "kdjax needs a command"
        fail(f"{wrong}{hint} (see {program} --help)")


def _help(program: str) -> str:
    width = max(map(len, SCRIPTS))
    lines = [f"  {word:<{width}}  {about}" for word, about in SCRIPTS.items()]
    head = f"usage: {program} COMMAND [--FLAG VALUE ...]\n\nKnowledge distillation in JAX.\n"
    foot = f"\n{program} COMMAND --help lists the flags of a command."
    return "\n".join([head, *lines, foot])
