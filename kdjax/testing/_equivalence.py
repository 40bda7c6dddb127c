"""What must not change a loss: compilation, batching, axes, precision. And its derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from kdjax._extras import needs
from kdjax.testing._compare import assert_close
from kdjax.testing._compile import compiled, known
from kdjax.testing._loss import Loss, LossInputs, rows
from kdjax.testing._probe import cast

with needs("test"):
    import chex


def check_types(loss: Loss) -> None:
    """One value per example, in float32 or wider."""
    for inputs in (loss.inputs, *loss.others):
        _check_type(loss, inputs, np.float32, jnp.float32)
    _check_type(loss, loss.inputs, jnp.bfloat16, jnp.float32)
    with jax.enable_x64(True):
        _check_type(loss, loss.inputs, np.float64, jnp.float64)


def _check_type(loss: Loss, inputs: LossInputs, given: Any, expected: Any) -> None:
    name, shape = loss.signature.name, jax.tree.leaves(inputs.student)[0].shape
    words = f"check_loss: {name}, for a student of shape {shape} in {jnp.dtype(given)},"
    try:
        out = jax.eval_shape(loss.values, cast(inputs, given))
    except Exception as error:
        raise AssertionError(f"{words} raises {type(error).__name__}: {error}") from error
    assert hasattr(out, "shape"), f"{words} returns {type(out).__name__}, expected an array"
    assert out.shape == loss.batch(inputs), (
        f"{words} returns values of shape {out.shape}, expected {loss.batch(inputs)}: one value "
        "per example, which the caller averages"
    )
    assert out.dtype == expected, (
        f"{words} returns {out.dtype}, expected {jnp.dtype(expected)}: losses are computed in "
        "float32 or wider"
    )


def check_reference(loss: Loss) -> None:
    """Equals the reference."""
    # The check of vmap looks at a single example of classes.
    others = loss.others[:1] if loss.signature.has_classes else loss.others
    for inputs in (loss.inputs, *others):
        values = loss.answer().values if inputs is loss.inputs else compiled(loss.values)(inputs)
        assert_close(values, _expected(loss, inputs), loss.rtol, "in float32")
    values, _ = loss.in_double(loss.inputs.student, loss.inputs.teacher)
    assert_close(values, _expected(loss, loss.inputs), loss.rtol64, "in float64")


def _expected(loss: Loss, inputs: LossInputs) -> np.ndarray:
    assert loss.reference is not None
    expected = np.asarray(loss.reference(*jax.tree.map(_widen, loss.args(inputs))), np.float64)
    assert expected.shape == loss.batch(inputs), (
        f"the reference returns shape {expected.shape}, expected {loss.batch(inputs)}"
    )
    return expected


def check_jit(loss: Loss) -> None:
    """The same under jit as without."""
    loss.probe.assert_close(loss.answer().values, loss.eager, "compiled (left), eager (right)")


def check_low_precision(loss: Loss) -> None:
    """Computes in float32 what it is given in bfloat16."""
    low = cast(loss.inputs, jnp.bfloat16)
    rounded = loss.answer(cast(low, np.float32))
    values = compiled(loss.values)(low)
    loss.probe.assert_close(values, rounded.values, "bfloat16 (left), float32 (right)")


def check_vmap(loss: Loss) -> None:
    """The same for one example at a time, under vmap."""
    inputs = jax.device_put(cast(loss.inputs, np.float32))
    expected = loss.answer().values

    def alone(i: Any) -> Any:
        # An example of classes may come without a batch axis, features need one.
        return loss.values(
            rows(inputs, lambda x: x[i] if loss.signature.has_classes else x[i, None])
        )

    values = np.asarray(compiled(jax.vmap(alone))(np.arange(len(inputs.mask))))
    loss.probe.assert_close(values.reshape(expected.shape), expected, "one by one (left)")


def check_axis(loss: Loss) -> None:
    """The classes may be on another axis."""
    moved = loss.classes(lambda x: np.moveaxis(x, -1, 0))
    values = known(lambda x: loss.values(x, axis=0), cast(moved, np.float32))
    loss.probe.assert_close(values, loss.eager, "axis=0 (left), axis=-1 (right)")


def check_gradients(loss: Loss) -> None:
    """Gradients agree with finite differences."""
    by_teacher = not loss.teacher_is_data
    if loss.teacher_is_data is None:
        by_teacher = any(map(np.any, jax.tree.leaves(loss.answer().teacher)))
    _check_once(loss, by_teacher=by_teacher)
    if loss.order == 1:
        return
    with jax.enable_x64(True):
        inputs = cast(loss.inputs, np.float64)
        fn, leaves = _by_leaves(loss, inputs, by_teacher=by_teacher)
        chex.assert_numerical_grads(jax.jit(fn), leaves, order=loss.order, atol=1e-7, rtol=1e-5)


def _check_once(loss: Loss, *, by_teacher: bool, step: float = 1e-4) -> None:
    """Hold one drawn direction, seen through drawn weights of the values, against differences."""
    rng, inputs = np.random.default_rng(3), loss.inputs
    start, width = (inputs.student, inputs.teacher), (1.0, float(by_teacher))
    along = tuple(
        jax.tree.map(lambda x, w=w: w * rng.normal(size=np.shape(x)), side)
        for side, w in zip(start, width, strict=True)
    )
    weights = rng.normal(size=loss.batch(inputs))
    above, below = (
        loss.in_double(*jax.tree.map(lambda x, d, h=h: x + h * d, start, along))[0]
        for h in (step, -step)
    )
    _, gradients = loss.in_double(*start, weights)
    parts = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradients, along)
    slope, atol = sum(jax.tree.leaves(parts)), 1e-7 * np.size(jax.tree.leaves(start)[0])
    expected = np.sum(weights * (above - below)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=atol)


def _by_leaves(
    loss: Loss, inputs: LossInputs, *, by_teacher: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the loss as a function of the leaves of the student, and of the teacher, and them.

    Traced once and for all: `chex.assert_numerical_grads` replaces `stop_gradient` by ones while
    it runs, which would turn the teacher into another one.
    """
    moving = {"student": inputs.student} | ({"teacher": inputs.teacher} if by_teacher else {})
    leaves, tree = jax.tree.flatten(moving)

    def values(*leaves: Any) -> Any:
        return loss.values(inputs._replace(**jax.tree.unflatten(tree, leaves)))

    program = jaxpr_as_fun(jax.make_jaxpr(values)(*leaves))
    return lambda *leaves: program(*leaves)[0], tuple(leaves)


def _widen(x: Any) -> Any:
    return np.asarray(x, np.float64) if np.issubdtype(np.asarray(x).dtype, np.floating) else x
