"""`check_loss`: what every distillation loss must satisfy, one law at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.testing import _edges, _equivalence, _laws
from kdjax.testing._drawing import Inputs
from kdjax.testing._harness import by_law, examine, raise_failures
from kdjax.testing._loss import Loss, inputs_for, signature_for, with_accepted


class _Law(NamedTuple):
    """A check of a loss, whether a kind of loss has to pass it, and the keyword that says so."""

    check: Callable[[Loss], None]
    holds: Callable[[Loss], bool] = lambda loss: True
    name: str = ""


_LAWS = (
    _Law(_equivalence.check_reference, lambda s: s.reference is not None),
    _Law(_equivalence.check_jit),
    _Law(_equivalence.check_low_precision),
    _Law(_equivalence.check_vmap, lambda s: not s.couples_batch),
    _Law(_equivalence.check_axis, lambda s: s.takes_classes("axis")),
    _Law(_edges.check_where, lambda s: s.takes_classes("where")),
    _Law(_edges.check_mask, lambda s: s.has_mask),
    _Law(_edges.check_one_example, lambda s: s.has_mask),
    _Law(_equivalence.check_gradients, lambda s: s.order > 0),
    _Law(_laws.check_teacher_is_data, _laws.holds_teacher_constant, "teacher_is_data"),
    _Law(_laws.check_sees_teacher, _laws.has_teacher, "sees_teacher"),
    _Law(_laws.check_nonnegative, name="nonnegative"),
    _Law(_laws.check_zero_at_equality, _laws.looks_at_both_alone, "zero_at_equality"),
    _Law(_laws.check_shift, lambda s: s.signature.is_logits, "shift_invariant"),
    _Law(_laws.check_permutation, lambda s: s.signature.has_classes, "permutation_invariant"),
    _Law(_laws.check_temperature, _laws.softens_logits, "temperature_invariant"),
    _Law(_edges.check_minus_infinity, lambda s: s.signature.has_classes, "minus_infinity"),
    _Law(_edges.check_extremes, name="finite_at_extremes"),
    _Law(_edges.check_misuse, name="rejects_broadcasting"),
)


def check_loss(
    loss_fn: Callable[..., Any],
    *,
    reference: Callable[..., Any] | None = None,
    inputs: Inputs | None = None,
    couples_batch: bool | None = None,
    order: int = 1,
    rtol: float = 1e-5,
    rtol64: float = 1e-10,
    zero_atol: float = 0.0,
    seed: int = 0,
    **laws: bool | None,
) -> None:
    """Check a loss against everything that a distillation loss should satisfy.

    What to draw is read off the names of the positional parameters: `student_logits`,
    `student_log_probs`, or anything else for features; the same for the teacher; `labels` (integer
    classes) or `label_probs`. Keywords of the loss decide what more is checked: `axis`, `where`
    (classes), `mask` (examples; such a loss relates the examples of a batch to one another) and
    `temperature`. Always checked: one value per example, float32 or wider, under `jit` and `vmap`,
    with right gradients. A loss that rightly breaks a law is spared it by name, as in
    `shift_invariant=False`; None leaves the choice to the kind of loss.

    Args:
        loss_fn: student first, then teacher and labels, arrays in and [batch...] out.
            Hyper-parameters are bound with `functools.partial`.
        reference: the same in NumPy, of float64 arrays, to compare with in float32 and float64.
        inputs: draws the positional arguments from a NumPy generator, where their names do not
            say enough. Arrays whose first axis is as long as the student's hold one entry per
            example.
        couples_batch: whether an example's value depends on the others; by default, whether there
            is a `mask`.
        order: of the gradients that are held against finite differences; 0 for none, as it has to
            be where a loss holds a part of the student constant.
        rtol: relative tolerance in float32.
        rtol64: relative tolerance in float64, of the reference.
        zero_atol: how far from zero rounding may take a value at equality.
        seed: of the draws.
        **laws: which laws hold, where that differs from the default:
            `teacher_is_data`: the teacher's gradient is exactly zero (by default where the name
            ends in `_loss`) or, when False, right;
            `sees_teacher`: another teacher makes other values. By default where the loss takes one;
            `nonnegative`: no value is below zero;
            `zero_at_equality`: the teacher as its own student costs nothing, and has no gradient.
            By default where the loss takes a teacher and no labels;
            `shift_invariant`: adding a constant to an example's logits changes nothing. By default
            for logits;
            `permutation_invariant`: the order of the classes does not matter. By default for logits
            and log-probabilities;
            `temperature_invariant`: the gradient keeps its size as the temperature grows: there is
            a factor T^2. By default for logits with a `temperature`;
            `minus_infinity`: a class at -inf in both adds nothing, one at -inf in one of them gives
            no nan. By default for logits and log-probabilities;
            `finite_at_extremes`: logits of +-1e4, constant rows and zero features have finite
            values and gradients;
            `rejects_broadcasting`: shapes that would be broadcast are refused with a ValueError or
            TypeError.

    Raises:
        AssertionError: naming the loss and every law that it breaks.
        TypeError: if the parameters do not say what to draw and there are no `inputs`, or there is
            no law of that name.

    Example:
        >>> from kdjax import losses
        >>> from kdjax.testing import check_loss
        >>> check_loss(losses.hint_loss)
    """
    unknown = laws.keys() - {law.name for law in _LAWS if law.name}
    if unknown:
        raise TypeError(f"check_loss: no law is named {', '.join(sorted(unknown))}")
    signature = signature_for(loss_fn)
    coupled = "mask" in signature.defaults if couples_batch is None else couples_batch
    first, *others = inputs_for(signature, inputs, couples_batch=coupled, seed=seed)
    loss = Loss(
        loss_fn,
        signature,
        first,
        tuple(others),
        couples_batch=coupled,
        teacher_is_data=_teacher_is_data(signature.name, laws.pop("teacher_is_data", None)),
        reference=reference,
        order=order,
        rtol=rtol,
        rtol64=rtol64,
        zero_atol=zero_atol,
    )
    if inputs is None and not signature.has_classes:
        loss = with_accepted(loss)
    _equivalence.check_types(loss)
    chosen = [law.check for law in _LAWS if _holds(law, loss, laws.get(law.name))]
    findings = examine(signature.name, by_law(chosen), loss)
    raise_failures(f"check_loss: {signature.name}", findings)


def _teacher_is_data(name: str, asked: bool | None) -> bool | None:
    return True if asked is None and name.endswith("_loss") else asked


def _holds(law: _Law, loss: Loss, asked: bool | None) -> bool:
    return law.holds(loss) if asked is None else asked
