"""`check_term`: what every term of an objective must satisfy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import sharding
from kdjax.testing._compare import assert_finite, assert_zero, numbers
from kdjax.testing._compile import compiled, known
from kdjax.testing._drawing import some_mask, term_inputs
from kdjax.testing._harness import Check, by_law, examine, raise_failures
from kdjax.testing._probe import Probe, of_term, others, with_mask
from kdjax.types import PyTree, Term, TermApply, TermInit, TermInputs, Variables


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
    probe, words = of_term(name, term, variables, inputs, rtol=rtol), f"check_term: {name}"
    first: list[Check] = [
        functools.partial(_check_variables, init=term.init, learns=learns, remembers=remembers),
        functools.partial(_check_apply, apply=term.apply),
    ]
    findings = examine(name, by_law(first), probe)
    raise_failures(words, findings)  # nothing that follows would say more
    gradients = functools.partial(_check_gradients, student_has_gradient=student_has_gradient)
    then: list[Check] = [_check_jit, gradients, _check_mask]
    if not term.couples_batch:
        then.append(_check_independence)
    elif not numbers(variables.state) if mask_is_subset is None else mask_is_subset:
        then.append(_check_subset)
    then.append(_check_low_precision)
    if _num_devices(probe) > 1:
        then.append(_check_devices)
    findings += examine(name, by_law(then), probe)
    raise_failures(words, findings)


def _check_variables(
    probe: Probe, *, init: TermInit, learns: bool | None, remembers: bool | None
) -> None:
    """Variables are arrays."""
    variables = probe.variables
    assert isinstance(variables, Variables), f"init returns {type(variables).__name__}"
    for leaf in jax.tree.leaves(variables):
        assert isinstance(leaf, jax.Array), f"init returns a {type(leaf).__name__} among them"
    for what, tree, expected in (("parameters", variables.params, learns),
                                 ("a state", variables.state, remembers)):  # fmt: skip
        has = bool(jax.tree.leaves(tree))
        assert expected is None or has == expected, f"{'has' if has else 'does not have'} {what}"
    again = jax.eval_shape(init, jax.random.key(0), probe.inputs)
    assert _avals(again) == _avals(variables), "init under jit returns something else"


def _check_apply(probe: Probe, *, apply: TermApply) -> None:
    """One float32 value per example, and a state like before."""
    variables, inputs = probe.variables, probe.inputs
    values, state = jax.eval_shape(apply, *variables, inputs)
    expected = inputs.mask.shape
    assert values.shape == expected, f"values have shape {values.shape}, expected {expected}"
    assert values.dtype == jnp.float32, f"values have dtype {values.dtype}, expected float32"
    before, after = _avals(variables.state), _avals(state)
    assert before == after, f"apply returns the state {after}, expected {before}"


def _check_jit(probe: Probe) -> None:
    """The same under jit as without, and finite."""
    answer = probe.base
    assert_finite(answer.values, "values")
    _, eager = known(probe.mean, *probe.variables, probe.inputs)
    probe.assert_close((answer.values, answer.state), eager, "compiled (left), eager (right)")


def _check_gradients(probe: Probe, *, student_has_gradient: bool) -> None:
    """Gradients are finite, and none reaches the teacher."""
    answer = probe.base
    assert_finite(answer.params, "gradients of the parameters")
    assert_finite(answer.student, "gradients by the student")
    if student_has_gradient:
        assert any(map(np.any, numbers(answer.student))), "the student's gradient is zero"
    if numbers(answer.params):
        assert any(map(np.any, numbers(answer.params))), "the parameters' gradient is zero"
    assert_zero(answer.teacher, "gradient by the teacher (stop_gradient is missing)")


def _check_mask(probe: Probe) -> None:
    """Masked examples leave no trace in mean, gradients and state."""
    mask = some_mask(len(probe.inputs.mask))
    for name, change in (("others", others), ("zeros", np.zeros_like)):
        got, want = probe.behind_mask(mask, change)
        words = f"masked examples replaced by {name} (left), as they were (right)"
        probe.assert_close(got.mean, want.mean, f"mean, {words}")
        probe.assert_close(got.state, want.state, f"new state, {words}")
        probe.assert_close(got.params, want.params, f"gradients of the parameters, {words}", 10)
        probe.assert_close(got.student, want.student, f"gradients by the student, {words}", 10)
        masked = jax.tree.map(lambda x: x[~mask], got.student)
        assert_zero(masked, "gradients by the student at masked examples")


def _check_independence(probe: Probe) -> None:
    """No example looks at another (else say couples_batch=True)."""
    one = jax.tree.map(lambda x: x[2:3], probe.inputs)
    _, (values, _) = compiled(probe.mean)(*probe.variables, one)
    probe.assert_close(values, probe.base.values[2:3], "alone (left), in its batch (right)")


def _check_subset(probe: Probe) -> None:
    """Masked examples neither pair nor count."""
    mask = some_mask(len(probe.inputs.mask))
    inputs = with_mask(probe.inputs, mask)
    got = probe.answer(inputs)
    few = probe.answer(jax.tree.map(lambda x: x[mask], inputs))
    probe.assert_close(got.values[mask], few.values, "masked (left), without them (right)")
    probe.assert_close(got.params, few.params, "gradients, masked (left), without (right)", 10)


def _check_low_precision(probe: Probe) -> None:
    """Computes in float32 what it is given in bfloat16."""
    got, want = probe.in_low_precision
    assert got.values.dtype == jnp.float32, f"values are {got.values.dtype}, expected float32"
    assert_finite((got.values, got.params, got.student), "values and gradients")
    probe.assert_close(got.values, want.values, "bfloat16 (left), float32 (right)")


def _check_devices(probe: Probe) -> None:
    """The same with the batch split over devices."""
    count = _num_devices(probe)
    mesh = sharding.make_mesh(data=count)
    variables = sharding.replicate(probe.variables, mesh)
    inputs = jax.device_put(probe.inputs, sharding.batch_sharding(mesh))
    want = probe.program(variables, inputs)
    got = probe.base
    words = f"on one device (left), over {count} (right)"
    probe.assert_close((got.values, got.state), (want.values, want.state), words)
    gradients = (got.params, got.student), (want.params, want.student)
    probe.assert_close(*gradients, f"gradients, {words}", 10)


def _num_devices(probe: Probe) -> int:
    return math.gcd(jax.device_count(), len(probe.inputs.mask))


def _avals(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
