"""A loss under test: what it is fed, by what its parameters are called, and how it answers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.terms._signature import Signature, signature_of
from kdjax.testing import _drawing
from kdjax.testing._compile import compiled, known
from kdjax.testing._probe import Answer, Probe, cast, of_loss
from kdjax.types import PyTree, TermInputs

LossInputs = Any
"""`TermInputs` with arrays, or trees of them, where a term has the outputs of networks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss, what its signature says, and the inputs that checks start from (NumPy).

    `inputs.batch["args"]` holds its positional arguments but student and teacher, `others` are
    inputs of other shapes that it takes. The rest is how it is checked; see `check_loss`.
    """

    fn: Callable[..., Any]
    signature: Signature
    inputs: LossInputs
    others: tuple[LossInputs, ...]
    couples_batch: bool
    teacher_is_data: bool | None
    reference: Callable[..., Any] | None
    order: int
    rtol: float
    rtol64: float
    zero_atol: float

    @property
    def has_mask(self) -> bool:
        """Whether the loss can leave examples out."""
        return "mask" in self.signature.defaults

    def takes_classes(self, keyword: str) -> bool:
        """Whether the loss has classes and a keyword about them."""
        return self.signature.has_classes and keyword in self.signature.defaults

    @functools.cached_property
    def scalable(self) -> bool:
        """Whether the loss has a temperature that may be traced."""
        if not isinstance(self.signature.temperature, int | float):
            return False
        try:
            jax.eval_shape(lambda t: self.values(self.inputs, temperature=t), jnp.float32(1))
        except Exception:
            return False
        return True

    def args(self, inputs: LossInputs) -> tuple[PyTree, ...]:
        """Return the positional arguments."""
        args = [inputs.student, *inputs.batch["args"][1:]]
        if self.signature.teacher is not None:
            args[self.signature.teacher] = inputs.teacher
        return tuple(args)

    def values(self, inputs: LossInputs, **keywords: Any) -> Any:
        """Call the loss; without keywords, as a user does who knows of none."""
        return self.fn(*self.args(inputs), **keywords)

    @functools.cached_property
    def probe(self) -> Probe:
        """The loss with its gradients, as terms have one."""

        def values(inputs: LossInputs) -> Any:
            keywords = {name: x for name, x in inputs.batch.items() if name != "args"}
            mask = {"mask": inputs.mask} if self.has_mask else {}
            return self.values(inputs, **keywords, **mask)

        return of_loss(self.signature.name, values, self.inputs, rtol=self.rtol)

    @functools.cached_property
    def eager(self) -> Any:
        """The values, without `jit`."""
        return known(self.values, cast(self.inputs, np.float32))

    def in_double(
        self, student: PyTree, teacher: PyTree, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[PyTree, PyTree]]:
        """Return the values in float64, and the gradients of their weighted sum by both sides."""
        weights = np.ones(self.batch(self.inputs)) if weights is None else weights
        with jax.enable_x64(True):
            values, gradients = self._pulled(cast((student, teacher), np.float64), weights)
            return np.asarray(values), gradients

    @functools.cached_property
    def _pulled(self) -> Callable[..., Any]:
        """Values and gradients in one program, for reference and finite differences alike."""

        def pulled(both: tuple[PyTree, PyTree], weights: Any) -> Any:
            inputs = cast(self.inputs, np.float64)

            def values(student: PyTree, teacher: PyTree) -> Any:
                return self.values(inputs._replace(student=student, teacher=teacher))

            found, pull = jax.vjp(values, *both)
            return found, pull(weights)

        return compiled(pulled)

    def answer(self, inputs: LossInputs | None = None, **keywords: Any) -> Answer:
        """Values and gradients as NumPy arrays; all calls of one shape share a program.

        Args:
            inputs: the loss's own by default.
            **keywords: `where` like the student, all classes by default, and `temperature`.
        """
        inputs = self.inputs if inputs is None else inputs
        if self.takes_classes("where"):
            shape = jax.tree.leaves(inputs.student)[0].shape
            keywords = {"where": np.ones(shape, bool), **keywords}
        if self.scalable:
            temperature = keywords.get("temperature", self.signature.temperature)
            keywords = {**keywords, "temperature": np.float32(temperature)}
        return self.probe.answer(inputs._replace(batch={**inputs.batch, **keywords}))

    def batch(self, inputs: LossInputs) -> tuple[int, ...]:
        """Return the shape that the values should have."""
        shape: tuple[int, ...] = jax.tree.leaves(inputs.student)[0].shape
        return shape[:-1] if self.signature.has_classes else shape[:1]

    def with_labels(self, inputs: LossInputs, change: Callable[[Any], Any]) -> LossInputs:
        """Change the labels, if the loss takes any."""
        args = tuple(
            change(x) if i == self.signature.labels else x
            for i, x in enumerate(inputs.batch["args"])
        )
        return inputs._replace(batch={**inputs.batch, "args": args})

    def classes(
        self,
        change: Callable[[Any], Any],
        *,
        probs_fn: Callable[[Any], Any] | None = None,
        labels_fn: Callable[[Any], Any] = np.asarray,
    ) -> LossInputs:
        """Apply a change of the last axis to student and teacher, [..., num_classes].

        Args:
            change: of their arrays.
            probs_fn: of label probabilities, the same by default.
            labels_fn: of integer labels, none by default.
        """
        student, teacher = jax.tree.map(change, (self.inputs.student, self.inputs.teacher))
        changed = self.inputs._replace(student=student, teacher=teacher)

        def relabel(labels: Any) -> Any:
            floating = np.issubdtype(labels.dtype, np.floating)
            return (probs_fn or change)(labels) if floating else labels_fn(labels)

        return self.with_labels(changed, relabel)


def rows(inputs: LossInputs, select: Callable[[Any], Any]) -> LossInputs:
    """Apply a selection of examples to all arrays that hold one entry per example."""
    size = len(inputs.mask)
    return jax.tree.map(lambda x: select(x) if np.shape(x)[:1] == (size,) else x, inputs)


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


def inputs_for(
    signature: Signature, draw_fn: _drawing.Inputs | None, *, couples_batch: bool, seed: int
) -> list[LossInputs]:
    """Draw the inputs of a loss, those of the main shape first."""
    rng = np.random.default_rng(seed)
    if draw_fn is not None:
        return [_by_role(signature, tuple(draw_fn(rng)))]
    shapes = _drawing.shapes_for(signature, couples_batch=couples_batch)
    return [_by_role(signature, _drawing.draw(signature, rng, shape)) for shape in shapes]


def _by_role(signature: Signature, given: tuple[PyTree, ...]) -> LossInputs:
    args = cast(given, np.float32)
    roles = (0, signature.teacher)
    rest = tuple(None if i in roles else x for i, x in enumerate(args))
    teacher = None if signature.teacher is None else args[signature.teacher]
    mask: Any = np.ones(jax.tree.leaves(args[0])[0].shape[:1], bool)
    return TermInputs({"args": rest}, args[0], teacher, mask)


def with_accepted(loss: Loss) -> Loss:
    """Keep those inputs that a loss of features takes.

    Raises:
        AssertionError: if it takes arrays of no shape that features come in.
    """
    taken = [(x, _refusal(loss, x)) for x in (loss.inputs, *loss.others)]
    accepted = [x for x, refusal in taken if refusal is None]
    if not accepted:
        tried = "; ".join(f"{x.student.shape}: {refusal}" for x, refusal in taken)
        raise AssertionError(
            f"check_loss: {loss.signature.name} gives one value per example, [batch], for "
            f"features of no shape that was tried ({tried}); pass inputs= if it takes something "
            "else"
        )
    return dataclasses.replace(loss, inputs=accepted[0], others=tuple(accepted[1:]))


def _refusal(loss: Loss, inputs: LossInputs) -> str | None:
    """Return why a loss does not take inputs, None if it does."""
    try:
        out = jax.eval_shape(loss.values, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None if out.shape == loss.batch(inputs) else f"values of shape {out.shape}"
