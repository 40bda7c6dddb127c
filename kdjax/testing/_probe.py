"""A loss, a term, or a term in an objective, as checks look at it: what it answers to inputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.metrics import masked_sum
from kdjax.testing._compare import assert_close, numbers
from kdjax.testing._compile import compiled
from kdjax.types import Array, Objective, Outputs, PyTree, Term, TermInputs, Variables

Mean = Callable[[PyTree, PyTree, TermInputs], tuple[Array, tuple[Array, PyTree]]]
"""Maps parameters, state and inputs to a term's masked mean, its values and the new state.

Of a loss, which has no variables, it is the sum of the values.
"""


class Answer(NamedTuple):
    """A term's mean over the examples that count, its gradients, its values and new state."""

    mean: Array
    params: PyTree
    student: Outputs
    teacher: Outputs | None
    values: Array
    state: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A term with the variables and inputs that checks start from.

    `own` picks what is the term's among variables, `couples_batch` names the terms of the objective
    that relate examples, `rtol` is the tolerance of comparisons in float32.
    """

    name: str
    mean: Mean
    variables: Variables
    inputs: TermInputs
    couples_batch: tuple[str, ...] = ()
    own: Callable[[PyTree], PyTree] = lambda tree: tree
    rtol: float = 1e-5

    @functools.cached_property
    def program(self) -> Callable[[Variables, TermInputs], Answer]:
        """The term with its gradients: one program per shape and type."""

        def mean(params: PyTree, student: Any, teacher: Any, state: PyTree, x: TermInputs) -> Any:
            return self.mean(params, state, x._replace(student=student, teacher=teacher))

        @compiled
        def program(variables: Variables, x: TermInputs) -> Answer:
            grad_fn = jax.value_and_grad(mean, (0, 1, 2), has_aux=True)
            (value, (values, state)), (params, student, teacher) = grad_fn(
                variables.params, x.student, x.teacher, variables.state, x
            )
            return Answer(value, self.own(params), student, teacher, values, state)

        return program

    def answer(self, inputs: TermInputs, state: PyTree = None) -> Answer:
        """Evaluate the term on inputs, with its own state unless another is given."""
        variables = self.variables if state is None else self.variables._replace(state=state)
        answer: Answer = on_host(self.program(variables, inputs))
        return answer

    def assert_close(self, got: PyTree, want: PyTree, words: str, slack: float = 1) -> None:
        """Compare trees of numbers within the tolerance, `slack` times as far for gradients."""
        assert_close(got, want, slack * self.rtol, words)

    @functools.cached_property
    def base(self) -> Answer:
        """The answer to the inputs as they are."""
        return self.answer(self.inputs)

    @functools.cached_property
    def in_low_precision(self) -> tuple[Answer, Answer]:
        """The answers to outputs in bfloat16, and to the same numbers in float32."""
        low = _with_outputs(self.inputs, jnp.bfloat16)
        return self.answer(low), self.answer(_with_outputs(low, np.float32))

    def behind_mask(self, mask: Any, change: Callable[[Any], Any]) -> tuple[Answer, Answer]:
        """Return the answers with a mask and other masked examples, and with those that are there.

        Args:
            mask: [batch], the examples that count.
            change: makes the other examples, of an array of the whole batch.
        """
        masked = with_mask(self.inputs, mask)
        other = jax.tree.map(lambda x: _put_rows(x, masked.mask, change(x)), masked)
        return self.answer(with_mask(other, mask)), self.answer(masked)

    @property
    def learns(self) -> bool:
        """Whether the term has parameters."""
        return bool(jax.tree.leaves(self.own(self.variables.params)))

    @property
    def remembers(self) -> bool:
        """Whether the term has a state."""
        return bool(jax.tree.leaves(self.own(self.variables.state)))

    @functools.cached_property
    def looks_at_batch(self) -> bool:
        """Whether labels or anything else in the batch matters."""
        mask = self.inputs.batch.get("mask")
        batch = dict(jax.tree.map(_rolled, self.inputs.batch))
        batch = batch if mask is None else {**batch, "mask": mask}
        return self._moves(self.inputs._replace(batch=batch))

    @functools.cached_property
    def looks_at_student_logits(self) -> bool:
        """Whether the student's logits have a gradient."""
        return bool(np.any(numbers(self.base.student.logits)[0]))

    @functools.cached_property
    def looks_at_teacher(self) -> bool:
        """Whether anything of the teacher matters."""
        teacher = jax.tree.map(_rolled, self.inputs.teacher)
        return teacher is not None and self._moves(self.inputs._replace(teacher=teacher))

    def student_features(self) -> list[str]:
        """Name the features of the student that have a gradient."""
        return [n for n, g in self.base.student.features.items() if np.any(numbers(g)[0])]

    def teacher_features(self) -> list[str]:
        """Name the features of the teacher that matter."""
        teacher = self.inputs.teacher
        if teacher is None:
            return []
        changed = {
            name: teacher._replace(features={**teacher.features, name: _rolled(feature)})
            for name, feature in teacher.features.items()
        }
        return [n for n, t in changed.items() if self._moves(self.inputs._replace(teacher=t))]

    def _moves(self, inputs: TermInputs) -> bool:
        return float(self.answer(inputs).mean) != float(self.base.mean)


def on_host(tree: PyTree) -> PyTree:
    """Return arrays as NumPy's, but for PRNG keys: to select from them, no program is compiled."""
    return jax.tree.map(lambda x: x if _is_key(x) else np.asarray(x), tree)


def of_term(
    name: str, term: Term, variables: Variables, inputs: TermInputs, *, rtol: float
) -> Probe:
    """Return the probe of a term by itself."""

    def mean(params: PyTree, state: PyTree, x: TermInputs) -> tuple[Array, tuple[Array, PyTree]]:
        values, state = term.apply(params, state, x)
        total, count = masked_sum(values, x.mask)
        return total / jnp.maximum(count, 1), (values, state)

    coupled = (name,) if term.couples_batch else ()
    return Probe(name, mean, variables, on_host(inputs), coupled, rtol=rtol)


def of_loss(
    name: str, values_fn: Callable[[TermInputs], Array], inputs: TermInputs, *, rtol: float
) -> Probe:
    """Return the probe of a loss, whose examples are summed up."""

    def total(params: PyTree, state: PyTree, x: TermInputs) -> tuple[Array, tuple[Array, PyTree]]:
        values = values_fn(x)
        return values.sum(), (values, state)

    return Probe(name, total, Variables({}, {}), inputs, rtol=rtol)


def of_objective(
    name: str, objective: Objective, variables: Variables, inputs: TermInputs
) -> Probe:
    """Return the probe of a term in an objective, which is evaluated as a whole."""

    def mean(params: PyTree, state: PyTree, x: TermInputs) -> tuple[Array, tuple[Array, PyTree]]:
        _, state, metrics = objective.apply(params, state, x)
        total, count = metrics[f"loss/{name}"]
        return total / jnp.maximum(count, 1), (total, state)

    own, couples_batch = (lambda tree: tree[name]), objective.couples_batch
    return Probe(name, mean, variables, on_host(inputs), couples_batch, own)


def others(x: Any) -> Any:
    """Return the rows in backward order, three times as large where they are floating."""
    return x[::-1] * np.asarray(3, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x[::-1]


def _put_rows(x: Any, mask: Any, other: Any) -> Any:
    """Keep the rows where the mask is true and take the others from another array."""
    rows = np.reshape(mask, mask.shape + (1,) * (x.ndim - mask.ndim))
    return jnp.where(rows, x, other) if _is_key(x) else np.where(rows, x, other)


def with_mask(inputs: TermInputs, mask: Any) -> TermInputs:
    """Return inputs in which other examples count, in the batch's own mask too if it has one."""
    given: Any = np.asarray(mask)
    batch = {**inputs.batch, "mask": given} if "mask" in inputs.batch else inputs.batch
    return inputs._replace(batch=batch, mask=given)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return NumPy arrays, those of floating numbers in a type."""

    def one(x: Any) -> Any:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, on_host(tree))


def _with_outputs(inputs: TermInputs, dtype: Any) -> TermInputs:
    return inputs._replace(student=cast(inputs.student, dtype), teacher=cast(inputs.teacher, dtype))


def _rolled(x: Any) -> Any:
    return jnp.roll(x, 1, axis=0) if _is_key(x) else np.roll(x, 1, axis=0)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
