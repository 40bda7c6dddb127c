"""What an install brings: the command, the core alone, and a line where a package is missing."""

import ast
import configparser
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from kdjax.runs import command, distill

ROOT = Path(__file__).parents[1]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
EXTRAS = dict(CONFIG["options.extras_require"])
# Where the name that is imported is not the name that is installed.
INSTALLED_AS = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}
# Everything but the core and what its packages bring along.
NOT_CORE = ["tensorflow_datasets", "grain", "sklearn", "PIL", "matplotlib", "safetensors"]
NOT_CORE += [
    "gguf",
    "tokenizers",
    "chex",
    "array_record",
    "importlib_resources",
    "pytest",
    "torch",
    "tensorflow",
]
BLOCK = """
import sys
class Missing:
    def __init__(self, names): self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing(sys.argv.pop(1).split(",")))
"""


def python(code, *arguments, missing=(), cwd=ROOT):
    """Run code in a process that finds some packages missing."""
    command_line = [sys.executable, "-c", BLOCK + code, ",".join(missing) or "-", *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, cwd=cwd)


def requirements(extra):
    """Return what an extra installs, those of the extras that it includes too."""
    names = re.findall(r"^[\w-]+(?:\[\w+\])?", EXTRAS[extra], re.MULTILINE)
    inner = [name[6:-1] for name in names if name.startswith("kdjax[")]
    return {n.lower() for n in names if n not in inner}.union(*map(requirements, inner))


def test_the_site_takes_what_the_parts_that_it_shows_do():
    assert requirements("test") < requirements("docs")


@pytest.mark.parametrize(
    "start", [["-m", "kdjax"], ["-c", "import kdjax.runs.command as c; c.main()"]]
)
def test_the_help_page_lists_the_runs(start):
    done = subprocess.run(
        [sys.executable, *start, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for word in command.SCRIPTS:
        assert re.search(rf"^  {word} +[A-Z].*\.$", done.stdout, re.MULTILINE), word
    assert done.stderr == ""


def test_the_help_page_loads_nothing_heavy():
    done = python(
        "from kdjax.runs import command; command.main(['--help'])\n"
        "loaded = {'jax', 'numpy', 'rich', 'flax'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_the_version(capsys):
    command.main(["--version"])
    assert re.fullmatch(r"kdjax \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["distil"], "distil is no command of kdjax; perhaps you meant distill"),
        (["data_free", "--steps", "1"], "perhaps you meant data-free"),
        (["xyz"], "expected distill, lm, compare, generations, data-free"),
        ([], "kdjax needs a command, expected distill"),
    ],
)
def test_a_wrong_command_is_one_line(args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(args)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert "(see kdjax --help)" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("program", ["kdjax", "python -m kdjax"])
def test_a_stop_prints_the_command_that_was_started(program, tmp_path, capsys, monkeypatch):
    def interrupted(settings, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "run", interrupted)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as stop:
        command.main(["distill", "--workdir", str(tmp_path), "--seed", "3"], program=program)
    assert stop.value.code == 130
    expected = f"go on with: {program} distill --workdir {tmp_path} --seed 3\n"
    assert capsys.readouterr().err.endswith(expected)


def test_the_core_is_enough_for_the_parts():
    done = python(
        "import kdjax\n"
        "for part in kdjax.__all__:\n"
        "    if part != 'testing': getattr(kdjax, part)\n"
        "import jax.numpy as jnp\n"
        "x, y = jnp.ones((2, 3)), jnp.zeros(2, int)\n"
        "print(kdjax.losses.kd_loss(x, x, y).shape)\n",
        missing=NOT_CORE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2,)\n"


@pytest.mark.parametrize(
    ("statement", "package", "extra"),
    [
        ("kdjax.checkpoint", "orbax", "train"),
        ("import kdjax.runs.report", "matplotlib", "train"),
        ("kdjax.data.load('digits', data_dir='D')", "tensorflow_datasets", "data"),
        ("next(kdjax.data.streaming.streamed(None, range(2)))", "grain", "data"),
        ("kdjax.models.read_state_dict('f.safetensors')", "safetensors", "train"),
        ("kdjax.models.load_decoder('f.gguf')", "gguf", "text"),
        ("kdjax.testing", "chex", "test"),
    ],
)
def test_the_library_names_the_command_that_installs_what_is_missing(
    statement, package, extra, tmp_path
):
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
for name in ("f.safetensors", "f.gguf"):
    open(name, "w").close()
import kdjax
try:
    {statement}
except ImportError as error:
    print(error)
"""
    done = python(code, missing=[package], cwd=tmp_path)
    expected = f"{package} is not installed: python -m pip install 'kdjax[{extra}]'\n"
    assert done.stdout == expected, done.stderr
    assert INSTALLED_AS.get(package, package).replace("_", "-") in requirements(extra)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("kdjax", "tensorflow_datasets"),
        ("kdjax", "matplotlib"),
        ("experiments.distill", "sklearn"),
    ],
)
def test_the_command_line_says_so_in_one_line(module, package, tmp_path):
    flags = ["--workdir", str(tmp_path / "w")]
    words = ["distill"] if module == "kdjax" else []
    done = python(
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)",
        *words,
        *flags,
        missing=[package],
    )
    assert done.returncode == 2, done.stderr
    expected = f"error: {package} is not installed: python -m pip install 'kdjax[train]'\n"
    assert done.stderr == expected
    assert not (tmp_path / "w").exists()


def test_the_wheel_holds_the_package_alone():
    include = CONFIG["options.packages.find"]["include"].split()
    assert include == ["kdjax", "kdjax.*"]
    folders = {path.parent for path in (ROOT / "kdjax").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
    assert (ROOT / "kdjax" / CONFIG["options.package_data"]["kdjax"]).exists()


def test_every_package_that_is_imported_is_asked_for():
    core = CONFIG["options"]["install_requires"]
    asked = set(re.findall(r"^[\w-]+", core, re.MULTILINE)).union(*map(requirements, EXTRAS))
    # Grain's own, asked for its flags.
    ours = {"kdjax", "absl", *sys.stdlib_module_names}
    for path in (ROOT / "kdjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {n.partition(".")[0] for n in names} - ours:
                package = INSTALLED_AS.get(name, name).replace("_", "-").lower()
                assert package in asked, (path.name, name)
