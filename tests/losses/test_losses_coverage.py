"""Which of the peers' losses ours are held against, counted, and kept in docs/golden.md.

python tests/losses/test_losses_coverage.py > docs/golden.md
"""

import collections
import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "losses")]

golden = importlib.import_module("golden")

MODULES = (
    "test_losses_golden",
    "test_losses_classification_golden",
    "test_losses_divergences_golden",
    "test_losses_maps_golden",
    "test_losses_channels",
    "test_losses_relations",
)
TRUSTS = ("reference", "convention", "quirk")
HEAD = """# The peers' own code

Values and gradients that the code of other libraries and of the methods' authors computed, and the
tests that hold ours against them, in float64. A *reference* is a target; a *convention* differs by
scale or reduction, which its test states; a *quirk* is a defect or a surprise, which its test shows
ours not to have. The vectors are not part of this repository: without them these tests skip.
"""


def covered():
    """Where each loss of a peer is tested, and why some are not: two dictionaries by loss."""
    tested, left_out = {}, {}
    for name in MODULES:
        module = importlib.import_module(name)
        tested |= {loss: f"`{name}`: {how}" for loss, how in module.COVERED.items()}
        left_out |= module.LEFT_OUT
    return tested, left_out


def page(index):
    """The page in docs/: counts, then a line for every loss."""
    tested, left_out = covered()
    entries = collections.Counter(entry["loss_id"] for entry in index["entries"])
    lines = ["| | losses | tested | entries tested | left out |", "| --- | --- | --- | --- | --- |"]
    for trust in TRUSTS:
        own = [loss for loss, about in index["losses"].items() if about["trust"] == trust]
        ours = [loss for loss in own if loss in tested]
        count = sum(entries[loss] for loss in ours)
        lines.append(f"| {trust} | {len(own)} | {len(ours)} | {count} | {len(own) - len(ours)} |")
    lines += [
        "",
        "| loss | kind | entries | tested by, or left out because |",
        "| --- | --- | --- | --- |",
    ]
    for loss, about in sorted(index["losses"].items()):
        how = tested.get(loss) or f"left out: {left_out[loss]}"
        lines.append(f"| {loss} | {about['trust']} | {entries[loss]} | {how} |")
    return "\n".join([HEAD, *lines]) + "\n"


@pytest.mark.skipif(not (golden.FOLDER / "index.json").exists(), reason="no golden vectors")
def test_every_loss_is_tested_or_left_out_for_a_reason():
    index = json.loads((golden.FOLDER / "index.json").read_text())
    tested, left_out = covered()
    assert set(index["losses"]) == set(tested) | set(left_out)
    assert not set(tested) & set(left_out)
    assert all(index["losses"][loss]["trust"] == "quirk" for loss in left_out)
    command = "python tests/losses/test_losses_coverage.py > docs/golden.md"
    assert (ROOT / "docs" / "golden.md").read_text() == page(index), f"make it anew: {command}"


if __name__ == "__main__":
    print(page(json.loads((golden.FOLDER / "index.json").read_text())), end="")
