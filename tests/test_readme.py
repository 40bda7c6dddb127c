"""The README's code runs, as it stands; it is short, and what it shows first is there."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=["linen", "nnx"])
def test_a_block_runs_and_trains(block):
    namespace = {"__name__": "readme"}
    # Linen's modules look their own file up.
    exec(compile(block, "README.md", "exec"), namespace)
    assert np.isfinite(namespace["loss"])
    assert float(namespace["loss"]) < 1.5


def test_both_custom_loops_use_the_losses_alone():
    for block in BLOCKS:
        assert re.findall(r"kdjax[\w.]*", block) == ["kdjax.losses"]


def test_it_is_short_and_begins_with_a_picture():
    assert len(TEXT.splitlines()) < 250
    assert (ROOT / re.search(r"!\[[^]]+\]\(([^)]+)\)", TEXT)[1]).stat().st_size < 100_000
