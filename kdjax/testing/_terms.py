"""`check_term`: what every term of an objective must satisfy."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import metrics
from kdjax.testing._compare import Checks, assert_close, assert_finite, assert_zero, numbers
from kdjax.testing._compile import compiled
from kdjax.testing._term_inputs import term_inputs
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def check_term(
    term: Term,
    inputs: TermInputs | None = None,
    *,
    learns: bool | None = None,
    remembers: bool | None = None,
    name: str = "the term",
    student_has_gradient: bool = True,
    mask_is_subset: bool | None = None,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    """Check a term against everything that the step asks of one.

    Arrays as variables, one float32 value per example, a state of unchanged structure; the same
    compiled, over several devices, and from bfloat16 outputs; gradients that are finite for its
    own parameters and the student, and zero for the teacher; examples that are masked leave no
    trace in mean, gradients and state; no example looks at another unless the term says so
    (`couples_batch`).

    Args:
        term: what to check.
        inputs: what it looks at, `term_inputs()` by default: logits, labels, and the features
            `hidden`, `tokens`, `stage_1`, `stage_2` and `stage_3`.
        learns: whether it has parameters; not checked by default.
        remembers: whether it has a state; not checked by default.
        name: for the message.
        student_has_gradient: whether the student has a gradient other than zero on these inputs.
        mask_is_subset: whether masked examples are as if they were not there at all, for a term
            that couples the batch; by default unless it has a state (random draws depend on the
            batch's size).
        rtol: relative tolerance in float32.
        seed: of the term's variables.

    Raises:
        AssertionError: naming every requirement that is not met.

    Example:
        >>> from kdjax import terms
        >>> from kdjax.testing import check_term
        >>> check_term(terms.hint("hidden", "hidden"), learns=True)
    """
    inputs = term_inputs() if inputs is None else inputs
    variables = term.init(jax.random.key(seed), inputs)
    subject = _Subject(term, inputs, variables)
    run = Checks(f"check_term: {name}")
    run(_check_variables, subject, learns, remembers)
    run(_check_apply, subject)
    if run.failures:  # nothing that follows would say more
        run.finish()
    run(_check_jit, subject, rtol)
    run(_check_gradients, subject, student_has_gradient)
    run(_check_mask, subject, rtol)
    if not term.couples_batch:
        run(_check_independence, subject, rtol)
    elif not numbers(variables.state) if mask_is_subset is None else mask_is_subset:
        run(_check_subset, subject, rtol)
    run(_check_low_precision, subject, rtol)
    if math.gcd(jax.device_count(), subject.num_examples) > 1:
        run(_check_devices, subject, rtol)
    run.finish()


class _Answer(NamedTuple):
    """Values, new state, masked mean and its gradients by parameters, student and teacher."""

    values: Array
    state: PyTree
    mean: Array
    params: PyTree
    student: PyTree
    teacher: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """A term with its variables and inputs, and the one program that most checks share."""

    term: Term
    inputs: TermInputs
    variables: Variables

    @property
    def num_examples(self) -> int:
        return self.inputs.mask.shape[0]

    def mean(self, params: PyTree, student: Any, teacher: Any, state: PyTree, x: TermInputs) -> Any:
        values, state = self.term.apply(params, state, x._replace(student=student, teacher=teacher))
        total, count = metrics.masked_sum(values, x.mask)
        return total / jnp.maximum(count, 1), (values, state)

    @functools.cached_property
    def program(self) -> Callable[[Variables, TermInputs], _Answer]:
        @compiled
        def program(variables: Variables, x: TermInputs) -> _Answer:
            grad_fn = jax.value_and_grad(self.mean, (0, 1, 2), has_aux=True)
            (mean, (values, state)), grads = grad_fn(
                variables.params, x.student, x.teacher, variables.state, x
            )
            return _Answer(values, state, mean, *grads)

        return program

    @functools.cached_property
    def answer(self) -> _Answer:
        return self.program(self.variables, self.inputs)


def _check_variables(subject: _Subject, learns: bool | None, remembers: bool | None) -> None:
    """Variables are arrays."""
    variables = subject.variables
    assert isinstance(variables, Variables), f"init returns {type(variables).__name__}"
    for leaf in jax.tree.leaves(variables):
        assert isinstance(leaf, jax.Array), f"init returns a {type(leaf).__name__} among them"
    for what, tree, expected in (("parameters", variables.params, learns),
                                 ("a state", variables.state, remembers)):  # fmt: skip
        has = bool(jax.tree.leaves(tree))
        assert expected is None or has == expected, f"{'has' if has else 'does not have'} {what}"
    again = compiled(subject.term.init)(jax.random.key(0), subject.inputs)
    assert _avals(again) == _avals(variables), "init under jit returns something else"


def _check_apply(subject: _Subject) -> None:
    """One float32 value per example, and a state like before."""
    values, state = jax.eval_shape(subject.term.apply, *subject.variables, subject.inputs)
    expected = subject.inputs.mask.shape
    assert values.shape == expected, f"values have shape {values.shape}, expected {expected}"
    assert values.dtype == jnp.float32, f"values have dtype {values.dtype}, expected float32"
    assert _avals(state) == _avals(subject.variables.state), (
        f"apply returns the state {_avals(state)}, expected {_avals(subject.variables.state)}"
    )


def _check_jit(subject: _Subject, rtol: float) -> None:
    """The same under jit as without, and finite."""
    answer = subject.answer
    assert_finite(answer.values, "values")
    eager = subject.term.apply(*subject.variables, subject.inputs)
    assert_close((answer.values, answer.state), eager, rtol, "compiled (left), eager (right)")


def _check_gradients(subject: _Subject, student_has_gradient: bool) -> None:
    """Gradients are finite, and none reaches the teacher."""
    answer = subject.answer
    assert_finite(answer.params, "gradients of the parameters")
    assert_finite(answer.student, "gradients by the student")
    if student_has_gradient:
        assert any(map(np.any, numbers(answer.student))), "the student's gradient is zero"
    if numbers(answer.params):
        assert any(map(np.any, numbers(answer.params))), "the parameters' gradient is zero"
    assert_zero(answer.teacher, "gradient by the teacher (stop_gradient is missing)")


def _check_mask(subject: _Subject, rtol: float) -> None:
    """Masked examples leave no trace in mean, gradients and state."""
    mask = _some_mask(subject.num_examples)
    base = _masked(subject.inputs, mask)
    want = subject.program(subject.variables, base)
    for words, change in (("others", _others), ("zeros", jnp.zeros_like)):

        def put(x: Array, change: Callable[[Array], Array] = change) -> Array:
            return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, change(x))

        got = subject.program(subject.variables, _masked(jax.tree.map(put, base), mask))
        words = f"masked examples replaced by {words} (left), as they were (right)"
        assert_close(got.mean, want.mean, rtol, f"mean, {words}")
        assert_close(got.state, want.state, rtol, f"new state, {words}")
        assert_close(got.params, want.params, 10 * rtol, f"gradients of the parameters, {words}")
        assert_close(got.student, want.student, 10 * rtol, f"gradients by the student, {words}")
        masked = jax.tree.map(lambda x: x[~mask], got.student)
        assert_zero(masked, "gradients by the student at masked examples")


def _check_independence(subject: _Subject, rtol: float) -> None:
    """No example looks at another (else say couples_batch=True)."""
    one = jax.tree.map(lambda x: x[2:3], subject.inputs)
    values, _ = compiled(subject.term.apply)(*subject.variables, one)
    assert_close(values, subject.answer.values[2:3], rtol, "alone (left), in its batch (right)")


def _check_subset(subject: _Subject, rtol: float) -> None:
    """Masked examples neither pair nor count."""
    mask = _some_mask(subject.num_examples)
    inputs = _masked(subject.inputs, mask)
    got = subject.program(subject.variables, inputs)
    few = subject.program(subject.variables, jax.tree.map(lambda x: x[mask], inputs))
    assert_close(got.values[mask], few.values, rtol, "masked (left), without them (right)")
    assert_close(got.params, few.params, 10 * rtol, "gradients, masked (left), without (right)")


def _check_low_precision(subject: _Subject, rtol: float) -> None:
    """Computes in float32 what it is given in bfloat16."""
    low = subject.inputs._replace(
        student=_cast(subject.inputs.student, jnp.bfloat16),
        teacher=_cast(subject.inputs.teacher, jnp.bfloat16),
    )
    got = subject.program(subject.variables, low)
    assert got.values.dtype == jnp.float32, f"values are {got.values.dtype}, expected float32"
    assert_finite((got.values, got.params, got.student), "values and gradients")
    rounded = low._replace(
        student=_cast(low.student, jnp.float32), teacher=_cast(low.teacher, jnp.float32)
    )
    want = subject.program(subject.variables, rounded)
    assert_close(got.values, want.values, rtol, "bfloat16 (left), float32 (right)")


def _check_devices(subject: _Subject, rtol: float) -> None:
    """The same with the batch split over devices."""
    count = math.gcd(jax.device_count(), subject.num_examples)
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("data",), ()))
    got, want = (
        subject.answer,
        subject.program(
            jax.device_put(subject.variables, whole), jax.device_put(subject.inputs, split)
        ),
    )
    words = f"on one device (left), over {count} (right)"
    assert_close((got.values, got.state), (want.values, want.state), rtol, words)
    gradients = (got.params, got.student), (want.params, want.student)
    assert_close(gradients[0], gradients[1], 10 * rtol, f"gradients, {words}")


def _avals(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)


def _some_mask(size: int) -> np.ndarray:
    return np.resize(np.array([1, 0, 1, 1, 0, 1, 1, 1], bool), size)


def _masked(inputs: TermInputs, mask: np.ndarray) -> TermInputs:
    given = jnp.asarray(mask)
    batch = {**inputs.batch, "mask": given} if "mask" in inputs.batch else inputs.batch
    return inputs._replace(batch=batch, mask=given)


def _others(x: Array) -> Array:
    return 3 * x[::-1] if jnp.issubdtype(x.dtype, jnp.floating) else x[::-1]


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
