"""An objective as the audit looks at it: term by term, on one batch of real data."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.testing._compare import numbers
from kdjax.testing._compile import compiled
from kdjax.types import Array, Objective, Outputs, PyTree, TermInputs, Variables


class TermAnswer(NamedTuple):
    """A term's mean over the examples that count, its gradients, and its new state."""

    mean: Array
    params: PyTree
    student: Outputs
    teacher: Outputs | None
    state: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """One term of an objective with the inputs that checks start from."""

    objective: Objective
    name: str
    variables: Variables
    inputs: TermInputs

    @functools.cached_property
    def program(self) -> Callable[[Variables, TermInputs], TermAnswer]:
        """The term with its gradients: one program per shape and type."""

        def mean(params: Any, student: Any, teacher: Any, state: Any, x: TermInputs) -> Any:
            x = x._replace(student=student, teacher=teacher)
            _, new_state, metrics = self.objective.apply(params, state, x)
            total, count = metrics[f"loss/{self.name}"]
            return total / jnp.maximum(count, 1), new_state

        @compiled
        def program(variables: Variables, x: TermInputs) -> TermAnswer:
            grad_fn = jax.value_and_grad(mean, (0, 1, 2), has_aux=True)
            (value, state), (params, student, teacher) = grad_fn(
                variables.params, x.student, x.teacher, variables.state, x
            )
            return TermAnswer(value, params[self.name], student, teacher, state)

        return program

    def answer(self, inputs: TermInputs, state: PyTree = None) -> TermAnswer:
        """Evaluate the term on inputs, with the objective's own state unless another is given."""
        variables = self.variables if state is None else self.variables._replace(state=state)
        return self.program(variables, inputs)

    @functools.cached_property
    def base(self) -> TermAnswer:
        """The answer to the inputs as they are."""
        return self.answer(self.inputs)

    @property
    def learns(self) -> bool:
        """Whether the term has parameters."""
        return bool(jax.tree.leaves(self.variables.params[self.name]))

    @property
    def remembers(self) -> bool:
        """Whether the term has a state."""
        return bool(jax.tree.leaves(self.variables.state[self.name]))

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


def put_rows(x: Array, mask: Any, other: Array) -> Array:
    """Keep the rows where the mask is true and take the others from another array."""
    return jnp.where(jnp.reshape(mask, mask.shape + (1,) * (x.ndim - mask.ndim)), x, other)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Cast floating leaves to a type."""

    def one(x: Any) -> Any:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def _rolled(x: Any) -> Array:
    return jnp.roll(x, 1, axis=0)
