"""A release: one address, version and author everywhere, and a script that wants a token."""

import configparser
import os
import re
import subprocess
from pathlib import Path

import kdjax

ROOT = Path(__file__).parents[1]
PACKAGE = configparser.ConfigParser()
PACKAGE.read(ROOT / "setup.cfg")


def test_the_address_the_author_and_the_version_are_those_of_one_place():
    address, name = PACKAGE["metadata"]["url"], PACKAGE["metadata"]["author"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nrepository-code: {address}\n" in citation
    assert f"\nversion: {kdjax.__version__}\n" in citation
    assert f"  - name: {name}\n" in citation and name in (ROOT / "NOTICE").read_text()
    links = PACKAGE["metadata"]["project_urls"].split()
    assert f"{address}/issues" in links and address in links


def test_the_workflow_runs_on_the_pythons_of_the_package():
    found = re.findall(r"Python :: (3\.\d+)", PACKAGE["metadata"]["classifiers"])
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', workflow) == found and len(found) == 4


def test_nothing_is_released_without_a_token():
    kept = {name: value for name, value in os.environ.items() if name != "TWINE_PASSWORD"}
    command = ["bash", ROOT / ".ci" / "release"]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "release: TWINE_PASSWORD, the token, is not set\n"
