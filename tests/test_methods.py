"""What `--method` names: every method makes an objective that can be computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import NetworkSpec
from kdjax.runs import fitting, methods, settings
from kdjax.runs.methods import METHODS, Setup
from kdjax.types import FeaturePaths, Outputs, TermInputs

PATHS = FeaturePaths(
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


def outputs(seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

    sizes = [8, 4, 2]
    features = {name: draw(s, s, WIDTH) for name, s in zip(PATHS.stages, sizes, strict=True)}
    features |= {
        name: draw(s, s, WIDTH) for name, s in zip(PATHS.preactivations, sizes, strict=True)
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
    student=PATHS,
    teacher=PATHS,
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
    flat = SETUP._replace(student=PATHS._replace(spatial=False))
    with pytest.raises(ValueError, match="--method at needs feature maps"):
        methods.objective_of("at", flat)
    shallow = SETUP._replace(student=FeaturePaths())
    with pytest.raises(ValueError, match="--method rkd needs features"):
        methods.objective_of("rkd", shallow)


def test_methods_of_maps_refuse_a_transformer():
    spec = NetworkSpec("vit_mu", (), CLASSES, (8, 8, 3), (0.5,) * 3, (0.2,) * 3, patch_size=4)
    with pytest.raises(ValueError, match="--method at needs feature maps"):
        fitting.check_fit("at", spec, spec)


def test_a_teacher_without_a_classifier_of_its_own_is_refused():
    reusing = SETUP._replace(teacher=PATHS._replace(head=""))
    for name in ("srrl", "skd"):
        with pytest.raises(ValueError, match=f"--method {name} needs a teacher with a classifier"):
            methods.objective_of(name, reusing)
    spec = NetworkSpec("resnet8", (), CLASSES, (8, 8, 3), (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match="--method simkd needs a teacher with a classifier"):
        methods.student_of("simkd", spec, reusing)
    assert methods.student_of("simkd", spec, SETUP).reused_width == WIDTH
    assert methods.student_of("kd", spec, reusing) == spec


def test_help_knows_every_method_and_its_paper():
    lines = settings.method_lines()
    assert list(lines) and set(lines) == set(METHODS)
    assert all(re.search(r"(19|20)[0-9]{2}", lines[name]) for name in set(lines) - {"scratch"})
