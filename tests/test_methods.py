"""What `--method` names: every method makes an objective that can be computed."""

import dataclasses
import re
import subprocess
import sys
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.models import NetworkSpec
from kdjax.runs import methods
from kdjax.runs.method_names import LINES
from kdjax.runs.methods import METHODS, Need, Setup
from kdjax.types import FeaturePaths, Outputs, Term, TermInputs

PLACES = FeaturePaths(
    stages=("a", "b", "c"),
    preactivations=("x/0/sum", "y/0/sum", "z/0/sum"),
    embedding="e",
    head="head",
    spatial=True,
    last_map="c",
    norms=("x/0/norm_2", "y/0/norm_2", "z/0/norm_2"),
)
NORM = {"norm_2": {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}}
CLASSES, BATCH, WIDTH = 5, 8, 6
SPEC = NetworkSpec("resnet8", (), CLASSES, (32, 32, 3), (0.5,) * 3, (0.25,) * 3)


def outputs(seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

    sizes = [8, 4, 2]
    features = {name: draw(s, s, WIDTH) for name, s in zip(PLACES.stages, sizes, strict=True)}
    features |= {
        name: draw(s, s, WIDTH) for name, s in zip(PLACES.preactivations, sizes, strict=True)
    }
    features |= {"e": draw(WIDTH), "class_maps": draw(2, 2, CLASSES)}
    features |= {"projected": draw(2, 2, WIDTH)}
    return Outputs(draw(CLASSES), features)


def inputs():
    batch = {
        "label": jnp.arange(BATCH) % CLASSES,
        "index": jnp.arange(BATCH, dtype=jnp.int32),
        "image": jnp.zeros((BATCH, 2)),
    }
    return TermInputs(batch, outputs(0), outputs(1), jnp.ones(BATCH, bool))


SETUP = Setup(
    student=PLACES,
    teacher=PLACES,
    teacher_params={
        "head": {"kernel": np.ones((WIDTH, CLASSES), np.float32)},
        **{stage: {"0": NORM} for stage in "xyz"},
    },
    num_examples=20,
    num_steps=100,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_finite_loss(name):
    objective, given = methods.objective_of(name, SETUP), inputs()
    variables = jax.jit(objective.init)(jax.random.key(0), given)
    loss, state, metrics = jax.jit(objective.apply)(*variables, given, step=60)
    assert np.isfinite(loss) and float(loss) != 0
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    assert "loss/hard" in metrics and len(metrics) >= (2 if name == "scratch" else 3)


def test_methods_that_look_at_features_are_known_as_such():
    bare = inputs()
    bare = bare._replace(
        student=bare.student._replace(features={}), teacher=bare.teacher._replace(features={})
    )
    for name in METHODS:
        objective = methods.objective_of(name, SETUP)
        if methods.looks_at_features(name):
            with pytest.raises(ValueError, match="captured no feature"):
                jax.eval_shape(objective.init, jax.random.key(0), bare) and jax.eval_shape(
                    objective.apply, *objective.init(jax.random.key(0), bare), bare
                )
        else:
            variables = objective.init(jax.random.key(0), bare)
            jax.eval_shape(objective.apply, *variables, bare)


def test_joined_methods_add_their_terms_and_count_labels_once():
    objective = methods.objective_of("kd+pkt", SETUP)
    loss, _, metrics = objective.apply(*objective.init(jax.random.key(0), inputs()), inputs())
    assert set(metrics) == {"loss", "loss/hard", "loss/soft", "loss/pkt"}
    hard, soft, pkt = (metrics[f"loss/{name}"][0] / BATCH for name in ("hard", "soft", "pkt"))
    np.testing.assert_allclose(loss, hard + 0.9 * soft + 30000 * pkt, rtol=1e-5)


def test_wrong_names_and_networks_are_explained():
    with pytest.raises(ValueError, match="no 'nothing', only scratch, kd"):
        methods.objective_of("kd+nothing", SETUP)
    with pytest.raises(ValueError, match="names a method twice"):
        methods.objective_of("kd+kd", SETUP)
    flat = SETUP._replace(student=PLACES._replace(spatial=False))
    with pytest.raises(ValueError, match="--method at needs feature maps"):
        methods.objective_of("at", flat)
    shallow = SETUP._replace(student=FeaturePaths())
    with pytest.raises(ValueError, match="--method rkd needs features"):
        methods.objective_of("rkd", shallow)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("vit_mu", ("block_0",)), ("vit_s", ("block_2", "block_5", "block_8", "block_11"))],
)
def test_four_blocks_of_a_transformer_stand_for_stages(name, stages):
    spec = NetworkSpec(name, (), CLASSES, (8, 8, 3), (0.5,) * 3, (0.2,) * 3, patch_size=4)
    paths = models.build(spec).paths
    assert (paths.stages, paths.spatial) == (stages, False)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.uint8)
    model = models.build(spec, features=paths.all)
    outputs = jax.eval_shape(
        lambda x: model.apply(*model.init(jax.random.key(0), x), x, train=False)[0], images
    )
    assert set(outputs.features) == set(paths.all)
    with pytest.raises(ValueError, match="--method at needs feature maps"):
        methods.check("at", spec, spec)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet20", (2, 2, 2)), ("resnet18", (1,) * 4), ("resnet34", (2, 3, 5, 2))]
)
def test_a_stage_ends_with_its_last_block(name, last):
    spec = NetworkSpec(name, (), CLASSES, (32, 32, 3), (0.5,) * 3, (0.2,) * 3)
    paths = models.build(spec).paths
    assert paths.preactivations == tuple(
        f"stage_{i}/block_{n}/sum" for i, n in enumerate(last, start=1)
    )
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    model = models.build(dataclasses.replace(spec, reused_width=6), features=paths.all)
    outputs = jax.eval_shape(
        lambda x: model.apply(*model.init(jax.random.key(0), x), x, train=False)[0], images
    )
    assert set(paths.all) <= set(outputs.features)


def test_help_knows_every_method_and_its_paper():
    assert list(LINES) == list(METHODS)
    assert all(METHODS[name].line == line for name, line in LINES.items())
    assert all(re.search(r"(19|20)[0-9]{2}", LINES[name]) for name in set(LINES) - {"scratch"})


def test_help_is_read_without_jax():
    code = (
        "import dataclasses, sys, kdjax.runs.method_names, kdjax.runs.distill as d; "
        "about = {f.name: f.metadata.get('about') for f in dataclasses.fields(d.Settings)}['method']; "
        "assert all(line in about for line in kdjax.runs.method_names.LINES.values()); "
        "sys.exit('imported jax' if 'jax' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def own_terms(name, setup=SETUP):
    """Return the terms of a method but for the labels' cross-entropy."""
    made = METHODS[name].make(setup)
    return [made] if isinstance(made, Term) else [t for n, (t, _) in made.items() if n != "hard"]


def shapes_of(term, given):
    def values(given):
        return term.apply(*term.init(jax.random.key(0), given), given)[0]

    return jax.eval_shape(values, given)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "scratch"])
def test_needs_are_what_the_terms_ask_for(name):
    needs, given = METHODS[name].needs, inputs()
    assert any(term.couples_batch for term in own_terms(name)) == (Need.WHOLE_BATCH in needs)
    for need, key in ((Need.LABELS, "label"), (Need.INDEX, "index")):
        fewer = given._replace(batch={k: x for k, x in given.batch.items() if k != key})
        with pytest.raises((KeyError, ValueError), match=key) if need in needs else nullcontext():
            [shapes_of(term, fewer) for term in own_terms(name)]
    headless = SETUP._replace(teacher_params={**SETUP.teacher_params})
    headless.teacher_params.pop("head")
    refuses = pytest.raises(ValueError, match="classifier of its own")
    with refuses if Need.CLASSIFIER in needs else nullcontext():
        own_terms(name, headless)
        methods.student_of(name, SPEC, headless)
    fewer = SETUP._replace(teacher=PLACES._replace(norms=()))
    with pytest.raises(ValueError) if Need.NORMS in needs else nullcontext():
        own_terms(name, fewer)
