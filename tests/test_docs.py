"""The code of the pages in docs/ runs, as it stands; the flags that they name exist."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import page_maker

from kdjax import data, models
from kdjax.runs import lm
from kdjax.runs.distill import Settings
from kdjax.runs.flags import names

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("your-*.md"))
# Its blocks stand alone, and some need packages that are not ours.
OWN_TEST = "your-teacher.md"


@pytest.mark.parametrize("page", [page for page in PAGES if page != OWN_TEST])
def test_the_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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


def test_the_text_of_the_page_is_read_and_a_student_continues_it():
    page = (DOCS / "language.md").read_text()
    namespace = {"step": 0}
    for heading in ("Text", "On-policy"):
        part = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        (block,) = re.findall(r"^```python\n(.*?)^```", part, re.S | re.M)
        exec(compile(block, "language.md", "exec"), namespace)
        if heading == "Text":
            batch, size = namespace["batch"], namespace["text"].tokenizer.vocab_size
            student = models.transformer(size, width=8, depth=1, num_heads=2)
            made = jax.jit(student.init)(jax.random.key(0), batch["tokens"])
            namespace |= {"student": student, "variables": made}
    view = namespace["view"]
    assert (view["tokens"][:, :32] == batch["tokens"][:, :32]).all()
    assert not view["mask"][:, :31].any() and view["mask"][:, 31:].any()


FLAGS = dict.fromkeys(PAGES, Settings) | {"language.md": lm.Settings}


@pytest.mark.parametrize("page", FLAGS)
def test_the_flags_of_a_page_exist(page):
    text = (DOCS / page).read_text()
    named = set(re.findall(r"--[a-z]+(?:[.-][a-z-]+)+", text))
    assert named <= set(names(FLAGS[page]))


def test_the_folder_of_photographs_is_made_as_the_page_says(tmp_path):
    page_maker("make_photos").make(tmp_path / "photos", 4)
    found = data.from_folder(tmp_path / "photos")
    assert found.num_classes == 8 and found.image_shape == (32, 32, 3)
    assert np.bincount(found.train.label).tolist() == [3] * 8 or len(found.train.label) == 23
    maker = (DOCS / "make_photos.py").read_text()
    assert "504 PNG" in maker and "NUM_IMAGES = 128, 63" in maker
