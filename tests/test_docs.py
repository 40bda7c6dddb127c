"""The code of the pages in docs/ runs, as it stands; the flags that they name exist."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import page_maker

from kdjax import data, models
from kdjax.runs.distill import Settings
from kdjax.runs.flags import names

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("your-*.md"))
# Its blocks stand alone, and some need packages that are not ours.
OWN_TEST = "your-teacher.md"


@pytest.mark.parametrize("page", [page for page in PAGES if page != OWN_TEST])
def test_the_blocks_of_a_page_run_in_their_order(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    assert blocks
    namespace = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_language_model_of_the_page_is_read_applied_and_saved(tmp_path, monkeypatch):
    text = (DOCS / "language.md").read_text().partition("\n## A language model\n")[2]
    (block,) = re.findall(r"^```python\n(.*?)^```", text.partition("\n## ")[0], re.S | re.M)
    tokens = np.arange(10).reshape(2, 5)
    teacher = models.transformer(24, width=16, depth=1, num_heads=2)
    monkeypatch.chdir(tmp_path)
    models.save_decoder("SmolLM2-135M", teacher, jax.jit(teacher.init)(jax.random.key(1), tokens))
    namespace = {"tokens": tokens}
    exec(compile(block, "language.md", "exec"), namespace)
    found = models.load_decoder("student")
    assert found.model.decode.spec == namespace["student"].decode.spec
    assert found.config["eos_token_id"] == 2 and found.config["architectures"]


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_of_a_page_exist(page):
    text = (DOCS / page).read_text()
    assert set(re.findall(r"--[a-z]+(?:[.-][a-z-]+)+", text)) <= set(names(Settings))


def test_the_folder_of_photographs_is_made_as_the_page_says(tmp_path):
    page_maker("make_photos").make(tmp_path / "photos", 4)
    found = data.from_folder(tmp_path / "photos")
    assert found.num_classes == 8 and found.image_shape == (32, 32, 3)
    assert np.bincount(found.train.label).tolist() == [3] * 8 or len(found.train.label) == 23
    maker = (DOCS / "make_photos.py").read_text()
    assert "504 PNG" in maker and "NUM_IMAGES = 128, 63" in maker
