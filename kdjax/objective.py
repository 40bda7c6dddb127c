"""From terms to the number that training minimizes: the only place that averages and weighs."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kdjax.metrics import masked_sum
from kdjax.types import Array, Metrics, Objective, PyTree, Term, TermInputs, Variables

__all__ = ["Weight", "combine"]

Weight = float | Array | Callable[[Array], Array]
"""A number, or a schedule of the step as optax makes them."""


def combine(terms: Mapping[str, Term], weights: Mapping[str, Weight]) -> Objective:
    """Weigh named terms and average them over the examples that count.

    loss = sum over terms of weight(step) * (sum of the term's valid values / their number)

    Args:
        terms: the losses by name.
        weights: for each name a number or a schedule of the step.

    Returns:
        An objective whose parameters and state are kept by term name, and whose metrics are
        `loss` and `loss/<name>` before weighing, as `(total, count)`.

    Raises:
        ValueError: if terms and weights do not have the same names, or there is none.
    """
    if not terms or terms.keys() != weights.keys():
        raise ValueError(
            f"combine: weights has names {sorted(weights)}, expected {sorted(terms)} like terms"
        )
    names = sorted(terms)

    def init(key: Array, inputs: TermInputs) -> Variables:
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}
        variables = {name: terms[name].init(keys[name], inputs) for name in names}
        return Variables(
            {name: v.params for name, v in variables.items()},
            {name: v.state for name, v in variables.items()},
        )

    def apply(
        params: PyTree, state: PyTree, inputs: TermInputs, *, step: Array | int = 0
    ) -> tuple[Array, PyTree, Metrics]:
        loss = jnp.zeros((), jnp.float32)
        new_state, metrics = {}, {}
        for name in names:
            values, new_state[name] = terms[name].apply(params[name], state[name], inputs)
            total, count = masked_sum(_per_example(name, values, inputs.mask), inputs.mask)
            metrics[f"loss/{name}"] = (total, count)
            loss = loss + _at(weights[name], step) * total / jnp.maximum(count, 1)
        num_valid = jnp.sum(inputs.mask, dtype=jnp.float32)
        return loss, new_state, {"loss": (loss * num_valid, num_valid), **metrics}

    return Objective(init, apply, tuple(name for name in names if terms[name].couples_batch))


def _at(weight: Weight, step: Array | int) -> Array | float:
    return weight(jnp.asarray(step)) if callable(weight) else weight


def _per_example(name: str, values: Array, mask: Array) -> Array:
    if values.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"combine: term {name!r} returned values of shape {values.shape}, "
            f"expected one value per example, {mask.shape} like the mask"
        )
    return values
