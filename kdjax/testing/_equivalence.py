"""What must not change a loss: compilation, batching, axes, precision. And its derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._extras import needs
from kdjax.testing import _drawing
from kdjax.testing._compare import assert_close
from kdjax.testing._compile import compiled
from kdjax.testing._subject import Subject

with needs("test"):
    import chex


def check_types(subject: Subject) -> None:
    """One value per example, in float32 or wider."""
    name = subject.signature.name
    for one in (subject, *subject.others):
        for given, expected in ((np.float32, jnp.float32), (jnp.bfloat16, jnp.float32)):
            _check_type(name, one, given, expected)
    with jax.enable_x64(True):
        _check_type(name, subject, np.float64, jnp.float64)


def _check_type(name: str, subject: Subject, given: Any, expected: Any) -> None:
    shape = jax.tree.leaves(subject.student)[0].shape
    words = f"check_loss: {name}, for a student of shape {shape} in {jnp.dtype(given)},"
    try:
        out = jax.eval_shape(subject.fn, *_drawing.as_arrays(subject.args, given))
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


def check_reference(subject: Subject) -> None:
    """Equals the reference."""
    reference, options = subject.options.reference, subject.options
    assert reference is not None
    # The check of vmap looks at a single example of classes.
    others = subject.others[:1] if subject.signature.has_classes else subject.others
    for one in (subject, *others):
        expected = np.asarray(reference(*jax.tree.map(_widen, one.args)), np.float64)
        assert expected.shape == one.batch, (
            f"the reference returns shape {expected.shape}, expected {one.batch}"
        )
        values = one.answer().values if one is subject else compiled(one.fn)(*one.args)
        assert_close(values, expected, options.rtol, "in float32")
    expected = np.asarray(reference(*jax.tree.map(_widen, subject.args)), np.float64)
    with jax.enable_x64(True):
        exact = subject.exact
        assert_close(exact.values(*exact.leaves), expected, options.rtol64, "in float64")


def check_jit(subject: Subject) -> None:
    """The same under jit as without."""
    subject.assert_close(subject.answer().values, subject.eager, "compiled (left), eager (right)")


def check_low_precision(subject: Subject) -> None:
    """Computes in float32 what it is given in bfloat16."""
    low = _drawing.as_arrays(subject.args, jnp.bfloat16)
    rounded = jax.tree.map(
        lambda x: np.asarray(x, np.float32 if x.dtype == jnp.bfloat16 else None), low
    )
    values = compiled(subject.fn)(*low)
    subject.assert_close(values, subject.answer(rounded).values, "bfloat16 (left), float32 (right)")


def check_vmap(subject: Subject) -> None:
    """The same for one example at a time, under vmap."""
    axes = tuple(0 if one_each else None for one_each in subject.batched())
    # An example of classes may come without a batch axis, features need one.
    alone = subject.args if subject.signature.has_classes else subject.rows(lambda x: x[:, None])
    values = compiled(jax.vmap(subject.fn, axes))(*_drawing.as_arrays(alone, np.float32))
    expected = subject.answer().values
    subject.assert_close(values.reshape(expected.shape), expected, "one by one (left)")


def check_axis(subject: Subject) -> None:
    """The classes may be on another axis."""
    moved = _drawing.as_arrays(subject.classes(lambda x: np.moveaxis(x, -1, 0)), np.float32)
    values = compiled(lambda *args: subject.fn(*args, axis=0))(*moved)
    subject.assert_close(values, subject.answer().values, "axis=0 (left), axis=-1 (right)")


def check_gradients(subject: Subject) -> None:
    """Gradients agree with finite differences."""
    order, teacher_is_data = subject.options.order, subject.options.teacher_is_data
    with jax.enable_x64(True):
        exact = subject.exact
        of_student = len(jax.tree.leaves(subject.student))
        by_teacher = not teacher_is_data
        if teacher_is_data is None:
            by_teacher = any(map(np.any, jax.tree.leaves(subject.answer().teacher)))
        count = len(exact.leaves) if by_teacher else of_student
        if order == 1:
            fn = exact.with_gradient(count)
        else:
            fn = jax.jit(lambda *some: exact.traced(*some, *exact.leaves[count:]))
        modes = ("rev",) if order == 1 else ("fwd", "rev")
        chex.assert_numerical_grads(
            fn, exact.leaves[:count], order=order, atol=1e-7, rtol=1e-5, modes=modes
        )


def _widen(x: Any) -> Any:
    return np.asarray(x, np.float64) if np.issubdtype(np.asarray(x).dtype, np.floating) else x
