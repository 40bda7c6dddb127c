"""The losses of feature maps: the public harness, sizes, edges, laws, misuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_maps as reference
from every import quick
from jax.extend.core import jaxprs_in_params

from kdjax import losses
from kdjax.losses._numerics import pooling
from kdjax.testing import check_loss

IMAGES, TOKENS, VECTORS = (3, 5, 4, 3), (3, 7, 4), (4, 6)


def pair(student, teacher=None):
    """Draws of two shapes, the teacher's the student's by default."""

    def inputs(rng):
        shapes = (student, teacher or student)
        return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

    return inputs


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


ATTENTION = (losses.attention_transfer_loss, reference.attention_transfer_loss)
SELECTIVITY = (losses.neuron_selectivity_loss, reference.neuron_selectivity_loss)
BOUNDARY = (losses.activation_boundary_loss, reference.activation_boundary_loss)
FACTOR = (losses.factor_transfer_loss, reference.factor_transfer_loss)
CONTEXT = (losses.hierarchical_context_loss, reference.hierarchical_context_loss)
OVERHAUL = (
    functools.partial(losses.overhaul_loss, margin=-0.5),
    functools.partial(reference.overhaul_loss, margin=-0.5),
)
WIDER, OTHER_SIZE = (3, 5, 4, 5), (3, 3, 6, 3)
CASES = [
    (*ATTENTION, IMAGES, OTHER_SIZE),
    (*SELECTIVITY, IMAGES, WIDER),
    (*BOUNDARY, IMAGES, OTHER_SIZE),
    (*FACTOR, IMAGES, OTHER_SIZE),
    (*OVERHAUL, IMAGES, OTHER_SIZE),
    (*CONTEXT, IMAGES, None),
]
# Of the same losses, features of other ranks, and fewer positions than channels.
OTHERS = [
    (*ATTENTION, TOKENS),
    (*SELECTIVITY, (3, 2, 2, 5)),
    (*SELECTIVITY, TOKENS),
    (*BOUNDARY, VECTORS),
    (*FACTOR, VECTORS),
    (*OVERHAUL, VECTORS),
    (*CONTEXT, VECTORS),
]
# The boundary pushes away from zero: the teacher's features themselves may be too small.
NOT_ZERO_AT_EQUALITY = (losses.activation_boundary_loss,)


def name_of(case):
    fn, _, student, teacher = case
    name = getattr(fn, "func", fn).__name__
    return "-".join([name, *map(str, [student, *([teacher] if teacher else [])])])


@pytest.mark.parametrize(("fn", "expected", "student", "teacher"), CASES, ids=map(name_of, CASES))
def test_harness(fn, expected, student, teacher):
    check_loss(
        fn,
        reference=expected,
        inputs=pair(student, teacher),
        zero_at_equality=fn not in NOT_ZERO_AT_EQUALITY,
        rtol=2e-5,
    )


@pytest.mark.parametrize(("fn", "expected", "shape"), OTHERS)
def test_other_shapes(fn, expected, shape):
    """Against the reference, with the gradient along a line against its differences."""
    student, teacher, along = (np.asarray(x, np.float64) for x in drawn(shape, shape, shape))
    with jax.enable_x64(True):
        run = quick(
            jax.value_and_grad(lambda s: (lambda y: (y.sum(), y))(fn(s, teacher)), has_aux=True)
        )
        (_, values), gradient = run(student)
        np.testing.assert_allclose(values, expected(student, teacher), rtol=1e-10)
        (above, _), (below, _) = (run(student + h * along)[0] for h in (1e-4, -1e-4))
    slope = (np.asarray(above) - np.asarray(below)) / 2e-4
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * along), slope, rtol=1e-5)


@pytest.mark.parametrize(("case", "power"), [(ATTENTION, 1), (ATTENTION, 3.0), (FACTOR, 1.5)])
def test_other_powers(case, power):
    """Against the references, finite and without a kink that is not there at features of zero."""
    fn, expected = case
    student, teacher = drawn((2, 3, 2, 4), (2, 3, 2, 4))
    student, teacher = student.at[0, 0].set(0), teacher.at[0, 0, 0].set(0)
    loss = jax.jit(lambda s: fn(s, teacher, power=power))
    expected = expected(np.asarray(student), np.asarray(teacher), power=power)
    np.testing.assert_allclose(loss(student), expected, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(fn(s, teacher, power=power))))(student)
    assert np.all(np.isfinite(gradient))
    change = (loss(student + 1e-3 * teacher) - loss(student - 1e-3 * teacher)) / 2e-3
    along = jnp.sum(gradient * teacher, axis=(1, 2, 3))
    np.testing.assert_allclose(along, change, rtol=2e-2, atol=1e-4)


def test_harness_of_flow():
    def inputs(rng):
        shapes = ((2, 4, 6, 2), (2, 3, 3, 4), (2, 3, 3, 2))
        return tuple(tuple(rng.normal(size=s).astype(np.float32) for s in shapes) for _ in "st")

    check_loss(losses.flow_loss, reference=reference.flow_loss, inputs=inputs)


def test_harness_of_variational_information():
    def inputs(rng):
        student, teacher = pair(WIDER)(rng)
        return student, teacher, (0.5 + rng.uniform(size=5)).astype(np.float32)

    check_loss(
        losses.variational_information_loss,
        reference=reference.variational_information_loss,
        inputs=inputs,
        nonnegative=False,
        zero_at_equality=False,
    )


def test_variance_is_learned():
    """The best variance is the mean squared error, and the loss has its gradient there."""
    mean, teacher = drawn((4, 5, 2), (4, 5, 2))
    error = jnp.mean(jnp.square(mean - teacher), axis=(0, 1))

    def loss(variance):
        return losses.variational_information_loss(mean, teacher, variance).mean()

    np.testing.assert_allclose(jax.grad(loss)(error), 0, atol=1e-6)
    assert np.all(jax.grad(loss)(2 * error) > 0)
    scalar = losses.variational_information_loss(mean, teacher, 0.25)
    np.testing.assert_allclose(
        scalar, reference.variational_information_loss(mean, teacher, 0.25), rtol=1e-5
    )


def test_maps_and_matrices_equal_the_references():
    one, two = drawn((3, 4, 6, 5), (3, 3, 3, 2))
    for power in (1, 2, 3.0):
        got = losses.attention_map(one, power=power)
        np.testing.assert_allclose(got, reference.attention_map(one, power), rtol=1e-5)
        np.testing.assert_allclose(jnp.sum(got**2, axis=(1, 2)), 1, rtol=1e-5)
    got = losses.flow_matrix(one, two)
    np.testing.assert_allclose(got, reference.flow_matrix(one, two), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 4), (1, 1), (5, 6)])
def test_pooling_covers_every_position_evenly(sizes):
    [x] = drawn((2, 5, 6, 3))
    expected = np.stack([reference.pool(one, sizes) for one in x])
    np.testing.assert_allclose(pooling.average_pool(x, sizes), expected, rtol=1e-5, atol=1e-6)


def test_sizes_match_along_each_axis():
    """The peers compare heights only, and fail where the widths differ the other way."""
    first, second = drawn((2, 3, 8, 4), (2, 3, 4, 2))
    assert jax.eval_shape(losses.attention_transfer_loss, first, second).shape == (2,)
    student, teacher = quick(losses.match_sizes)(*drawn((2, 8, 3, 4), (2, 4, 6, 5)))
    assert (student.shape, teacher.shape) == ((2, 4, 3, 4), (2, 4, 3, 5))
    vectors = drawn((2, 4), (2, 6))
    for got, want in zip(losses.match_sizes(*vectors), vectors, strict=True):
        np.testing.assert_array_equal(got, want)


def test_attention_is_of_the_absolute_features():
    """As the paper defines it; it matters at odd powers, where a peer takes f^power."""
    [x] = drawn((2, 3, 3, 4))
    for power in (1, 3):
        attention = quick(losses.attention_map, power=power)
        np.testing.assert_array_equal(attention(x), attention(jnp.abs(x)))
    dead = quick(jax.grad(lambda f: losses.attention_map(f, power=1)[0, 0].sum()))
    np.testing.assert_array_equal(dead(x.at[0, 0, 0, 1].set(0))[0, 0, 0, 1], 0)


def test_attention_is_blind_to_scale():
    student, teacher = drawn((2, 3, 3, 4), (2, 3, 3, 6))
    loss = quick(losses.attention_transfer_loss)
    scaled = loss(1e4 * student, 1e-3 * teacher)
    np.testing.assert_allclose(scaled, loss(student, teacher), rtol=1e-5)


NORMED = (
    losses.attention_transfer_loss,
    losses.neuron_selectivity_loss,
    losses.factor_transfer_loss,
)


@pytest.mark.parametrize("loss", NORMED, ids=lambda fn: fn.__name__)
def test_dead_examples_have_no_gradient(loss):
    student, teacher = drawn((3, 4, 4, 5), (3, 4, 4, 5))
    student = student.at[1].set(0)
    grads = jax.jit(jax.grad(lambda s: loss(s, teacher).sum()))(student)
    assert np.all(np.isfinite(grads))
    assert np.any(grads[0])
    np.testing.assert_array_equal(grads[1], 0)


def test_dead_channels_are_selected_by_nothing():
    student, teacher = drawn((2, 3, 3, 4), (2, 3, 3, 5))
    student = student.at[0, ..., 2].set(0)
    grads = jax.jit(jax.grad(lambda s: losses.neuron_selectivity_loss(s, teacher).sum()))(student)
    assert np.any(grads[0])
    np.testing.assert_array_equal(grads[0, ..., 2], 0)


@pytest.mark.parametrize("shape", [(2, 2, 2, 9), (2, 8, 8, 3)], ids=["positions", "channels"])
def test_selectivity_is_exact_near_equality(shape):
    """Both ways of computing it: the textbook sum of three means loses these digits in float32."""
    student, noise = drawn(shape, shape)
    teacher = student + 1e-3 * noise
    loss = quick(losses.neuron_selectivity_loss)
    expected = reference.neuron_selectivity_loss(np.asarray(student), np.asarray(teacher))
    np.testing.assert_allclose(loss(student, teacher), expected, rtol=2e-3)
    np.testing.assert_array_equal(loss(student, student), 0)


def largest_array(fn, *args):
    """The largest number of elements among all that a function computes."""

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars)
            for inner in jaxprs_in_params(eqn.params):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(fn)(*args).jaxpr))


def test_selectivity_takes_the_smaller_matrix():
    big = jax.ShapeDtypeStruct((4, 32, 32, 16), jnp.float32)
    assert largest_array(losses.neuron_selectivity_loss, big, big) <= 4 * 1024 * 16
    wide = jax.ShapeDtypeStruct((4, 2, 2, 512), jnp.float32)
    assert largest_array(losses.neuron_selectivity_loss, wide, wide) <= 4 * 4 * 512


def test_selectivity_sees_the_set_of_channels():
    """Not their order, sign, scale or number: each channel twice is the same set."""
    student, teacher = drawn((2, 3, 3, 4), (2, 3, 3, 5))
    loss = quick(losses.neuron_selectivity_loss)
    changed = jnp.concatenate([student[..., ::-1], -3 * student], axis=-1)
    np.testing.assert_allclose(loss(changed, teacher), loss(student, teacher), rtol=1e-4)


def test_boundary_is_satisfied_beyond_the_margin():
    teacher = jnp.array([[3.0, -1.0, 0.0]])
    loss = quick(losses.activation_boundary_loss, margin=2.0)
    far = jnp.array([[2.0, -2.0, -5.0]])
    np.testing.assert_array_equal(loss(far, teacher), 0)
    np.testing.assert_allclose(loss(-far, teacher), 16 + 16 + 49)


def test_overhaul_leaves_negative_neurons_alone_below_their_target():
    student, teacher = jnp.array([[-9.0, -0.5, 1.0, -9.0]]), jnp.array([[-5.0, -0.2, 2.0, 1.0]])
    margin = jnp.full(4, -1.0)
    grads = quick(jax.grad(lambda s: losses.overhaul_loss(s, teacher, margin).sum()))(student)
    np.testing.assert_allclose(grads, [[0, 0, -2, -20]])


def test_margin_is_the_mean_of_the_negative_part():
    scale = np.array([1.0, -2.0, 0.3, 0.5, 1.0, 1.5])
    bias = np.array([0.0, 1.0, -3.0, 8.0, 3.05, -40.0])
    got = quick(losses.batch_norm_margin)(np.float32(scale), np.float32(bias))
    np.testing.assert_allclose(got, reference.batch_norm_margin(scale, bias), rtol=1e-4)


def test_margin_of_a_constant_channel():
    got = quick(losses.batch_norm_margin)(jnp.zeros(3), jnp.array([-2.0, 0.0, 2.0]))
    np.testing.assert_array_equal(got, [-2, 0, 0])


def test_context_of_a_map_that_is_not_square():
    """As the authors' code: levels are measured by the height, and a short width is read twice."""
    student, teacher = drawn((2, 8, 3, 2), (2, 8, 3, 2))
    loss = quick(losses.hierarchical_context_loss)
    got = loss(student, teacher)
    expected = reference.hierarchical_context_loss(np.asarray(student), np.asarray(teacher))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    wide = [jnp.swapaxes(x, 1, 2) for x in (student, teacher)]
    assert np.all(np.abs(loss(*wide) - got) > 1e-3)


def test_context_moves_its_weights_up_where_levels_are_left_out():
    student, teacher = drawn((2, 2, 2, 3), (2, 2, 2, 3))
    gap = np.asarray(student - teacher)
    expected = (np.mean(gap**2, axis=(1, 2, 3)) + np.mean(gap.mean((1, 2)) ** 2, axis=1) / 2) / 1.5
    got = quick(losses.hierarchical_context_loss)(student, teacher)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    flat = quick(losses.hierarchical_context_loss, levels=())(student, teacher)
    np.testing.assert_allclose(flat, quick(losses.hint_loss)(student, teacher), rtol=1e-6)


X, Y = jnp.zeros((4, 3, 3, 2)), jnp.zeros((4, 3, 3, 5))
MISUSE = [
    (ValueError, "power is 0.5", lambda: losses.attention_map(X, power=0.5)),
    (TypeError, "power is '2'", lambda: losses.attention_transfer_loss(X, X, power="2")),
    (
        ValueError,
        "attention_transfer_loss: student_features has shape (4, 2), expected "
        "[batch, positions..., channels]",
        lambda: losses.attention_transfer_loss(X[:, 0, 0], X[:, 0, 0]),
    ),
    (
        ValueError,
        "neuron_selectivity_loss: teacher_features has shape (1, 3, 3, 2), expected "
        "[batch, ..., channels] with the number of axes and examples of student_features, "
        "(4, 3, 3, 2)",
        lambda: losses.neuron_selectivity_loss(X, X[:1]),
    ),
    (
        ValueError,
        "overhaul_loss: teacher_features has shape (4, 3, 3, 5), expected the channels of "
        "student_features, (4, 3, 3, 2)",
        lambda: losses.overhaul_loss(X, Y, -1.0),
    ),
    (ValueError, "overhaul_loss: margin is 1.0", lambda: losses.overhaul_loss(X, X, 1.0)),
    (
        ValueError,
        "overhaul_loss: margin has shape (5,), expected () or (2,), one for each channel",
        lambda: losses.overhaul_loss(X, X, jnp.zeros(5)),
    ),
    (ValueError, "margin is 0", lambda: losses.activation_boundary_loss(X, X, margin=0)),
    (
        ValueError,
        "factor_transfer_loss: teacher_factors has shape (4, 3, 3, 5), expected the channels",
        lambda: losses.factor_transfer_loss(X, Y),
    ),
    (
        ValueError,
        "flow_loss: teacher_features has 1 stages and student_features 2",
        lambda: losses.flow_loss([X, X], [X]),
    ),
    (
        ValueError,
        "flow_matrix: second_features has shape (1, 3, 3, 2)",
        lambda: losses.flow_matrix(X, X[:1]),
    ),
    (
        ValueError,
        "variational_information_loss: teacher_features has shape (4, 3, 3, 5)",
        lambda: losses.variational_information_loss(X, Y, 1.0),
    ),
    (
        ValueError,
        "variational_information_loss: variance is 0.0",
        lambda: losses.variational_information_loss(X, X, 0.0),
    ),
    (
        ValueError,
        "hierarchical_context_loss: levels is 0",
        lambda: losses.hierarchical_context_loss(X, X, levels=(4, 0)),
    ),
    (
        TypeError,
        "hierarchical_context_loss: levels is 2.0",
        lambda: losses.hierarchical_context_loss(X, X, levels=(2.0,)),
    ),
    (
        TypeError,
        "match_sizes: teacher_features has dtype int32",
        lambda: losses.match_sizes(X, jnp.zeros((4, 3, 3, 2), jnp.int32)),
    ),
    (ValueError, "batch_norm_margin: bias has shape", lambda: losses.batch_norm_margin(X, Y)),
]


@pytest.mark.parametrize(("kind", "words", "call"), MISUSE, ids=[m[1][:40] for m in MISUSE])
def test_misuse_is_explained(kind, words, call):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
