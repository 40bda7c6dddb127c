"""Training on images some of which have no label: the teacher alone teaches on those."""

import jax.numpy as jnp

from kdjax import metrics
from kdjax.data import NO_LABEL
from kdjax.runs import methods
from kdjax.runs.needs import Need
from kdjax.types import Array, PyTree, Term, TermInputs


def reads_labels(name: str) -> bool:
    """Whether a method, or one of several joined by "+", reads labels in terms of its own."""
    needs = (methods.METHODS[method].needs for method in methods.methods_in(name))
    return any(Need.LABELS in need for need in needs)


def of_labeled(term: Term) -> Term:
    """Return a term of labels whose loss is the mean over the examples that have one.

    The others, whose label is -1, add nothing, and are compared with none. As the mean depends on
    how many there are in the batch, micro-batches would change it.
    """

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        label, counts = inputs.batch["label"], metrics.counted(inputs.mask)
        has_label = label != NO_LABEL
        batch = {**inputs.batch, "label": jnp.where(has_label, label, 0)}
        labeled = inputs._replace(batch=batch, mask=counts & has_label)
        values, state = term.apply(params, state, labeled)
        # The sum is to be divided by all that count, and should be by those with a label.
        share = jnp.sum(counts) / jnp.maximum(jnp.sum(counts & has_label), 1)
        return jnp.where(has_label, values * share, 0), state

    # Those that have none are left out here, and not once more where the mean is taken.
    return term._replace(apply=apply, couples_batch=True, ignore_label=None)
