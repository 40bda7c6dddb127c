"""A loss under test: its inputs, and the few compiled programs that all checks share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from kdjax.terms._signature import Signature, signature_of
from kdjax.testing import _drawing
from kdjax.testing._compare import assert_close
from kdjax.testing._compile import compiled
from kdjax.types import PyTree


class Answer(NamedTuple):
    """Values [batch...], and the gradients of their sum by student and teacher (None: no such)."""

    values: Any
    student: Any
    teacher: Any


class Options(NamedTuple):
    """How a loss is checked; see `kdjax.testing.check_loss`."""

    couples_batch: bool
    teacher_is_data: bool | None
    reference: Callable[..., Any] | None
    order: int
    rtol: float
    rtol64: float
    zero_atol: float


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A loss, what its signature says, and the arguments that checks start from (NumPy).

    `others` are the same loss on arrays of other shapes that it takes.
    """

    fn: Callable[..., Any]
    signature: Signature
    options: Options
    args: tuple[PyTree, ...]
    others: "tuple[Subject, ...]" = ()

    @property
    def student(self) -> PyTree:
        """The student's array or tree of arrays."""
        return self.args[0]

    @property
    def teacher(self) -> PyTree:
        """The teacher's, None where the loss takes none."""
        index = self.signature.teacher
        return None if index is None else self.args[index]

    @property
    def has_mask(self) -> bool:
        """Whether the loss can leave examples out."""
        return "mask" in self.signature.defaults

    def takes_classes(self, keyword: str) -> bool:
        """Whether the loss has classes and a keyword about them."""
        return self.signature.has_classes and keyword in self.signature.defaults

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of the values."""
        shape: tuple[int, ...] = jax.tree.leaves(self.student)[0].shape
        return shape[:-1] if self.signature.has_classes else shape[:1]

    def put(self, args: tuple[PyTree, ...], student: PyTree, teacher: PyTree) -> tuple[PyTree, ...]:
        """Return positional arguments with another student and teacher in them."""
        changed = list(args)
        changed[0] = student
        if self.signature.teacher is not None:
            changed[self.signature.teacher] = teacher
        return tuple(changed)

    def assert_close(self, got: PyTree, want: PyTree, words: str, slack: float = 1) -> None:
        """Compare numbers within the tolerance of float32, `slack` times as far for gradients."""
        assert_close(got, want, slack * self.options.rtol, words)

    @functools.cached_property
    def evaluate(self) -> Callable[..., Answer]:
        """`(args, keywords) -> Answer`, one program per shape and type."""
        index = self.signature.teacher

        def total(student: PyTree, teacher: PyTree, args: Any, keywords: Any) -> Any:
            values = self.fn(*self.put(args, student, teacher), **keywords)
            return values.sum(), values

        @compiled
        def evaluate(args: tuple[PyTree, ...], keywords: dict[str, Any]) -> Answer:
            teacher = None if index is None else args[index]
            by = (0,) if index is None else (0, 1)
            grads, values = jax.grad(total, by, has_aux=True)(args[0], teacher, args, keywords)
            return Answer(values, grads[0], grads[1] if len(grads) > 1 else None)

        return evaluate

    def answer(
        self,
        args: tuple[PyTree, ...] | None = None,
        *,
        where: Any = True,
        mask: Any = True,
        temperature: Any = None,
    ) -> Answer:
        """Values and gradients in float32 as NumPy arrays; all calls of one shape share a program.

        Args:
            args: positional arguments, the subject's own by default.
            where: the classes that count, all by default.
            mask: the examples that count, all by default.
            temperature: the loss's default by default.
        """
        args = self.args if args is None else args
        shape = jax.tree.leaves(args[0])[0].shape
        keywords: dict[str, Any] = {}
        if self.takes_classes("where"):
            keywords["where"] = jnp.broadcast_to(where, shape)
        if self.has_mask:
            keywords["mask"] = jnp.broadcast_to(mask, shape[:1])
        if self.scalable:
            default = self.signature.temperature
            keywords["temperature"] = jnp.float32(default if temperature is None else temperature)
        found = self.evaluate(_drawing.as_arrays(args, np.float32), keywords)
        answer: Answer = jax.tree.map(np.asarray, found)
        return answer

    @functools.cached_property
    def scalable(self) -> bool:
        """Whether the loss has a temperature that may be traced."""
        if not isinstance(self.signature.temperature, int | float):
            return False
        args = _drawing.as_arrays(self.args, np.float32)
        try:
            jax.eval_shape(lambda t: self.fn(*args, temperature=t), jnp.float32(1))
        except Exception:
            return False
        return True

    @functools.cached_property
    def eager(self) -> np.ndarray:
        """The values in float32 without jit and without keywords."""
        return np.asarray(self.fn(*_drawing.as_arrays(self.args, np.float32)))

    def batched(self) -> tuple[bool, ...]:
        """Return for every positional argument whether it holds one entry per example."""
        size = jax.tree.leaves(self.student)[0].shape[0]
        return tuple(
            all(np.ndim(x) and np.shape(x)[0] == size for x in jax.tree.leaves(arg))
            for arg in self.args
        )

    def rows(self, select: Callable[[Any], Any]) -> tuple[PyTree, ...]:
        """Apply a selection of examples to all arguments that hold one entry per example."""
        return tuple(
            jax.tree.map(select, arg) if one_each else arg
            for arg, one_each in zip(self.args, self.batched(), strict=True)
        )

    def classes(
        self, change: Callable[[Any], Any], relabel: Callable[[Any], Any] | None = None
    ) -> tuple[PyTree, ...]:
        """Apply a change of the last axis to student, teacher and label probabilities.

        Args:
            change: maps an array [..., num_classes].
            relabel: maps labels; by default probabilities change like the others and integer
                classes stay as they are.
        """
        pair = jax.tree.map(change, (self.student, self.teacher))
        changed = list(self.put(self.args, *pair))
        if self.signature.labels is not None:
            labels = self.args[self.signature.labels]
            if relabel is None:
                relabel = change if np.issubdtype(labels.dtype, np.floating) else np.asarray
            changed[self.signature.labels] = relabel(labels)
        return tuple(changed)

    @functools.cached_property
    def exact(self) -> "Exact":
        """The loss in float64, to be called under x64.

        Traced once and for all: `chex.assert_numerical_grads` replaces `stop_gradient` by ones
        while it runs, which would turn the teacher into another one.
        """
        args = _drawing.as_arrays(self.args, np.float64)
        teacher = None if self.signature.teacher is None else args[self.signature.teacher]
        leaves, tree = jax.tree.flatten((args[0], teacher))

        def values(*leaves: Any) -> Any:
            return self.fn(*self.put(args, *jax.tree.unflatten(tree, leaves)))

        program = jaxpr_as_fun(jax.make_jaxpr(values)(*leaves))
        return Exact(lambda *leaves: program(*leaves)[0], tuple(leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """A loss as a function of the leaves of student and teacher, and those leaves."""

    traced: Callable[..., Any]
    leaves: tuple[Any, ...]

    @functools.cached_property
    def values(self) -> Callable[..., Any]:
        """The function, compiled."""
        return compiled(self.traced)

    def with_gradient(self, count: int) -> Callable[..., Any]:
        """The function of the first leaves, differentiable once, in backward mode.

        Both directions are programs of their own: the other way, they would be compiled slowly.
        """
        others = self.leaves[count:]

        def value(*some: Any) -> Any:
            return self.values(*some, *others)

        @compiled
        def pull(some: tuple[Any, ...], cotangent: Any) -> Any:
            return jax.vjp(lambda *some: self.traced(*some, *others), *some)[1](cotangent)

        fn = jax.custom_vjp(value)
        fn.defvjp(lambda *some: (value(*some), some), pull)
        return fn


def signature_for(loss_fn: Callable[..., Any]) -> Signature:
    """Read the parameters of a loss; those with a default are hyper-parameters.

    Raises:
        TypeError: if a keyword without default is missing, or there is no positional parameter.
    """
    signature = signature_of(loss_fn)
    if signature.missing:
        names = ", ".join(signature.missing)
        raise TypeError(
            f"check_loss: {signature.name} needs {names}; bind them with functools.partial"
        )
    if not signature.positional:
        raise TypeError(f"check_loss: {signature.name} has no positional parameter for the student")
    return signature


def subject_of(
    fn: Callable[..., Any],
    signature: Signature,
    options: Options,
    inputs: _drawing.Inputs | None,
    *,
    seed: int,
) -> Subject:
    """Draw the inputs of a loss.

    Raises:
        AssertionError: if it takes arrays of no shape that features come in.
    """
    rng = np.random.default_rng(seed)
    if inputs is not None:
        return Subject(fn, signature, options, jax.tree.map(np.asarray, tuple(inputs(rng))))
    shapes = _drawing.shapes_for(signature, couples_batch=options.couples_batch)
    drawn = [_drawing.draw(signature, rng, shape) for shape in shapes]
    subjects = [Subject(fn, signature, options, args) for args in drawn]
    if not signature.has_classes:
        subjects = _accepted(subjects)
    return dataclasses.replace(subjects[0], others=tuple(subjects[1:]))


def _accepted(subjects: list[Subject]) -> list[Subject]:
    """Return those that the loss takes, one at least."""
    taken = [(s, _refusal(s)) for s in subjects]
    accepted = [s for s, refusal in taken if refusal is None]
    if not accepted:
        tried = "; ".join(f"{s.student.shape}: {refusal}" for s, refusal in taken)
        raise AssertionError(
            f"check_loss: {subjects[0].signature.name} gives one value per example, [batch], for "
            f"features of no shape that was tried ({tried}); pass inputs= if it takes something "
            "else"
        )
    return accepted


def _refusal(subject: Subject) -> str | None:
    """Return why a loss does not take its arguments, None if it does."""
    try:
        out = jax.eval_shape(subject.fn, *_drawing.as_arrays(subject.args, np.float32))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None if out.shape == subject.batch else f"values of shape {out.shape}"
