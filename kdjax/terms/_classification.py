"""Terms of a classifier's logits."""

from collections.abc import Callable, Sequence
from typing import Any

from kdjax import losses
from kdjax.terms._base import stateless, teacher_of
from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables

Number = float | Array


def dkd(
    *, temperature: Number = 4.0, target_weight: float = 1.0, nontarget_weight: float = 8.0
) -> Term:
    """The labelled class and the others apart (DKD), see `kdjax.losses.dkd_loss`."""
    hyper = {"target_weight": target_weight, "nontarget_weight": nontarget_weight}
    return _labelled(losses.dkd_loss, temperature=temperature, **hyper)


def nkd(*, temperature: Number = 1.0, nontarget_weight: float = 1.5) -> Term:
    """The labelled class and the others, normalised (NKD), see `kdjax.losses.nkd_loss`."""
    hyper = {"temperature": temperature, "nontarget_weight": nontarget_weight}
    return _labelled(losses.nkd_loss, **hyper)


def wsld(*, temperature: Number = 2.0, eps: float = 1e-7) -> Term:
    """Weighted soft labels (WSLD), see `kdjax.losses.wsld_loss`."""
    return _labelled(losses.wsld_loss, temperature=temperature, eps=eps)


def ttm(*, temperature: Number = 10.0) -> Term:
    """Only the teacher is softened (TTM), see `kdjax.losses.ttm_loss`."""
    return _plain(losses.ttm_loss, temperature=temperature)


def wttm(*, temperature: Number = 5.0) -> Term:
    """More of the teacher where it is less sure (WTTM), see `kdjax.losses.wttm_loss`."""
    return _plain(losses.wttm_loss, temperature=temperature)


def logit_mse() -> Term:
    """Mean squared difference of the logits, see `kdjax.losses.logit_mse_loss`."""
    return _plain(losses.logit_mse_loss)


def logit_distance(*, eps: float = 0.0) -> Term:
    """Euclidean distance of the logits, see `kdjax.losses.logit_distance_loss`."""
    return _plain(losses.logit_distance_loss, eps=eps)


def hard_targets(*, smoothing: float = 0.0) -> Term:
    """The teacher's choice as the label, see `kdjax.losses.hard_target_loss`."""
    return _plain(losses.hard_target_loss, smoothing=smoothing)


def dist(
    *,
    temperature: Number = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    eps: float = 1e-8,
) -> Term:
    """Correlations within examples and within classes (DIST), see `kdjax.losses.dist_loss`."""
    weights = {"inter_weight": inter_weight, "intra_weight": intra_weight}
    return _coupled(losses.dist_loss, temperature=temperature, eps=eps, **weights)


def batch_correlation(*, temperature: Number = 4.0) -> Term:
    """How alike examples are, see `kdjax.losses.batch_correlation_loss`."""
    return _coupled(losses.batch_correlation_loss, temperature=temperature)


def class_correlation(*, temperature: Number = 4.0) -> Term:
    """Which classes are taken for one another, see `kdjax.losses.class_correlation_loss`."""
    return _coupled(losses.class_correlation_loss, temperature=temperature)


def multi_level(
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
    confidence_quantile: float | None = None,
) -> Term:
    """Instances, batch and classes (MLKD), see `kdjax.losses.multi_level_loss`."""
    return _coupled(
        losses.multi_level_loss,
        temperatures=temperatures,
        instance_weight=instance_weight,
        batch_weight=batch_weight,
        class_weight=class_weight,
        confidence_quantile=confidence_quantile,
    )


def direction_relation(*, regularization: float = 0.1) -> Term:
    """Cosines between examples' logits (SKD), see `kdjax.losses.direction_relation_loss`."""
    return _coupled(losses.direction_relation_loss, regularization=regularization)


def virtual_teacher(*, temperature: Number = 20.0, confidence: float = 0.99) -> Term:
    """A teacher made by hand (Tf-KD), see `kdjax.losses.virtual_teacher_loss`."""
    return stateless(
        lambda x: losses.virtual_teacher_loss(
            x.student.logits, x.batch["label"], temperature=temperature, confidence=confidence
        )
    )


def standardized(term: Term) -> Term:
    """Another term on the z-scores of all logits, see `kdjax.losses.standardize_logits`.

    Args:
        term: one of soft targets alone: cross-entropy with labels belongs on the logits as they
            are, in a term of its own.

    Returns:
        The term, with its own variables.

    References:
        Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", 2024,
        arXiv:2403.01427.
    """

    def score(outputs: Outputs) -> Outputs:
        return outputs._replace(logits=losses.standardize_logits(outputs.logits))

    def scores(x: TermInputs) -> TermInputs:
        teacher = None if x.teacher is None else score(x.teacher)
        return x._replace(student=score(x.student), teacher=teacher)

    def init(key: Array, inputs: TermInputs) -> Variables:
        return term.init(key, scores(inputs))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return term.apply(params, state, scores(inputs))

    return Term(init, apply, term.couples_batch)


def _plain(loss: Callable[..., Array], **hyper: Any) -> Term:
    return stateless(lambda x: loss(x.student.logits, teacher_of(x).logits, **hyper))


def _labelled(loss: Callable[..., Array], **hyper: Any) -> Term:
    return stateless(
        lambda x: loss(x.student.logits, teacher_of(x).logits, x.batch["label"], **hyper)
    )


def _coupled(loss: Callable[..., Array], **hyper: Any) -> Term:
    return stateless(
        lambda x: loss(x.student.logits, teacher_of(x).logits, mask=x.mask, **hyper),
        couples_batch=True,
    )
