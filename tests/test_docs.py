"""The code of the pages in docs/ runs, as it stands; flags that they name and links exist."""

import functools
import importlib
import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scripts import page_maker

import kdjax
from kdjax import data, distributed, models, sharding, step, teachers, terms
from kdjax.objective import combine
from kdjax.runs import command
from kdjax.runs.distill import Settings
from kdjax.runs.flags import names

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/") and "index" not in page]
FOLDERS = {"README.md": ROOT, "RESULTS.md": ROOT, "CONTRIBUTING.md": ROOT, "CHANGELOG.md": ROOT}


def blocks_of(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


def run(page, blocks, namespace):
    """Run blocks one after the other; Linen's modules look their own file up."""
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    return namespace


# Pages whose blocks follow from each other; what a block has left is looked at.
WHOLE = {
    "index.md": lambda left: left["loss"].shape == (1,),
    "own-loop.md": lambda left: left["loss"] < 1.5,
    "whole-step.md": lambda left: np.all(left["states"].step == 1) and left["student_params"],
    "check-your-loss.md": lambda left: left["report"].passed,
    "online.md": lambda left: left["first"] and left["averaged"].params,
    "your-data.md": lambda left: left["batch"]["image"].shape == (32, 16, 16, 3),
    "your-task.md": lambda left: np.isfinite(left["loss"]),
    "recipes/nnx.md": lambda left: left["loss"] < 2,
}
# Those of `your-teacher.md` stand alone, and need packages that are not ours.
APART = {"language.md", "scaling.md", "your-teacher.md"}
APART |= {f"recipes/{name}.md" for name in ("keras", "kauldron", "tunix")}


def test_every_page_with_code_is_run():
    assert {page for page, text in PAGES.items() if blocks_of(text)} == WHOLE.keys() | APART


@pytest.mark.parametrize("page", WHOLE)
def test_the_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert WHOLE[page](run(page, blocks_of(PAGES[page]), {"__name__": page}))


def section(page, heading):
    return blocks_of(PAGES[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0])


def test_losses_without_the_logits_are_called_as_the_page_says():
    key = jax.random.key(0)
    hidden, kernel = jax.random.normal(key, (2, 6, 4)), jax.random.normal(key, (16, 4))
    labels, mask = jnp.ones((2, 6), int), jnp.ones((2, 6), bool)
    known = {"hidden": hidden, "teacher_hidden": hidden, "labels": labels, "mask": mask}
    params = {"head": kernel, "params": {"lm_head": {"kernel": kernel.T}}}
    found = {**known, "params": params, "teacher_kernel": 2 * kernel}
    run("language.md", section("language.md", "Losses without the logits"), found)
    assert found["mean"] > 0 and found["values"].shape == (2, 6)

    model = types.SimpleNamespace(apply=lambda params, tokens, method: hidden)
    found = {name: found[name] for name in ("heads", "loss_fn")} | {"model": model}
    run("language.md", section("language.md", "Moving a loop to it"), found)
    top = {"teacher_logits": jnp.ones((2, 6, 3)), "teacher_ids": jnp.ones((2, 6, 3), int)}
    top["teacher_ids"] = jnp.broadcast_to(jnp.arange(3), (2, 6, 3))
    batch = {"tokens": labels, "targets": labels, "mask": mask, **top}
    assert found["loss"](params, batch).shape == ()


def test_the_language_model_of_the_page_is_read_applied_and_saved(tmp_path, monkeypatch):
    tokens = np.arange(10).reshape(2, 5)
    teacher = models.transformer(24, width=16, depth=1, num_heads=2)
    monkeypatch.chdir(tmp_path)
    models.save_decoder("SmolLM2-135M", teacher, jax.jit(teacher.init)(jax.random.key(1), tokens))
    left = run("language.md", section("language.md", "A language model"), {"tokens": tokens})
    found = models.load_decoder("student")
    assert found.model.decode.spec == left["student"].decode.spec
    assert found.config["eos_token_id"] == 2 and found.config["architectures"]


def test_the_text_of_the_page_is_read_and_a_student_continues_it():
    left = run("language.md", section("language.md", "Text"), {"step": 0})
    batch, size = left["batch"], left["text"].tokenizer.vocab_size
    student = models.transformer(size, width=8, depth=1, num_heads=2)
    left |= {"student": student}
    left["variables"] = jax.jit(student.init)(jax.random.key(0), batch["tokens"])
    view = run("language.md", section("language.md", "On-policy"), left)["view"]
    assert (view["tokens"][:, :32] == batch["tokens"][:, :32]).all()
    assert not view["mask"][:, :31].any() and view["mask"][:, 31:].any()


def test_the_blocks_on_scaling_run(monkeypatch):
    left = run("scaling.md", section("scaling.md", "In your own code"), {})
    assert np.isfinite(left["metrics"]["loss"][0])

    joined = []
    signature = inspect.signature(distributed.initialize)
    monkeypatch.setattr(
        distributed, "initialize", lambda **given: joined.append(signature.bind(**given))
    )
    left = run("scaling.md", section("scaling.md", "Several hosts"), {"batch_size": 16})
    assert joined and len(left["rows"]) == 16

    digits = data.load("digits")
    network = models.mlp(10, widths=(8,))
    objective, optimizer = combine({"hard": terms.cross_entropy()}, {"hard": 1.0}), optax.sgd(0.1)
    batch = next(data.train_batches(digits.train._asdict(), seed=0, batch_size=1024))
    key, mesh = jax.random.key(0), left["mesh"]
    make = functools.partial(step.init_train_state, key, network, objective, optimizer, batch, None)
    train_step = step.with_teacher(
        step.make_train_step(network, objective, optimizer), teachers.absent()
    )
    parts = {name: getattr(kdjax, name) for name in ("many", "loop", "data", "sharding")}
    found = {**parts, "functools": functools, "mesh": mesh, "train_step": train_step}
    held, streamed = section("scaling.md", "Feeding")
    held = held.replace("20_000", "3").replace("steps_per_call=50", "steps_per_call=2")
    replicated = sharding.replicate(make(), mesh)
    left = run("scaling.md", [held], found | {"dataset": digits, "state": replicated})
    assert int(left["state"].step) == 3

    cropped = types.SimpleNamespace(cropped=lambda crop_fn: digits.train.image)
    again = {"_replace": lambda image: digits.train._replace(image=image)}
    train = types.SimpleNamespace(image=cropped, **again)
    load = inspect.signature(data.load)
    monkeypatch.setattr(
        data, "load", lambda *a, **k: load.bind(*a, **k) and types.SimpleNamespace(train=train)
    )
    monkeypatch.setattr(data, "prefetch", lambda batches, place_fn: [place_fn(next(batches))])
    found |= {"rows": np.arange(1024), "state": sharding.replicate(make(), mesh)}
    left = run("scaling.md", [streamed.replace("workers=16", "workers=0")], found)
    assert int(left["state"].step) == 1


def test_keras_learns_by_our_loss():
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    with jax.numpy_rank_promotion("allow"):
        left = run("keras.md", blocks_of(PAGES["recipes/keras.md"]), {"__name__": "page"})
    assert left["losses"][-1] < left["losses"][0]


def logits_and_labels():
    student, teacher = 3 * jax.random.normal(jax.random.key(0), (2, 4, 6, 10))
    return student, teacher, jnp.ones((4, 6), int).at[:, 4:].set(-100)


def test_kauldron_takes_our_loss_from_a_config(monkeypatch):
    """A stand-in: Kauldron's `Loss` weighs the mean of `get_values` under a mask."""

    class Loss:
        mask = None
        weight = 1.0

        def __init_subclass__(cls):
            cls.__annotations__ = {**cls.__annotations__, "weight": float}
            cls.weight = 1.0

        def value(self, mask, **arrays):
            values = self.get_values(**arrays)
            return self.weight * (values * mask).sum() / mask.sum()

    kontext = types.SimpleNamespace(Key=str, REQUIRED="__KEY_REQUIRED__")
    kd = types.SimpleNamespace(losses=types.SimpleNamespace(Loss=Loss))
    monkeypatch.setitem(sys.modules, "kauldron", types.SimpleNamespace(kd=kd, kontext=kontext))
    left = run("kauldron.md", blocks_of(PAGES["recipes/kauldron.md"]), {"__name__": "page"})
    student, teacher, labels = logits_and_labels()
    arrays = {"logits": student[:, 0], "teacher_logits": teacher[:, 0], "labels": labels[:, :1]}
    mask = jnp.array([[True], [True], [True], [False]])
    expected = kdjax.losses.kd_loss(student[:3, 0], teacher[:3, 0], labels[:3, 0]).mean()
    np.testing.assert_allclose(left["losses"]["kd"].value(mask, **arrays), expected, rtol=1e-6)


def stand_in_for_tunix(monkeypatch):
    """Put something in Tunix's place: a strategy keeps three functions, and asks for losses."""

    class BaseStrategy:
        def __init__(self, student_forward_fn, teacher_forward_fn, labels_fn):
            self.functions = student_forward_fn, teacher_forward_fn, labels_fn

        def get_train_loss(self, model, teacher_output, inputs):
            return self.compute_loss(
                student_output=self.functions[0](model, **inputs),
                teacher_output=teacher_output,
                labels=self.functions[2](**inputs),
            )

    strategies = types.SimpleNamespace(BaseStrategy=BaseStrategy)
    distillation = types.SimpleNamespace(strategies=strategies)
    monkeypatch.setitem(sys.modules, "tunix", types.SimpleNamespace(distillation=distillation))
    monkeypatch.setitem(sys.modules, "tunix.distillation", distillation)


def test_tunix_takes_our_losses_as_strategies(monkeypatch):
    if importlib.util.find_spec("tunix") is None:
        stand_in_for_tunix(monkeypatch)
    left = run("tunix.md", blocks_of(PAGES["recipes/tunix.md"]), {"__name__": "page"})
    student, teacher, labels = logits_and_labels()
    functions = (lambda m, x: x), (lambda m, x: teacher), (lambda x: labels)
    strategy = left["Distillation"](*functions)
    loss, metrics = strategy.get_train_loss(None, teacher, {"x": student})
    count = labels[:, :4]
    expected = kdjax.losses.kd_loss(student[:, :4], teacher[:, :4], count, temperature=2.0).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["distill/tokens"] == 16
    assert strategy.compute_eval_loss(student, labels)[0] > 0
    on_policy, _ = left["OnPolicy"](*functions).get_train_loss(None, teacher, {"x": student})
    assert 0 < on_policy < np.log(2)


KNOWN = {
    name
    for word in command.SCRIPTS
    for name in names(importlib.import_module(f"kdjax.runs.{word.replace('-', '_')}").Settings)
}
# Flags of scripts that are not of the command, of other programs, and of pip.
OTHERS = {"--results", "--summary", "--quick", "--teacher", "--json", "--tiny", "--kills"}


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_the_flags_of_a_page_exist(page):
    text = PAGES.get(page) or (ROOT / page).read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z]+(?:[.-][a-z-]+)+", text))
    known = set(names(Settings)) if page.startswith("your-") else KNOWN
    assert named - OTHERS - FOREIGN.get(page, set()) <= known


FOREIGN = {
    "scaling.md": {"--gpus-per-task", "--ntasks-per-node", "--xla"},
}


def slug(heading):
    """Return the place of a heading, as the forges and the site have it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def places(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", [*FOLDERS, *PAGES])
def test_the_links_of_a_page_lead_somewhere(page):
    path = FOLDERS[page] / page if page in FOLDERS else DOCS / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, place = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not link.startswith("http"):
            assert target.exists(), f"{page}: {link}"
            assert not place or place in places(target), f"{page}: {link}"


def test_the_folder_of_photographs_is_made_as_the_page_says(tmp_path):
    page_maker("make_photos").make(tmp_path / "photos", 4)
    found = data.from_folder(tmp_path / "photos")
    assert found.num_classes == 8 and found.image_shape == (32, 32, 3)
    assert np.bincount(found.train.label).tolist() == [3] * 8 or len(found.train.label) == 23
    maker = (DOCS / "make_photos.py").read_text()
    assert "504 PNG" in maker and "NUM_IMAGES = 128, 63" in maker


@pytest.mark.slow
@pytest.mark.parametrize("page", NOTEBOOKS)
def test_a_notebook_runs(page, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pattern = r"^```\{code-cell\} python\n((?::.*\n)*)(.*?)^```"
    options, cells = zip(*re.findall(pattern, PAGES[page], re.S | re.M), strict=True)
    assert len(cells) > 3
    # A figure is described to those who do not see it.
    assert ["alt: " in own for own in options] == ["plt.show()" in own for own in cells]
    with jax.numpy_rank_promotion("allow"):
        run(page, cells, {"__name__": "notebook"})
    sys.modules["matplotlib.pyplot"].close("all")
