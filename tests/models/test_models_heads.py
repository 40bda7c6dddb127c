"""Class activation maps, and a student under its teacher's classifier, as its authors have it."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses, models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model, Outputs, Variables


@functools.cache
def tiny():
    """A network of one convolution and a linear classifier, and its variables for 8x8 images."""
    model = models.resnet8(5, features=("stage_3",))
    return model, jax.jit(model.init)(jax.random.key(0), images())


def images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 8, 8, 3)), jnp.float32)


def test_the_mean_of_class_maps_is_the_logits():
    model, variables = tiny()
    with_maps = models.with_class_maps(model, feature="stage_3")
    apply = jax.jit(lambda v: with_maps.apply(*v, images(), train=False)[0])
    outputs = apply(variables)
    assert outputs.features["class_maps"].shape == (4, 2, 2, 5)
    means = jnp.mean(outputs.features["class_maps"], axis=(1, 2))
    np.testing.assert_allclose(means, outputs.logits, rtol=1e-4, atol=1e-5)

    def total(params):
        return jnp.sum(jnp.square(apply(variables._replace(params=params)).features["class_maps"]))

    gradient = jax.grad(total)(variables.params)
    assert np.any(gradient["head"]["kernel"])
    assert np.any(gradient["stem"]["kernel"])


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def projector_params(arrays, prefix):
    layers = {"reduce": 0, "mix": 3, "expand": 6}
    params = {}
    for name, i in layers.items():
        kernel = arrays[f"{prefix}transfer.{i}.weight"]
        params[name] = {"kernel": np.transpose(kernel, (2, 3, 1, 0))}
        scale, bias = (arrays[f"{prefix}transfer.{i + 1}.{kind}"] for kind in ("weight", "bias"))
        params[f"{name}_norm"] = {"scale": scale, "bias": bias}
    return params


@pytest.mark.parametrize("entry", golden.cases("SimKD/SimKD"))
def test_simkd(entry):
    """The student here is its feature map; the classifier reads the projected map's mean."""
    with jax.enable_x64(True):
        arrays = golden.load(entry)
        student_map, teacher_map = (
            nhwc(arrays[f"inputs/{whose}_feat"]) for whose in ("student", "teacher")
        )
        given = Model(
            lambda key, x: Variables({}, {}),
            lambda params, state, x, *, train, key=None: (Outputs(x[:, 0, 0], {"map": x}), state),
        )
        classifier = {
            "kernel": arrays["inputs/teacher_cls_weight"].T,
            "bias": arrays["inputs/teacher_cls_bias"],
        }
        size = teacher_map.shape[1:3]
        model = models.simkd(
            given, classifier, feature="map", size=size, factor=entry["hyper"]["factor"]
        )
        state = model.init(jax.random.key(0), student_map).state

        def loss(x, projector):
            params = {"student": {}, "projector": projector}
            outputs, _ = model.apply(params, state, x, train=True)
            values = losses.projected_feature_loss(outputs.features["projected"], teacher_map)
            return jnp.mean(values), outputs.logits

        params = projector_params(arrays, "params/")
        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (value, logits), (by_student, by_params) = run(student_map, params)
        golden.assert_close(value, arrays["output/loss"], entry["rtol"])
        golden.assert_close(logits, arrays["output/pred_logits"], entry["rtol"])
        expected = nhwc(arrays["grad/inputs/student_feat"])
        golden.assert_close(by_student, expected, entry["rtol"])
        for got, want in zip(
            jax.tree.leaves(by_params),
            jax.tree.leaves(projector_params(arrays, "grad/params/")),
            strict=True,
        ):
            golden.assert_close(got, want, entry["rtol"])


def test_simkd_trains_all_but_the_classifier_and_the_teacher_stays_whole():
    teacher_model, variables = tiny()
    classifier = variables.params["head"]
    before = jax.tree.map(np.array, variables)
    student = models.simkd(
        models.resnet8(5, features=("stage_2",)), classifier, feature="stage_2", size=(2, 2)
    )
    teacher = teachers.frozen(teacher_model, variables)
    objective = combine(
        {"simkd": terms.of(losses.projected_feature_loss, student="projected", teacher="stage_3")},
        {"simkd": 1.0},
    )
    batch, optimizer = {"image": images()}, optax.sgd(0.1)
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(1), student, objective, optimizer, batch, outputs)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    start, statistics = jax.tree.map(np.array, (state.params["student"], state.model_state))
    for _ in range(2):
        state, metrics = run(state, batch)
    trained = state.params["student"]
    assert set(trained) == {"projector", "student"}
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), trained, start)
    assert all(jax.tree.leaves(moved["projector"]))
    assert moved["student"]["stem"]["kernel"]
    assert not any(jax.tree.leaves(moved["student"]["head"]))
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(state.model_state["classifier"][name], classifier[name])
    assert not np.array_equal(
        *(jax.tree.leaves(s["projector"])[0] for s in (state.model_state, statistics))
    )
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, variables))
    assert np.isfinite(metrics["loss"][0])


def test_simkd_evaluates_without_changing_its_state():
    teacher_model, variables = tiny()
    student = models.simkd(teacher_model, variables.params["head"], feature="stage_3")
    own = jax.jit(student.init)(jax.random.key(2), images())
    outputs, state = student.apply(*own, images(), train=False)
    assert state is own.state
    assert outputs.logits.shape == (4, 5)
    assert outputs.features["projected"].shape == (4, 2, 2, 64)
    assert set(outputs.features) == {"stage_3", "projected"}
    kernels = {k: v["kernel"].shape for k, v in own.params["projector"].items() if "kernel" in v}
    assert kernels == {
        "reduce": (1, 1, 64, 32),
        "mix": (3, 3, 32, 32),
        "expand": (1, 1, 32, 64),
    }


def test_misuse_is_explained():
    model, variables = tiny()
    head = variables.params["head"]
    with pytest.raises(ValueError, match="simkd: factor is 0"):
        models.simkd(model, head, feature="stage_3", factor=0)
    with pytest.raises(ValueError, match="simkd: classifier has"):
        models.simkd(model, {"kernel": head["kernel"], "bias": jnp.zeros(3)}, feature="stage_3")
    with pytest.raises(ValueError, match="simkd: the network captures no feature 'stage_2'"):
        models.simkd(model, head, feature="stage_2").init(jax.random.key(0), images())
    missing = models.with_class_maps(model, feature="stage_3", head=("classifier",))
    with pytest.raises(ValueError, match="with_class_maps: the parameters have nothing at class"):
        missing.apply(*variables, images(), train=False)
