"""The code of docs/your-teacher.md runs, as it stands."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "your-teacher.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
NAMES = ["torch", "largest", "weights", "linen", "equinox", "keras"]
NEEDS = {"torch": "torchax", "equinox": "equinox", "keras": "keras"}


@pytest.mark.filterwarnings("ignore:from_pytorch. passed over")
@pytest.mark.parametrize(("name", "block"), [*zip(NAMES, BLOCKS, strict=True)], ids=NAMES)
def test_a_block_runs(name, block, capsys):
    package = NEEDS.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    namespace = {"__name__": "page"}
    # Linen's modules look their own file up; Keras promotes ranks, which tests forbid.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block, "your-teacher.md", "exec"), namespace)
    if name == "torch":
        assert np.isfinite(namespace["metrics"]["loss"][0])
    elif name == "weights":
        assert "is missing" in capsys.readouterr().out
    elif name == "largest":
        assert namespace["loss"].shape == (1,) and namespace["answers"].indices.shape == (1, 2)
    else:
        assert namespace["outputs"].logits.shape == (2, 10)
