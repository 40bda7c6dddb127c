"""Values and gradients that the peers' own code computed: shared/golden next to the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1].parent / "shared" / "golden"


def cases(*loss_ids, choose=lambda entry: True):
    """Parameters for pytest: the entries of these losses; without the folder, one that skips."""
    if not (FOLDER / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no golden vectors: {FOLDER}"))]
    index = json.loads((FOLDER / "index.json").read_text())
    unknown = set(loss_ids) - set(index["losses"])
    assert not unknown, f"the golden index has no {sorted(unknown)}"
    chosen = [e for e in index["entries"] if e["loss_id"] in loss_ids and choose(e)]
    missing = set(loss_ids) - {e["loss_id"] for e in chosen}
    assert not missing, f"no golden entry is left of {sorted(missing)}"
    return [pytest.param(e, id=f"{e['loss_id']}-{e['case']}") for e in chosen]


def load(entry):
    """The arrays of an entry by key, such as inputs/student_logits, output/loss, grad/inputs/*."""
    with np.load(FOLDER / entry["file"], allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def assert_close(actual, expected, rtol):
    """Compare a value, or a gradient relative to its largest entry."""
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)
