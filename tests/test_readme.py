"""The README's code runs, as it stands."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=["linen", "nnx", "step", "check", "sweep"])
def test_a_block_runs_and_trains(block):
    namespace = {"__name__": "readme"}
    # Linen's modules look their own file up.
    exec(compile(block, "README.md", "exec"), namespace)
    if "loss" in namespace:
        assert np.isfinite(namespace["loss"])
        assert float(namespace["loss"]) < 1.5
    elif "report" in namespace:
        assert namespace["report"].passed
    elif "states" in namespace:
        np.testing.assert_array_equal(namespace["states"].step, [1, 1, 1])
        assert np.all(np.isfinite(namespace["metrics"]["loss"][0]))
    else:
        assert jax.tree.leaves(namespace["student_params"])
        assert int(namespace["state"].step) == 10


def test_both_custom_loops_use_the_losses_alone():
    for block in BLOCKS[:2]:
        assert re.findall(r"kdjax[\w.]*", block) == ["kdjax.losses"]


def test_flags_in_the_readme_exist():
    from kdjax.runs import distill, lm
    from kdjax.runs.flags import names

    known = {*names(distill.Settings), *names(lm.Settings)}
    assert set(re.findall(r"--[a-z]+(?:[.-][a-z-]+)+|--temperature|--epochs", TEXT)) <= known
