"""Terms of other terms: the same loss on other numbers."""

from collections.abc import Callable

import jax.numpy as jnp

from kdjax import losses
from kdjax.losses._numerics import norms
from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables


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
    return _on(term, lambda x: x._replace(logits=losses.standardize_logits(x.logits)))


def normalized(term: Term) -> Term:
    """Another term on features of length one, each flattened to [batch, width].

    What a scale means, `kdjax.losses.hard_dark_rank_loss`'s for one, is then the same whatever the
    network.

    Args:
        term: one of features whose positions have no part of their own, such as relations between
            examples.

    Returns:
        The term, with its own variables.
    """

    def unit(outputs: Outputs) -> Outputs:
        return outputs._replace(features={n: _unit_rows(x) for n, x in outputs.features.items()})

    return _on(term, unit)


def _unit_rows(x: Array) -> Array:
    wide = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return norms.normalize(wide)


def _on(term: Term, change: Callable[[Outputs], Outputs]) -> Term:
    def changed(x: TermInputs) -> TermInputs:
        teacher = None if x.teacher is None else change(x.teacher)
        return x._replace(student=change(x.student), teacher=teacher)

    def init(key: Array, inputs: TermInputs) -> Variables:
        return term.init(key, changed(inputs))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return term.apply(params, state, changed(inputs))

    return Term(init, apply, term.couples_batch)
