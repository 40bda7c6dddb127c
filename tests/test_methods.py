"""What `--method` names: every method makes an objective that can be computed."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.runs import fitting, methods, settings
from kdjax.runs.methods import METHODS, Setup
from kdjax.runs.networks import NetworkSpec
from kdjax.runs.places import Places, places_of, with_features
from kdjax.types import Outputs, TermInputs

PLACES = Places(
    stages=("a", "b", "c"),
    bare=("x/0/sum", "y/0/sum", "z/0/sum"),
    embedding="e",
    spatial=True,
    last="c",
    norms=("x/0/norm_2", "y/0/norm_2", "z/0/norm_2"),
)
NORM = {"norm_2": {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}}
CLASSES, BATCH, WIDTH = 5, 8, 6


def outputs(seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

    sizes = [8, 4, 2]
    features = {name: draw(s, s, WIDTH) for name, s in zip(PLACES.stages, sizes, strict=True)}
    features |= {name: draw(s, s, WIDTH) for name, s in zip(PLACES.bare, sizes, strict=True)}
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
    shallow = SETUP._replace(student=Places((), (), "", spatial=False))
    with pytest.raises(ValueError, match="--method rkd needs features"):
        methods.objective_of("rkd", shallow)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("vit_mu", ("block_0",)), ("vit_s", ("block_2", "block_5", "block_8", "block_11"))],
)
def test_four_blocks_of_a_transformer_stand_for_stages(name, stages):
    spec = NetworkSpec(name, (), CLASSES, (8, 8, 3), (0.5,) * 3, (0.2,) * 3, patch_size=4)
    places = places_of(spec)
    assert (places.stages, places.spatial) == (stages, False)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.uint8)
    model = with_features(spec)
    outputs = jax.eval_shape(
        lambda x: model.apply(*model.init(jax.random.key(0), x), x, train=False)[0], images
    )
    assert set(outputs.features) == set(places.all)
    with pytest.raises(ValueError, match="--method at needs feature maps"):
        fitting.check_fit("at", spec, spec)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet20", (2, 2, 2)), ("resnet18", (1,) * 4), ("resnet34", (2, 3, 5, 2))]
)
def test_a_stage_ends_with_its_last_block(name, last):
    spec = NetworkSpec(name, (), CLASSES, (32, 32, 3), (0.5,) * 3, (0.2,) * 3)
    places = places_of(spec)
    assert places.bare == tuple(f"stage_{i}/block_{n}/sum" for i, n in enumerate(last, start=1))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    model = with_features(dataclasses.replace(spec, reused_width=6))
    outputs = jax.eval_shape(
        lambda x: model.apply(*model.init(jax.random.key(0), x), x, train=False)[0], images
    )
    assert set(places.all) <= set(outputs.features)


def test_help_knows_every_method_and_its_paper():
    lines = settings.method_lines()
    assert list(lines) and set(lines) == set(METHODS)
    assert all(re.search(r"(19|20)[0-9]{2}", lines[name]) for name in set(lines) - {"scratch"})
