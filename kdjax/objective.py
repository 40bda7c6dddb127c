"""From terms to the number that training minimizes: the only place that averages and weighs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from kdjax.metrics import counted, masked_sum, mean_of, weights_of
from kdjax.types import Array, Metrics, Objective, PyTree, Term, TermInputs, Variables

__all__ = ["Weight", "combine"]

Weight = float | Array | Callable[[Array], Array]
"""A number, or a schedule of the step as optax makes them."""


def combine(terms: Mapping[str, Term], weights: Mapping[str, Weight]) -> Objective:
    """Weigh named terms and average them over the examples that count.

    loss = sum over terms of weight(step) * (sum of the term's valid values / their number)

    Where `inputs.mask` holds numbers, examples weigh as much: sum(m * values) / sum(m). Terms
    themselves are told who counts, `mask > 0`: in what relates examples each that counts is one.

    A mask of pixels, [batch, height, width], or of tokens weighs the values of terms that have one
    for each. What has one per example, as losses of feature maps do, is averaged over the examples
    of which anything counts. Where a mask of tokens, [batch, tokens], meets features of tokens,
    [batch, tokens, width], tokens are the examples of all terms, and padding has no say.

    Args:
        terms: the losses by name.
        weights: for each name a number or a schedule of the step.

    Returns:
        An objective whose parameters and state are kept by term name, and whose metrics are
        `loss` and `loss/<name>` before weighing, as `(total, count)`.

    Raises:
        TypeError: if terms or weights are not by name.
        ValueError: if terms and weights do not have the same names, or there is none; at trace
            time, if a term looks for something that is not in the batch.
    """
    for what, given in {"terms": terms, "weights": weights}.items():
        if not isinstance(given, Mapping):
            raise TypeError(
                f"combine: {what} is a {type(given).__name__}, expected them by name, such as "
                "{'soft': ..., 'hard': ...}"
            )
    if not terms or terms.keys() != weights.keys():
        raise ValueError(
            f"combine: weights has names {sorted(weights)}, expected {sorted(terms)} like terms"
        )
    names = sorted(terms)

    def init(key: Array, inputs: TermInputs) -> Variables:
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(names)}
        inputs, _ = _seen(inputs)
        variables = {}
        for name in names:
            with _named(name, inputs):
                variables[name] = terms[name].init(keys[name], inputs)
        return Variables(
            {name: v.params for name, v in variables.items()},
            {name: v.state for name, v in variables.items()},
        )

    def apply(
        params: PyTree, state: PyTree, inputs: TermInputs, *, step: Array | int = 0
    ) -> tuple[Array, PyTree, Metrics]:
        loss, (seen, mask) = jnp.zeros((), jnp.float32), _seen(inputs)
        new_state, metrics = {}, {}
        for name in names:
            with _named(name, inputs):
                values, new_state[name] = terms[name].apply(params[name], state[name], seen)
            total, count = masked_sum(values, _at_grain_of(name, values, mask))
            metrics[f"loss/{name}"] = (total, count)
            loss = loss + mean_of(_at(weights[name], step) * total, count)
        num_valid = jnp.sum(mask, dtype=jnp.float32)
        return loss, new_state, {"loss": (loss * num_valid, num_valid), **metrics}

    return Objective(init, apply, tuple(name for name in names if terms[name].couples_batch))


def _at(weight: Weight, step: Array | int) -> Array | float:
    if not callable(weight):
        return weight
    # Schedules of optax count on promotion: step / num_steps.
    with jax.numpy_dtype_promotion("standard"):
        return weight(jnp.asarray(step))


@contextlib.contextmanager
def _named(name: str, inputs: TermInputs) -> Iterator[None]:
    """Say which term looks for something that is not there, and what is."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"combine: term {name!r} looks for {error}, which is not there; the batch has "
            f"{sorted(inputs.batch)}, the student's features are {sorted(inputs.student.features)}"
        ) from error


def _seen(inputs: TermInputs) -> tuple[TermInputs, Array]:
    """Return what terms see, who counts among it, and the weights of all."""
    weights = weights_of(inputs.mask)
    shape = weights.shape
    features = [
        x for of in (inputs.student, inputs.teacher) if of is not None for x in of.features.values()
    ]
    if len(shape) == 2 and features and all(x.shape[:-1] == shape for x in features):

        def flat(x: Array) -> Array:
            return x.reshape(-1, *x.shape[2:]) if x.shape[:2] == shape else x

        inputs, weights = jax.tree.map(flat, (inputs, weights))
    return inputs._replace(mask=counted(weights)), weights


def _at_grain_of(name: str, values: Array, mask: Array) -> Array:
    """Return the mask as the values have it: for each, or for each example."""
    if values.ndim < mask.ndim and values.shape == mask.shape[:1]:
        return jnp.any(mask > 0, axis=tuple(range(1, mask.ndim)))
    if values.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"combine: term {name!r} returned values of shape {values.shape}, "
            f"expected one value per example, {mask.shape} like the mask"
        )
    return mask
