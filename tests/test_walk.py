"""The way from a command to the KL: a run's own stack, held against the walk in docs/."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Runs a script until its first KL, and prints the files and functions of ours that led there.
UNTIL_THE_KL = f"""
import json, os, runpy, sys, traceback
from kdjax.losses._numerics import exact

def stop(*args, **kwargs):
    frames = [f for f in traceback.extract_stack()[:-1] if f.filename.startswith({str(ROOT)!r})]
    ours = [(os.path.relpath(f.filename, {str(ROOT)!r}), f.name) for f in frames]
    print(json.dumps([frame for frame in ours if frame[0].split(os.sep)[0] != "tests"]), flush=True)
    os._exit(0)

exact.kl_and_gap = stop
sys.argv = ["distill", *sys.argv[1:]]
runpy.run_module("experiments.distill", run_name="__main__")
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("walk")
    flags = ["--epochs", "1", "--teacher.epochs", "1", "--num-seeds", "1", "--workdir", workdir]
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_THE_KL, *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [*map(tuple, json.loads(done.stdout.splitlines()[-1])), ("", "kl_and_gap")]


def files_of(stack):
    return list(dict.fromkeys(file for file, _ in stack if file))


def test_a_reader_walks_from_the_command_to_the_kl_in_eight_files(stack):
    assert len(stack) <= 14, stack
    assert len(files_of(stack)) <= 8, stack


def test_the_page_names_these_files_and_no_others(stack):
    walk = (ROOT / "docs" / "walk.md").read_text()
    numbered = re.findall(r"^\d\. \[`[^`]+`\]\(\.\./([^)]+)\)", walk, re.MULTILINE)
    assert numbered == files_of(stack)
