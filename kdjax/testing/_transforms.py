"""What must not change a loss: compilation, batching, axes, precision. And its derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._extras import needs
from kdjax.testing import _inputs
from kdjax.testing._compare import assert_close
from kdjax.testing._compile import compiled
from kdjax.testing._subject import Subject

with needs("test"):
    import chex


def check_types(subject: Subject, others: list[Subject]) -> None:
    """One value per example, in float32 or wider."""
    name = subject.signature.name
    for one in [subject, *others]:
        for given, expected in ((np.float32, jnp.float32), (jnp.bfloat16, jnp.float32)):
            _check_type(name, one, given, expected)
    with jax.enable_x64(True):
        _check_type(name, subject, np.float64, jnp.float64)


def _check_type(name: str, subject: Subject, given: Any, expected: Any) -> None:
    shape = jax.tree.leaves(subject.student)[0].shape
    words = f"check_loss: {name}, for a student of shape {shape} in {jnp.dtype(given)},"
    try:
        out = jax.eval_shape(subject.fn, *_inputs.as_arrays(subject.args, given))
    except Exception as error:
        raise AssertionError(f"{words} raises {type(error).__name__}: {error}") from error
    assert hasattr(out, "shape"), f"{words} returns {type(out).__name__}, expected an array"
    assert out.shape == subject.batch, (
        f"{words} returns values of shape {out.shape}, expected {subject.batch}: one value per "
        "example, which the caller averages"
    )
    assert out.dtype == expected, (
        f"{words} returns {out.dtype}, expected {jnp.dtype(expected)}: losses are computed in "
        "float32 or wider"
    )


def check_reference(
    subject: Subject,
    others: list[Subject],
    reference: Callable[..., Any],
    rtols: tuple[float, float],
) -> None:
    """Equals the reference."""
    # That an example of classes may come without a batch is what the check of vmap says.
    for one in [subject, *(others[:1] if subject.signature.has_classes else others)]:
        wide = jax.tree.map(_widen, one.args)
        expected = np.asarray(reference(*wide), np.float64)
        assert expected.shape == one.batch, (
            f"the reference returns shape {expected.shape}, expected {one.batch}"
        )
        values = one.answer().values if one is subject else compiled(one.fn)(*one.args)
        assert_close(values, expected, rtols[0], "in float32")
    expected = np.asarray(reference(*jax.tree.map(_widen, subject.args)), np.float64)
    with jax.enable_x64(True):
        exact = subject.exact
        assert_close(exact.values(*exact.leaves), expected, rtols[1], "in float64")


def check_jit(subject: Subject, rtol: float) -> None:
    """The same under jit as without."""
    assert_close(subject.answer().values, subject.eager, rtol, "compiled (left), eager (right)")


def check_low_precision(subject: Subject, rtol: float) -> None:
    """Computes in float32 what it is given in bfloat16."""
    low = _inputs.as_arrays(subject.args, jnp.bfloat16)
    rounded = jax.tree.map(
        lambda x: np.asarray(x, np.float32 if x.dtype == jnp.bfloat16 else None), low
    )
    values = compiled(subject.fn)(*low)
    assert_close(values, subject.answer(rounded).values, rtol, "bfloat16 (left), float32 (right)")


def check_vmap(subject: Subject, rtol: float) -> None:
    """The same for one example at a time, under vmap."""
    axes = tuple(0 if one_each else None for one_each in subject.batched())
    # An example of classes may come without a batch axis, features need one.
    alone = subject.args if subject.signature.has_classes else subject.rows(lambda x: x[:, None])
    values = compiled(jax.vmap(subject.fn, axes))(*_inputs.as_arrays(alone, np.float32))
    expected = subject.answer().values
    assert_close(values.reshape(expected.shape), expected, rtol, "one by one (left)")


def check_axis(subject: Subject, rtol: float) -> None:
    """The classes may be on another axis."""
    moved = _inputs.as_arrays(subject.classes(lambda x: np.moveaxis(x, -1, 0)), np.float32)
    values = compiled(lambda *args: subject.fn(*args, axis=0))(*moved)
    assert_close(values, subject.answer().values, rtol, "axis=0 (left), axis=-1 (right)")


def check_gradients(subject: Subject, order: int, teacher_is_data: bool | None) -> None:
    """Gradients agree with finite differences."""
    with jax.enable_x64(True):
        exact = subject.exact
        of_student = len(jax.tree.leaves(subject.student))
        by_teacher = not teacher_is_data
        if teacher_is_data is None:
            by_teacher = _any(subject.answer().teacher)
        count = len(exact.leaves) if by_teacher else of_student
        if order == 1:
            fn = exact.with_gradient(count)
        else:
            fn = jax.jit(lambda *some: exact.traced(*some, *exact.leaves[count:]))
        modes = ("rev",) if order == 1 else ("fwd", "rev")
        chex.assert_numerical_grads(
            fn, exact.leaves[:count], order=order, atol=1e-7, rtol=1e-5, modes=modes
        )


def _any(tree: Any) -> bool:
    return any(np.any(x) for x in jax.tree.leaves(tree))


def _widen(x: Any) -> Any:
    return np.asarray(x, np.float64) if np.issubdtype(np.asarray(x).dtype, np.floating) else x
