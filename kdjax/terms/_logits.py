"""Terms of logits."""

from kdjax import losses
from kdjax.terms._base import stateless, teacher_of
from kdjax.types import Array, Term


def cross_entropy() -> Term:
    """Cross-entropy of the student at temperature 1 with `batch["label"]`."""
    return stateless(lambda x: losses.cross_entropy(x.student.logits, x.batch["label"]))


def soft_targets(*, temperature: float | Array = 4.0) -> Term:
    """The soft part of distillation, see `kdjax.losses.soft_target_loss`; it needs no labels."""
    return stateless(
        lambda x: losses.soft_target_loss(
            x.student.logits, teacher_of(x).logits, temperature=temperature
        )
    )


def kd(*, temperature: float | Array = 4.0, soft_weight: float = 0.9) -> Term:
    """Soft targets and labels in one value, see `kdjax.losses.kd_loss`."""
    return stateless(
        lambda x: losses.kd_loss(
            x.student.logits,
            teacher_of(x).logits,
            x.batch["label"],
            temperature=temperature,
            soft_weight=soft_weight,
        )
    )
