"""Values and gradients of other libraries' own loss code, where they lie beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "golden"


def entries(*loss_ids):
    """Return the entries of some losses as pytest parameters; one that skips if there are none."""
    if not FOLDER.exists():
        reason = "the golden values are not beside the checkout"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    index = json.loads((FOLDER / "index.json").read_text())
    return [
        pytest.param(entry, id=entry["file"].removesuffix(".npz"))
        for entry in index["entries"]
        if entry["loss_id"] in loss_ids
    ]


def arrays(entry):
    with np.load(FOLDER / entry["file"]) as file:
        return dict(file)
