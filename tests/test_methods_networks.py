"""Networks of unlike kinds teach each other by every method that can, and others say why not."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import models, step, teachers
from kdjax.models import NetworkSpec
from kdjax.runs import methods, networks, settings
from kdjax.types import Outputs, TermInputs

CLASSES, BATCH = 5, 4
LOOKING = [
    name for name, method in methods.METHODS.items()
    if methods.looks_at_features(name) and not method.task
]  # fmt: skip
SLOW = pytest.mark.long
UNLIKE = [
    ("wrn_16_1", "vgg8"),  # three stages and four, of other sizes
    pytest.param("wrn_16_2", "shufflenet_v1", marks=SLOW),  # other sizes at every stage
    pytest.param("vgg8", "mobilenet_v2", marks=SLOW),  # no ReLU at the end of a stage
    pytest.param("shufflenet_v2", "vgg8", marks=SLOW),
]


def spec_of(name, size=32):
    return NetworkSpec(name, (), CLASSES, (size, size, 3), (0.5,) * 3, (0.25,) * 3)


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8),
        "label": np.arange(BATCH, dtype=np.int32) % CLASSES,
        "index": np.arange(BATCH, dtype=np.int32),
    }


def with_features(spec):
    return models.build(spec, features=models.build(spec).paths.all)


@functools.cache
def shapes_of(name):
    """Return what a network has and says, as shapes."""
    model = with_features(spec_of(name))
    images = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), np.uint8)

    def both(x):
        variables = model.init(jax.random.key(0), x)
        return variables.params, model.apply(*variables, x, train=False)[0]

    return jax.eval_shape(both, images)


def setup_of(teacher, student, params, num_examples=20):
    return methods.Setup(
        student=models.build(spec_of(student)).paths,
        teacher=models.build(spec_of(teacher)).paths,
        teacher_params=jax.tree.map(lambda x: np.ones(x.shape, np.float32), params),
        num_examples=num_examples,
        num_steps=100,
    )


@pytest.mark.parametrize(("teacher", "student"), UNLIKE)
def test_every_method_works_across_unlike_networks(teacher, student):
    (params, answers), (_, own) = shapes_of(teacher), shapes_of(student)
    setup = setup_of(teacher, student, params)
    width = params["head"]["kernel"].shape[0]
    last = own.features[setup.student.last_map].shape
    projected = jax.ShapeDtypeStruct((*last[:3], width), np.float32)
    own = Outputs(own.logits, {**own.features, "projected": projected})
    fitting_ones = [
        name for name in LOOKING if methods.fits(name, spec_of(student), spec_of(teacher))
    ]
    left_out = {"fsp", "cwd", "deit-hard", "deit-soft"} | (
        {"ofd"} if teacher == "shufflenet_v2" else set()
    )
    assert set(fitting_ones) == {*LOOKING} - left_out
    for name in fitting_ones:
        objective = methods.objective_of(name, setup)

        def loss(batch, own, answers, objective=objective):
            inputs = TermInputs(batch, own, answers, jnp.ones(BATCH, bool))
            variables = objective.init(jax.random.key(0), inputs)
            return objective.apply(*variables, inputs, step=0)[0]

        assert jax.eval_shape(loss, batch_of(32), own, answers).shape == (), name


@pytest.mark.parametrize(
    ("name", "teacher", "student", "message"),
    [
        (
            "fsp",
            "wrn_16_2",
            "wrn_16_1",
            r"wrn_16_1 has \(16, 32, 64\) and wrn_16_2 \(32, ",
        ),
        ("kd+cwd", "vgg8", "resnet8", r"cwd needs maps of the same widths; resnet8 has"),
        ("ofd", "shufflenet_v2", "resnet8", "ofd needs a teacher with BatchNorm"),
        ("at", "mlp", "resnet8", "at needs feature maps"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_a_line(name, teacher, student, message):
    with pytest.raises(ValueError, match=message) as error:
        methods.check(name, spec_of(student), spec_of(teacher))
    assert "\n" not in str(error.value)
    assert not methods.fits(name, spec_of(student), spec_of(teacher))


def test_networks_that_fit():
    assert methods.fits("fsp+cwd", spec_of("resnet8"), spec_of("resnet8"))
    # The last maps of the two are as wide, the earlier ones are not.
    assert methods.fits("cwd", spec_of("resnet8"), spec_of("wrn_16_1"))
    assert networks.stage_widths(spec_of("resnet8")) == (16, 32, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student", "method"),
    [
        ("wrn_16_1", "vgg8", "kd+hint+at+ofd+mgd"),
        ("vgg8", "wrn_16_1", "kd+vid+cat+srrl"),
    ],
)
def test_a_step_across_unlike_networks(teacher, student, method):
    batch = jax.tree.map(jnp.asarray, batch_of(8))
    taught, own = with_features(spec_of(teacher, 8)), with_features(spec_of(student, 8))
    variables = jax.jit(taught.init)(jax.random.key(1), batch["image"])
    objective = methods.objective_of(method, setup_of(teacher, student, variables.params))
    source, optimizer = teachers.frozen(taught, variables), optax.sgd(1e-4)
    outputs = jax.eval_shape(source.apply, source.variables, batch)
    state = jax.jit(
        lambda: step.init_train_state(
            jax.random.key(0), own, objective, optimizer, batch, zeros_like(outputs)
        )
    )()
    before = jax.device_get(state.params["student"])
    run = step.with_teacher(step.make_train_step(own, objective, optimizer), source)
    state, metrics = run(state, batch)
    losses = {name: float(total / count) for name, (total, count) in metrics.items()}
    assert {f"loss/{part}" for part in method.replace("kd", "soft").split("+")} <= set(losses)
    assert all(np.isfinite(value) for value in losses.values())
    after = jax.device_get(state.params["student"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved["stage_1"]))


def zeros_like(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def test_the_command_line_knows_the_networks_of_the_library():
    names = set(typing.get_args(settings.NetworkName))
    assert all(callable(getattr(models, name)) for name in names)
    tables = {"resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8"}
    tables |= {"vgg13", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "cifar_resnet50"}
    assert tables < names
