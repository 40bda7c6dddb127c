"""What holds of every public function: types, labels, empty batches, meshes, wrong numbers."""

import functools
import inspect

import every
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdjax import losses
from kdjax.heads import TopK

FLOATS = [jnp.bfloat16, jnp.float16, jnp.float32] * 2
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def arguments(name):
    return jax.tree.map(np.asarray, every.drawn(name, np.random.default_rng(0)))


def of_examples(change):
    """Change what holds one entry for each example, and leave the rest."""
    return lambda x: change(x) if x.ndim and len(x) == every.BATCH else x


def with_gradient(name, args, **hyper):
    """What a function returns, and the gradient of the sum of its numbers by the first argument."""

    def total(first):
        out = getattr(losses, name)(first, *args[1:], **every.REQUIRED.get(name, {}), **hyper)
        leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        finite = (jnp.where(jnp.isneginf(x), 0, x).astype(jnp.float32) for x in leaves)
        return sum(map(jnp.sum, finite)), out

    grad, out = jax.grad(total, has_aux=True)(args[0])
    return out, grad


@functools.cache
def answer_shapes(name):
    return jax.eval_shape(functools.partial(with_gradient, name), arguments(name))[0]


@pytest.mark.parametrize("name", every.NAMES)
def test_no_type_is_promoted_in_silence(name):
    """Traced only: what strict promotion refuses, it refuses then."""
    args = [
        jax.tree.map(lambda x, d=dtype: jnp.asarray(x, d if x.dtype == np.float32 else None), x)
        for x, dtype in zip(arguments(name), FLOATS, strict=False)
    ]
    with jax.numpy_dtype_promotion("strict"):
        _, grad = jax.eval_shape(functools.partial(with_gradient, name), args)
    assert {x.dtype for x in jax.tree.leaves(grad)} == {jnp.dtype(FLOATS[0])}


@pytest.mark.parametrize("name", every.NAMES)
def test_an_empty_batch_has_an_empty_answer(name):
    none = jax.tree.map(of_examples(lambda x: x[:0]), arguments(name))
    some = answer_shapes(name)
    out, grad = jax.eval_shape(functools.partial(with_gradient, name), none)
    assert jax.tree.map(jnp.shape, grad) == jax.tree.map(jnp.shape, none[0])
    shapes = jax.tree.map(of_examples(lambda x: x.update(shape=(0, *x.shape[1:]))), some)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, shapes)


@functools.cache
def over_eight(name):
    """An explicit mesh, and the arguments on it: on every device, and split over the batch."""
    mesh = jax.make_mesh((8,), ("data",))

    def put(x, *names):
        return jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec(*names)))

    with jax.set_mesh(mesh):
        whole = jax.tree.map(put, arguments(name))
        return mesh, whole, jax.tree.map(of_examples(lambda x: put(x, "data")), whole)


def relates_examples(name):
    return "mask" in inspect.signature(getattr(losses, name)).parameters


@pytest.mark.parametrize("name", every.NAMES)
def test_axes_of_the_mesh_may_be_explicit(name):
    """Traced with gradients; values come back split as the examples are."""
    run, (mesh, *placed) = functools.partial(with_gradient, name), over_eight(name)
    with jax.set_mesh(mesh):
        _, (answer, _) = (jax.eval_shape(run, args) for args in placed)
    first = jax.tree.leaves(answer)[0]
    assert len(first.shape) == 0 or first.shape[0] != 8 or first.sharding.spec[0] == "data"


# Of the others each example is a program of its own, as `check_loss` sees under vmap.
APART = [
    pytest.param(name, marks=[] if relates_examples(name) else pytest.mark.slow)
    for name in every.NAMES
]


@pytest.mark.parametrize("name", APART)
def test_numbers_are_the_same_over_explicit_axes(name):
    run, (mesh, _, split) = functools.partial(with_gradient, name), over_eight(name)
    with jax.set_mesh(mesh):
        got = jax.jit(run, compiler_options=QUICK)(split)
    expected = jax.jit(run, compiler_options=QUICK)(arguments(name))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), got, expected)


@pytest.mark.parametrize("names", [("data", None), ("data", "tensor")])
def test_a_teachers_largest_logits_over_explicit_axes(names):
    r = np.random.default_rng(0)
    student, values = (r.normal(size=(8, n)).astype(np.float32) for n in (6, 2))
    classes = np.stack([np.arange(8) % 6, (np.arange(8) + 2) % 6], axis=-1)

    where = np.arange(6) != 2

    def loss(student, values, classes):
        return losses.soft_target_loss(student, TopK(values, classes), where=where).sum()

    run = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    expected, mesh = run(student, values, classes), jax.make_mesh((4, 2), ("data", "tensor"))
    with jax.set_mesh(mesh):
        put = [
            jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec(*n)))
            for x, n in zip((student, values, classes), (names, ("data",), ("data",)), strict=True)
        ]
        got = run(*put)
    assert got[1].sharding.spec == PartitionSpec(*names)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


@pytest.mark.parametrize("name", every.NAMES)
def test_what_is_nan_in_student_or_teacher_is_nan_in_the_value(name):
    """Where the value is finite and the gradient is not, nobody sees why a training went bad."""
    loss = functools.partial(getattr(losses, name), **every.REQUIRED.get(name, {}))
    run = jax.jit(loss, compiler_options=QUICK)
    # The teacher's at classes that the student's largest do not name is not read.
    last = 1 if name == "top_k_log_probs" else None
    for at, x in enumerate(arguments(name)[:last]):
        if isinstance(x, np.ndarray) and x.dtype == np.float32 and len(x.shape) > 0:
            args, wrong = arguments(name), np.array(x)
            wrong[(2, *(0,) * (x.ndim - 1))] = np.nan
            leaves = jax.tree.leaves(run(*args[:at], wrong, *args[at + 1 :]))
            numbers = [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]
            rows = [y[2] if y.shape[:1] == x.shape[:1] else y for y in numbers]
            assert any(np.isnan(row).any() for row in rows), at


def test_labels_of_any_integers_are_the_classes_they_say():
    """In 8 bits one more than 255 is 0: 300 classes, with labels on both sides of 128 and 44."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 44, 100, 127])
    logits = [3 * rng.normal(size=(4, 300)).astype(np.float32) for _ in range(2)]
    maps = [rng.normal(size=(4, 1, 1, 5)).astype(np.float32) for _ in range(2)]
    names = sorted(every.TAKES_LABELS)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(labels):
        answers = {}
        for name in names:
            count = sum(p.default is p.empty for p in parameters_of(name)) - 1
            if name == "intra_class_variation_loss":
                args, hyper = (*maps, labels[:, None, None]), {"num_classes": 300}
            else:
                args, hyper = (*logits[:count], labels), {}
            answers[name] = getattr(losses, name)(*args, **hyper)
        return answers

    expected = run(labels.astype(np.int32))
    for name, values in run(labels.astype(np.uint8)).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    for dtype in (np.int8, np.int16, np.uint16, np.uint32, np.int64):
        values = losses.cross_entropy(logits[0], labels.astype(dtype))
        np.testing.assert_allclose(values, expected["cross_entropy"], rtol=1e-6)
    nll = -np.take_along_axis(every.log_softmax(np.float64(logits[0])), labels[:, None], 1)[:, 0]
    np.testing.assert_allclose(expected["cross_entropy"], nll, rtol=1e-5)


# What a hyper-parameter may not be, where it may be negative or below 1; None: anything.
WRONG = {
    "log_normalizer": np.inf,
    "overhaul_loss.margin": 1.0,
    # They scale a gradient, and no value.
    "reverse_gradient.scale": None,
    "curriculum_temperature.strength": None,
}
RIGHT = {
    "confidence_quantile": 1.0,
    "interpolation": 0.4,
    "log_normalizer": 1.0,
    "margin": -0.5,
    "temperature": 2.0,
    "teacher_temperature": 2.0,
    "variance": 1.0,
}


def parameters_of(name):
    return inspect.signature(getattr(losses, name)).parameters.values()


def numbers_of(name):
    """The hyper-parameters of a function that are real numbers, each with one out of its range."""
    numbers = [p.name for p in parameters_of(name) if str(p.annotation).startswith("float")]
    found = {key: WRONG.get(f"{name}.{key}", WRONG.get(key, -1.0)) for key in numbers}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("name", [name for name in every.NAMES if numbers_of(name)])
def test_numbers_out_of_range_are_refused_where_they_are_known_and_nan_where_not(name):
    fn, wrong = getattr(losses, name), numbers_of(name)
    names = [p.name for p in parameters_of(name)]
    required = {**every.REQUIRED.get(name, {}), **dict(zip(names, arguments(name), strict=False))}
    defaults = {p.name: p.default for p in parameters_of(name)}
    given = {
        key: value
        for key, value in defaults.items()
        if value not in (None, inspect.Parameter.empty)
    }
    right = {**RIGHT, **given}

    for key, value in wrong.items():
        for kind in (float, np.float64, np.array, jnp.array):
            with pytest.raises(ValueError, match=rf"{name}: {key} is {value}, expected in"):
                fn(**{**required, key: kind(value)})

    # One lane for each, in which it alone is wrong.
    keys = list(wrong)
    lanes = {
        key: np.float32([wrong[key] if k == key else right[key] for k in keys]) for key in keys
    }
    alone = jax.vmap(lambda lanes: fn(**{**required, **lanes}))
    answer = jax.jit(alone, compiler_options=QUICK)(lanes)
    for x in jax.tree.leaves(answer):
        assert not jnp.issubdtype(x.dtype, jnp.floating) or np.all(np.isnan(x)), (keys, x)


def test_a_reversed_gradient_of_a_scale_out_of_range_is_nan():
    scaled = jax.grad(lambda x, scale: losses.reverse_gradient(x, scale))
    assert np.isnan(jax.jit(scaled)(1.0, -1.0))


OF_ONE = ("logit_mse_loss", "logit_distance_loss", "sigmoid_kd_loss", "binary_cross_entropy")
OF_CLASSES = [n for n in every.NAMES if "axis" in inspect.signature(getattr(losses, n)).parameters]


@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name not in OF_ONE])
def test_one_class_alone_is_refused(name):
    args = jax.tree.map(of_examples(lambda x: x[..., :1] if x.ndim == 2 else x), arguments(name))
    with pytest.raises(
        ValueError, match=r"has shape \(8, 1\), one class on axis -1.* take sigmoid_kd"
    ):
        getattr(losses, name)(*args, **every.REQUIRED.get(name, {}))


def test_both_logits_of_a_sigmoid_are_its_binary_divergence():
    rng = np.random.default_rng(0)
    z, v = (3 * rng.normal(size=8).astype(np.float32) for _ in range(2))
    q, p = (1 / (1 + np.exp(-np.float64(x) / 4)) for x in (z, v))
    expected = 16 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    pair = (jnp.stack([jnp.zeros(8), x], -1) for x in (z, v))
    np.testing.assert_allclose(losses.soft_target_loss(*pair), expected, rtol=1e-5)


def test_one_real_number_may_be_regressed():
    x = jnp.array([[1.0], [3.0]])
    np.testing.assert_allclose(losses.logit_mse_loss(x, x + 2), [4, 4])
