"""`check_loss`: what every distillation loss must satisfy, one law at a time."""

from collections.abc import Callable
from typing import Any

from kdjax.testing import _edges, _laws, _transforms
from kdjax.testing._compare import Checks
from kdjax.testing._inputs import Inputs, signature_of
from kdjax.testing._subject import subject_of


def check_loss(
    loss_fn: Callable[..., Any],
    *,
    reference: Callable[..., Any] | None = None,
    inputs: Inputs | None = None,
    couples_batch: bool | None = None,
    teacher_is_data: bool | None = None,
    nonnegative: bool = True,
    zero_at_equality: bool | None = None,
    shift_invariant: bool | None = None,
    permutation_invariant: bool | None = None,
    temperature_invariant: bool | None = None,
    minus_infinity: bool | None = None,
    finite_at_extremes: bool = True,
    rejects_broadcasting: bool = True,
    order: int = 1,
    rtol: float = 1e-5,
    rtol64: float = 1e-10,
    zero_atol: float = 0.0,
    seed: int = 0,
) -> None:
    """Check a loss against everything that a distillation loss should satisfy.

    What to draw is read off the names of the positional parameters: `student_logits`,
    `student_log_probs`, or anything else for features; the teacher's likewise; `labels` (integer
    classes) or `label_probs`. Keywords of the loss decide what more is checked: `axis`, `where`
    (classes), `mask` (examples; such a loss relates the examples of a batch to one another) and
    `temperature`. Always checked: one value per example, float32 or wider, under `jit` and `vmap`,
    with right gradients. The laws behind the star can be switched off for a loss that
    rightly breaks one; None leaves the choice to the kind of loss.

    Args:
        loss_fn: student first, then teacher and labels, arrays in and [batch...] out.
            Hyper-parameters are bound with `functools.partial`.
        reference: the same in NumPy, of float64 arrays, to compare with in float32 and float64.
        inputs: draws the positional arguments from a NumPy generator, where their names do not
            say enough. Arrays whose first axis is as long as the student's hold one entry per
            example.
        couples_batch: whether an example's value depends on the others; by default, whether there
            is a `mask`.
        teacher_is_data: whether the teacher's gradient must be exactly zero (by default where the
            name ends in `_loss`) or, when False, must be right.
        nonnegative: no value is below zero.
        zero_at_equality: the teacher as its own student costs nothing, and has no gradient. By
            default where the loss takes a teacher and no labels.
        shift_invariant: adding a constant to an example's logits changes nothing. By default for
            logits.
        permutation_invariant: the order of the classes does not matter. By default for logits
            and log-probabilities.
        temperature_invariant: the gradient keeps its size as the temperature grows: there is a
            factor T^2. By default for logits with a `temperature`.
        minus_infinity: a class at -inf in both adds nothing, one at -inf in one of them gives no
            nan. By default for logits and log-probabilities.
        finite_at_extremes: logits of +-1e4, constant rows and zero features have finite values and
            gradients.
        rejects_broadcasting: shapes that would be broadcast are refused with a ValueError or
            TypeError.
        order: of the gradients that are held against finite differences; 0 for none, as it has to
            be where a loss holds a part of the student constant.
        rtol: relative tolerance in float32.
        rtol64: relative tolerance in float64, of the reference.
        zero_atol: how far from zero rounding may take a value at equality.
        seed: of the draws.

    Raises:
        AssertionError: naming the loss and every law that it breaks.
        TypeError: if the parameters do not say what to draw and there are no `inputs`.

    Example:
        >>> from kdjax import losses
        >>> from kdjax.testing import check_loss
        >>> check_loss(losses.hint_loss)
    """
    signature = signature_of(loss_fn)
    coupled = "mask" in signature.keywords if couples_batch is None else couples_batch
    subject, others = subject_of(loss_fn, signature, inputs, couples_batch=coupled, seed=seed)
    has_teacher, is_logits = signature.teacher is not None, signature.is_logits
    plain = has_teacher and signature.labels is None
    if teacher_is_data is None and signature.name.endswith("_loss"):
        teacher_is_data = True
    has_temperature = isinstance(signature.temperature, int | float)

    def chosen(law: bool | None, default: bool) -> bool:
        return default if law is None else law

    _transforms.check_types(subject, others)
    run = Checks(f"check_loss: {signature.name}")
    if reference is not None:
        run(_transforms.check_reference, subject, others, reference, (rtol, rtol64))
    run(_transforms.check_jit, subject, rtol)
    run(_transforms.check_low_precision, subject, rtol)
    if not coupled:
        run(_transforms.check_vmap, subject, rtol)
    if signature.has_classes and "axis" in signature.keywords:
        run(_transforms.check_axis, subject, rtol)
    if signature.has_classes and "where" in signature.keywords:
        run(_edges.check_where, subject, rtol)
    if subject.has_mask:
        run(_edges.check_mask, subject, rtol)
        run(_edges.check_one_example, subject)
    if order:
        run(_transforms.check_gradients, subject, order, teacher_is_data)
    if has_teacher and teacher_is_data:
        run(_laws.check_teacher_is_data, subject)
    if nonnegative:
        run(_laws.check_nonnegative, subject, zero_atol)
    if chosen(zero_at_equality, plain):
        run(_laws.check_zero_at_equality, subject, zero_atol)
    if chosen(shift_invariant, is_logits):
        run(_laws.check_shift, subject, rtol)
    if chosen(permutation_invariant, signature.has_classes):
        run(_laws.check_permutation, subject, rtol)
    if chosen(temperature_invariant, is_logits and has_temperature):
        run(_laws.check_temperature, subject)
    if chosen(minus_infinity, signature.has_classes):
        run(_edges.check_minus_infinity, subject, rtol)
    if finite_at_extremes:
        run(_edges.check_extremes, subject)
    if rejects_broadcasting:
        run(_edges.check_misuse, subject)
    run.finish()
