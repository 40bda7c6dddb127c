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

from kdjax import losses, models, terms
from kdjax.models import NetworkSpec
from kdjax.runs import methods
from kdjax.runs.method_names import LINES
from kdjax.runs.methods import METHODS, Setup
from kdjax.runs.needs import Need
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


def outputs(seed, pixels=()):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32)

    sizes = [8, 4, 2]
    features = {name: draw(s, s, WIDTH) for name, s in zip(PLACES.stages, sizes, strict=True)}
    features |= {
        name: draw(s, s, WIDTH) for name, s in zip(PLACES.preactivations, sizes, strict=True)
    }
    features |= {"e": draw(WIDTH), "class_maps": draw(2, 2, CLASSES)}
    features |= {"projected": draw(2, 2, WIDTH), "head": draw(CLASSES)}
    features |= {"distillation_head": draw(CLASSES)}
    return Outputs(draw(*pixels, CLASSES), features)


def inputs(name="kd"):
    pixels = (8, 8) if METHODS[name].task == "pixels" else ()
    batch = {
        "label": jnp.arange(BATCH * np.prod(pixels, dtype=int)).reshape(BATCH, *pixels) % CLASSES,
        "index": jnp.arange(BATCH, dtype=jnp.int32),
        "image": jnp.zeros((BATCH, 2)),
    }
    return TermInputs(
        batch, outputs(0, pixels), outputs(1, pixels), jnp.ones((BATCH, *pixels), bool)
    )


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


E, LAST, STAGES = ("e", "e"), ("c", "c"), (["a", "b", "c"],) * 2
SUMS = (["x/0/sum", "y/0/sum", "z/0/sum"],) * 2
SECOND = "distillation_head"
# The labels' weight where it is not one, and the terms' weights in the order of their names.
HARD = {
    "kd": 0.1, "logit-std": 0.1, "mlkd": 0.1, "ctkd": 0.1, "tfkd": 0.9, "simkd": 0.0,
    "deit-hard": 0.5, "deit-soft": 0.9,
}  # fmt: skip
WEIGHTS = {
    "scratch": {},
    "kd": {"soft": 0.9},
    "logit-std": {"logit_std": 9.0},
    "dkd": {"dkd": 1.0},
    "nkd": {"nkd": 1.0},
    "wsld": {"wsld": 2.25},
    "dist": {"dist": 1.0},
    "ttm": {"ttm": 45.0},
    "wttm": {"wttm": 4.0},
    "mlkd": {"mlkd": 0.9},
    "ctkd": {"ctkd": 0.9},
    "logit-mse": {"logit_mse": 1.0},
    "skd": {"skd_soft": 0.5, "skd_directions": 0.5},
    "tfkd": {"tfkd": 0.1},
    "deit-hard": {"deit_hard": 0.5},
    "deit-soft": {"deit_soft": 0.1},
    "reverse-kl": {"reverse_kl": 1.0},
    "js": {"js": 1.0},
    "skew-kl": {"skew_kl": 1.0},
    "skew-reverse-kl": {"skew_reverse_kl": 1.0},
    "total-variation": {"total_variation": 1.0},
    "akl": {"akl": 1.0},
    "taid": {"taid": 1.0},
    "uskd": {"uskd": 1.0},
    "hint": {"hint": 100.0},
    "ab": {"ab": 3e-3},
    "vid": {"vid": 1.0},
    "pad": {"pad": 1.0},
    "srrl": {"srrl": 1.0},
    "rkd": {"rkd_distance": 25.0, "rkd_angle": 50.0},
    "sp": {"sp": 3000.0},
    "cc": {"cc": 100.0},
    "cc-neighbours": {"cc_neighbours": 0.02},
    "pkt": {"pkt": 30000.0},
    "darkrank": {"darkrank": 1.0},
    "itrd": {"itrd": 1.0},
    "crd": {"crd": 0.8},
    "at": {"at": 1000.0},
    "nst": {"nst": 50.0},
    "fsp": {"fsp": 10.0},
    "ft": {"ft": 500.0},
    "ofd": {"ofd": 1e-3},
    "review": {"review": 0.6},
    "cat": {"cat": 50.0},
    "cwd": {"cwd": 10.0},
    "mgd": {"mgd": 1.2e-3},
    "simkd": {"simkd": 1.0},
    "semckd": {"semckd_soft": 1.0, "semckd": 400.0},
    "ickd": {"ickd": 2.5},
    "affinity": {"affinity": 1.0},
    "ifv": {"ifv": 50.0},
    "margin-mse": {"margin_mse": 10.0},
}
WARM_UP = {"dkd", "pad", "review"}


def of(loss, paths=(None, None), **hyper):
    return [terms.of(loss, student=paths[0], teacher=paths[1], **hyper)]


def channel_wise(student_features, teacher_features):
    return losses.channel_wise_loss(student_features, teacher_features, temperature=4.0)


# Each by hand for 5 classes, 20 examples, a training of 100 steps and features of width 6.
TERMS = {
    "kd": lambda: [terms.soft_targets(temperature=4.0)],
    "logit-std": lambda: [terms.standardized(terms.soft_targets(temperature=2.0))],
    "dkd": lambda: of(losses.dkd_loss, temperature=4.0, target_weight=1.0, nontarget_weight=8.0),
    "nkd": lambda: of(losses.nkd_loss, temperature=3.0, nontarget_weight=3.5),
    "wsld": lambda: of(losses.wsld_loss, temperature=4.0),
    "dist": lambda: of(losses.dist_loss, temperature=4.0, inter_weight=2.0, intra_weight=2.0),
    "ttm": lambda: of(losses.ttm_loss, temperature=10.0),
    "wttm": lambda: of(losses.wttm_loss, temperature=5.0),
    "mlkd": lambda: of(losses.multi_level_loss, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0)),
    "ctkd": lambda: [terms.curriculum_temperature(4, low=1.0, span=20.0)],
    "logit-mse": lambda: of(losses.logit_mse_loss),
    "skd": lambda: [
        terms.soft_targets(temperature=4.0),
        *of(losses.direction_relation_loss, regularization=0.1 * 25),
    ],
    "tfkd": lambda: of(losses.virtual_teacher_loss, temperature=20.0),
    "reverse-kl": lambda: of(losses.reverse_kl_divergence),
    "js": lambda: of(losses.generalized_js_divergence, beta=0.5),
    "skew-kl": lambda: of(losses.skew_kl_divergence, skew=0.1),
    "skew-reverse-kl": lambda: of(losses.skew_reverse_kl_divergence, skew=0.1),
    "deit-hard": lambda: [terms.with_logits_of(*of(losses.hard_target_loss), SECOND)],
    "deit-soft": lambda: [terms.with_logits_of(terms.soft_targets(temperature=3.0), SECOND)],
    "total-variation": lambda: of(losses.total_variation),
    "akl": lambda: of(losses.adaptive_kl_divergence),
    "taid": lambda: [terms.taid(num_steps=100)],
    "uskd": lambda: [terms.uskd("b", target_weight=0.1, nontarget_weight=0.1, weak_weight=0.1)],
    "hint": lambda: [terms.hint("b", "b", norm=True)],
    "ab": lambda: [terms.activation_boundary(*SUMS)],
    "vid": lambda: [terms.vid(*STAGES)],
    "pad": lambda: [terms.prime_aware(*E)],
    "srrl": lambda: [terms.softmax_regression(*E, classifier=SETUP.teacher_params["head"])],
    "rkd": lambda: of(losses.distance_relation_loss, E) + of(losses.angle_relation_loss, E),
    "sp": lambda: of(losses.similarity_preserving_loss, LAST),
    "cc": lambda: of(losses.correlation_congruence_loss, E),
    "cc-neighbours": lambda: [terms.consecutive_correlation(*E)],
    "pkt": lambda: of(losses.probabilistic_transfer_loss, E),
    "darkrank": lambda: [terms.normalized(*of(losses.hard_dark_rank_loss, E))],
    "itrd": lambda: [terms.itrd(*E)],
    "crd": lambda: [terms.crd(*E, num_examples=20, num_negatives=20, width=128, momentum=0.5)],
    "at": lambda: of(losses.attention_transfer_loss, STAGES, power=2),
    "nst": lambda: of(losses.neuron_selectivity_loss, STAGES),
    "fsp": lambda: of(losses.flow_loss, STAGES),
    "ft": lambda: [terms.factor_transfer(*LAST, reconstruction_weight=0.2 / 500)],
    "ofd": lambda: [
        terms.overhaul(
            *SUMS, margins=[losses.batch_norm_margin(*NORM["norm_2"].values()) for _ in range(3)]
        )
    ],
    "review": lambda: [terms.review([*SUMS[0], "e"], [*SUMS[0], "e"])],
    "cat": lambda: of(losses.class_attention_loss, ("class_maps", "class_maps")),
    "cwd": lambda: of(channel_wise, LAST),
    "mgd": lambda: [terms.masked_generation(*LAST, mask_ratio=0.15)],
    "simkd": lambda: of(losses.projected_feature_loss, ("projected", "c")),
    "semckd": lambda: [terms.soft_targets(temperature=4.0), terms.semantic_calibration(*STAGES)],
    "ickd": lambda: [terms.inter_channel_correlation(*LAST)],
    "affinity": lambda: of(losses.affinity_loss, ("logits", "logits")),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_weighs_its_terms_as_its_authors_do(name):
    objective, given = methods.objective_of(name, SETUP), inputs(name)

    @jax.jit
    def run(step):
        variables = objective.init(jax.random.key(0), given)
        return variables.state, objective.apply(*variables, given, step=step)

    weights = {"hard": HARD.get(name, 1.0), **WEIGHTS[name]}
    # The warm-up of a hundred steps takes eight.
    for step, share in ((60, 1.0), (2, 0.25)):
        before, (loss, state, metrics) = run(step)
        assert np.isfinite(loss) and float(loss) != 0
        assert set(metrics) == {"loss", *(f"loss/{term}" for term in weights)}
        terms = {term: np.divide(*metrics[f"loss/{term}"]) for term in weights}
        grown = {
            t: w * (share if name in WARM_UP and t != "hard" else 1) for t, w in weights.items()
        }
        expected = sum(grown[term] * float(value) for term, value in terms.items())
        np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert all(float(value) != 0 for term, value in terms.items()), terms


def traced(term, given):
    """Return the programs of a term as text, with the constants that they hold."""
    variables = jax.eval_shape(term.init, jax.random.key(0), given)
    programs = [
        jax.make_jaxpr(term.init)(jax.random.key(0), given),
        jax.make_jaxpr(term.apply)(*variables, given),
    ]
    text = [re.sub(r" at 0x[0-9a-f]+", "", str(program)) for program in programs]
    return text, [np.asarray(x).tolist() for program in programs for x in program.consts]


@pytest.mark.parametrize("name", TERMS)
def test_terms_have_the_settings_of_their_authors(name):
    expected = TERMS[name]()
    found = METHODS[name].make(SETUP)
    named = {name: found} if isinstance(found, Term) else {n: t for n, (t, _) in found.items()}
    named.pop("hard", None)
    assert len(named) == len(expected)
    for own, wanted in zip(named.values(), expected, strict=True):
        assert traced(own, inputs(name)) == traced(wanted, inputs(name))


def test_all_terms_are_held_against_their_authors_settings():
    # Two are held against formulas, with the tasks that they are for.
    assert {*TERMS, "scratch", "ifv", "margin-mse"} == set(METHODS) == set(WEIGHTS)


def test_a_scale_leaves_the_weight_of_the_labels():
    once, thrice = (methods.objective_of("dkd", SETUP, scale=s) for s in (1.0, 3.0))
    variables = once.init(jax.random.key(0), inputs())
    (loss, _, metrics), (scaled, _, _) = (
        o.apply(*variables, inputs(), step=60) for o in (once, thrice)
    )
    hard = metrics["loss/hard"][0] / BATCH
    np.testing.assert_allclose(scaled - hard, 3 * (loss - hard), rtol=1e-5)


def test_kd_has_the_temperature_and_the_weight_that_are_asked_for():
    setup, given = SETUP._replace(temperature=2.5, soft_weight=0.3), inputs()
    objective = methods.objective_of("kd", setup)
    loss, _, _ = objective.apply(*objective.init(jax.random.key(0), given), given)
    logits = given.student.logits, given.teacher.logits
    z, v = (np.asarray(x, np.float64) for x in logits)
    p, q = (np.exp(x / 2.5) / np.exp(x / 2.5).sum(-1, keepdims=True) for x in (v, z))
    soft = 2.5**2 * (p * np.log(p / q)).sum(-1)
    hard = np.log(np.exp(z).sum(-1)) - z[np.arange(BATCH), given.batch["label"]]
    np.testing.assert_allclose(loss, np.mean(0.3 * soft + 0.7 * hard), rtol=1e-5)


def test_the_weight_of_kd_moves_over_the_training():
    setup, given = SETUP._replace(soft_weight=0.8, last_soft_weight=0.2), inputs()
    objective = methods.objective_of("kd", setup)
    for step, soft_weight in ((0, 0.8), (50, 0.5), (100, 0.2)):
        loss, _, metrics = objective.apply(
            *objective.init(jax.random.key(0), given), given, step=step
        )
        soft, hard = (np.divide(*metrics[f"loss/{name}"]) for name in ("soft", "hard"))
        np.testing.assert_allclose(loss, soft_weight * soft + (1 - soft_weight) * hard, rtol=1e-6)


def test_methods_that_look_at_features_are_known_as_such():
    for name in METHODS:
        bare = inputs(name)
        bare = bare._replace(
            student=bare.student._replace(features={}), teacher=bare.teacher._replace(features={})
        )
        objective = methods.objective_of(name, SETUP)
        own, theirs = (methods.looks_at_features(name, of_teacher=x) for x in (False, True))
        assert own == theirs or name in ("deit-hard", "deit-soft")
        if own:
            with pytest.raises(ValueError, match=r"captured no feature|looks for 'c'"):
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
        "(f,) = [f for f in dataclasses.fields(d.Settings) if f.name == 'method']; "
        "about = f.metadata['about']; "
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
    needs, given = METHODS[name].needs, inputs(name)
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
