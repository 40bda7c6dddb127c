"""From words on the command line to settings, and what is said of wrong ones."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from kdjax.runs import compare, data_free, distill, flags, generations
from kdjax.runs.command import SCRIPTS
from kdjax.runs.flags import Limit, flag, group

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group."""

    kind: Literal["big", "small"] | None = flag("What kind.")
    quick: bool = flag("Whether to hurry.", default=False, alias="--hurry")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Some flags."""

    rate: float = flag("How fast, in %.", Limit("positive", lambda x: x > 0), default=0.5)
    sizes: tuple[int, ...] | None = flag("How large.", Limit("even", lambda n: n % 2 == 0))
    where: Path | None = flag("Where.")
    as_is: bool | None = flag("Whether to leave it.")
    inner: Inner = group(Inner)


def parse(*args):
    return flags.parse(Settings, "prog", "What it does.\n\nMore.", args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Settings()),
        (["--rate", "-0.001"], Settings(rate=-0.001)),
        (["--rate=2"], Settings(rate=2.0)),
        (["--sizes", "2", "4"], Settings(sizes=(2, 4))),
        (["--sizes"], Settings(sizes=())),
        (["--sizes", "None"], Settings()),
        (["--where", "a/b"], Settings(where=Path("a/b"))),
        (["--as_is", "False"], Settings(as_is=False)),
        (["--inner.kind", "big"], Settings(inner=Inner(kind="big"))),
        (["--inner.quick"], Settings(inner=Inner(quick=True))),
        (["--hurry", "--inner.no-quick"], Settings()),
    ],
)
def test_words_become_values(args, expected):
    assert parse(*args) == expected


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--ratte", "1"], "Unrecognized options: --ratte, 1; perhaps you meant --rate"),
        (["--xyzzy"], "Unrecognized options: --xyzzy"),
        (
            ["--inner.knd", "big"],
            "Unrecognized options: --inner.knd, big; perhaps you meant --inner.kind",
        ),
        (["--kind", "big"], "Unrecognized options: --kind, big; perhaps you meant --inner.kind"),
        (["--inner.lr", "1"], "Unrecognized options: --inner.lr, 1"),
        (
            ["--inner.kind", "bigg"],
            "argument --inner.kind: invalid choice 'bigg', did you mean big",
        ),
        (
            ["--inner.kind", "?"],
            "argument --inner.kind: invalid choice '?', choose from big, small",
        ),
        (["--rate", "fast"], "argument --rate: expected a number, got 'fast'"),
        (["--sizes", "1.5"], "argument --sizes: expected a whole number, got '1.5'"),
        (["--rate"], "argument --rate: expected one argument"),
    ],
)
def test_a_wrong_word_is_one_line(args, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*args)
    assert capsys.readouterr().err == f"error: {line} (see prog --help)\n"


def test_limits_are_checked_where_there_is_a_value():
    flags.check(Settings())
    flags.check(Settings(sizes=(2, 4)))
    with pytest.raises(ValueError, match=r"--rate must be positive, got 0"):
        flags.check(Settings(rate=0))
    with pytest.raises(ValueError, match=r"--sizes must be even, got \(2, 3\)"):
        flags.check(Settings(sizes=(2, 3)))


def test_the_help_page_has_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    page = " ".join(capsys.readouterr().out.split())
    assert page.startswith("usage: prog [--FLAG VALUE ...] What it does.")
    assert "More." not in page and "inner: A group." in page
    for name in flags.names(Settings):
        assert name in page
    assert "How fast, in %. (default: 0.5)" in page and "--inner.quick, --hurry" in page


@pytest.mark.parametrize("script", [distill, compare, generations, data_free])
def test_every_flag_of_a_script_has_its_line_of_help(script):
    def abouts(settings_type):
        for field, hint, name in flags._fields(settings_type, ""):
            if dataclasses.is_dataclass(hint):
                yield from abouts(hint)
            else:
                yield name, field.metadata["about"]

    found = dict(abouts(script.Settings))
    assert len(found) > 30
    assert [name for name, about in found.items() if not about.strip().endswith((".", "all"))] == []
    flags.check(script.Settings())


def test_the_command_lists_scripts_by_the_first_words_of_their_docstrings():
    for script in (distill, compare, generations, data_free):
        word = script.__name__.rpartition(".")[2].replace("_", "-")
        assert SCRIPTS[word].split()[:2] == script.__doc__.split()[:2]


@pytest.mark.parametrize(
    "module", ["experiments.distill", "experiments.hinton2015.mnist", "experiments.compare"]
)
def test_help_does_not_wait_for_jax(module):
    code = "import runpy, sys\nsys.argv[1:] = ['--help']\n"
    code += f"try: runpy.run_module('{module}', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_every_script_names_what_is_near_and_lists_in_order(capsys):
    for main, args in (
        (compare.main, ["--methods", "rdk"]),
        (distill.main, ["--student.name", "resnet21"]),
        (generations.main, ["--assistants", "resnet21"]),
    ):
        with pytest.raises(SystemExit):
            main(args)
        assert "did you mean" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        distill.main(["--data.resize", "?"])
    assert "choose from stretch, crop (see" in capsys.readouterr().err


def test_the_command_that_goes_on_runs_as_it_stands(capsys):
    given = ["--workdir", "my  run's", "--temperature", "2"]
    _, command = flags.read(distill.Settings, "prog", "What.", given)
    with pytest.raises(SystemExit, match="130"), flags.plain_errors(resume_with=command):
        raise KeyboardInterrupt
    error = capsys.readouterr().err
    assert error.endswith(f"go on with: {command}\n")
    assert shlex.split(error.partition("go on with: ")[2])[1:] == given


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left", "/w/m.jsonl"), "--where /w: /w/m.jsonl: No space left"),
        (OSError("cannot write /w/1: full"), "--where /w: cannot write /w/1: full"),
        (ValueError("/w holds a run: --rate was 1"), "/w holds a run: --rate was 1"),
        (ValueError("something else"), "something else"),
        (MemoryError("7 TiB"), "there is not enough memory: 7 TiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: 7 TiB\nmore"), "there is not enough memory: RESOURCE"),
    ],
)
def test_a_file_in_trouble_is_named_with_its_flag(error, line, capsys):
    with pytest.raises(SystemExit), flags.plain_errors(Settings(where=Path("/w")), resume_with="x"):
        raise error
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and said.count("\n") == 1
