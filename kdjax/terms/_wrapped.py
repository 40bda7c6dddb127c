"""Terms of other terms: the same loss on other numbers."""

from collections.abc import Callable

import jax.numpy as jnp

from kdjax import losses
from kdjax.losses._numerics import norms
from kdjax.terms._reading import feature_of
from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables


def standardized(term: Term) -> Term:
    """Another term on the z-scores of all logits, see `kdjax.losses.standardize_logits`.

    Args:
        term: one of soft targets alone: cross-entropy with labels belongs on the logits as they
            are, in a term of its own.

    Returns:
        The term, with its own variables.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term = terms.standardized(terms.soft_targets(temperature=2.0))
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), term_inputs())
        >>> jax.eval_shape(term.apply, *variables, term_inputs())[0].shape
        (8,)

    References:
        Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", 2024,
        arXiv:2403.01427.
    """

    def scored(outputs: Outputs) -> Outputs:
        return outputs._replace(logits=losses.standardize_logits(outputs.logits))

    return _on(term, _in_both(scored))


def with_logits_of(term: Term, head: str) -> Term:
    """Another term on the logits of one of several heads of the student.

    Args:
        term: one of logits.
        head: the module path of the head, captured among the student's features.

    Returns:
        The term, with its own variables.

    Example:
        A student with a distillation token learns from labels and teacher by a head each.

        >>> from kdjax import losses, terms
        >>> from kdjax.objective import combine
        >>> objective = combine(
        ...     {
        ...         "hard": terms.with_logits_of(terms.cross_entropy(), "head"),
        ...         "deit": terms.with_logits_of(
        ...             terms.of(losses.hard_target_loss), "distillation_head"
        ...         ),
        ...     },
        ...     {"hard": 0.5, "deit": 0.5},
        ... )

    References:
        Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training data-efficient image
        transformers & distillation through attention", 2020, arXiv:2012.12877, section 4.
    """

    def of_head(inputs: TermInputs) -> TermInputs:
        logits = feature_of("with_logits_of", "student", inputs.student, head)
        return inputs._replace(student=inputs.student._replace(logits=logits))

    return _on(term, of_head)


def normalized(term: Term) -> Term:
    """Another term on features of length one, each flattened to [batch, width].

    What a scale means, `kdjax.losses.hard_dark_rank_loss`'s for one, is then the same whatever the
    network.

    Args:
        term: one of features whose positions have no part of their own, such as relations between
            examples.

    Returns:
        The term, with its own variables.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.normalized(terms.hint("hidden", "hidden")), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)
    """

    def unit(outputs: Outputs) -> Outputs:
        return outputs._replace(features={n: _unit_rows(x) for n, x in outputs.features.items()})

    return _on(term, _in_both(unit))


def _unit_rows(x: Array) -> Array:
    wide = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return norms.normalize(wide)


def _in_both(change: Callable[[Outputs], Outputs]) -> Callable[[TermInputs], TermInputs]:
    def changed(x: TermInputs) -> TermInputs:
        teacher = None if x.teacher is None else change(x.teacher)
        return x._replace(student=change(x.student), teacher=teacher)

    return changed


def _on(term: Term, changed: Callable[[TermInputs], TermInputs]) -> Term:
    def init(key: Array, inputs: TermInputs) -> Variables:
        return term.init(key, changed(inputs))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return term.apply(params, state, changed(inputs))

    return term._replace(init=init, apply=apply)
