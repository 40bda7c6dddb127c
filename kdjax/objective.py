"""From terms to the number that training minimizes: the only place that averages and weighs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses._inputs import in_wide
from kdjax.metrics import counted, masked_sum, mean_of, positions_of, spread, weights_of
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Objective,
    Outputs,
    PyTree,
    Term,
    TermInputs,
    Variables,
)

__all__ = ["Weight", "combine"]

Weight = float | Array | Callable[[Array], Array]
"""A number, or a schedule of the step as optax makes them."""


def combine(terms: Mapping[str, Term], weights: Mapping[str, Weight]) -> Objective:
    """Weigh named terms and average them over the examples that count.

    loss = sum over terms of weight(step) * (sum of the term's valid values / their number)

    Where `inputs.mask` holds numbers, examples weigh as much: sum(m * values) / sum(m). Terms
    themselves are told who counts, `mask > 0`: in what relates examples each that counts is one.

    A mask of pixels, [batch, height, width], or of tokens, [batch, tokens], is for values of every
    grain. Of a term with a value for each position (losses of logits, and of features those that
    average over positions, such as hints) it selects the positions; one with a value for each
    example is averaged over the examples of which anything counts. A cell of a smaller map counts
    if any of its positions does. Terms see 0 in place of the features, student's and teacher's, at
    positions that do not count: padding has no say, whatever it holds. What a term ignores for its
    label, see `kdjax.terms.of`, does not count for this term.

    Args:
        terms: the losses by name.
        weights: for each name a number or a schedule of the step.

    Returns:
        An objective whose parameters and state are kept by term name, and whose metrics are
        `loss` and `loss/<name>` before weighing, as `(total, count)`.

    Raises:
        TypeError: if terms or weights are not by name.
        ValueError: if terms and weights do not have the same names, or there is none; at trace
            time, if a term looks for something that is not in the batch, or ignores a label and
            sees a part of the batch alone.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.objective import combine
        >>> from kdjax.testing import term_inputs
        >>> objective = combine(
        ...     {"soft": terms.soft_targets(), "hard": terms.cross_entropy()},
        ...     {"soft": 0.9, "hard": 0.1},
        ... )
        >>> variables = jax.eval_shape(objective.init, jax.random.key(0), term_inputs())
        >>> loss, _, metrics = jax.eval_shape(objective.apply, *variables, term_inputs())
        >>> loss.shape, sorted(metrics)
        ((), ['loss', 'loss/hard', 'loss/soft'])
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
        params: PyTree,
        state: PyTree,
        inputs: TermInputs,
        *,
        step: Array | int = 0,
        whole: Any = None,
    ) -> tuple[Array, PyTree, Metrics]:
        loss, (seen, mask) = jnp.zeros((), jnp.float32), _seen(inputs)
        new_state, metrics = {}, {}
        for name in names:
            with _named(name, inputs):
                values, new_state[name] = terms[name].apply(params[name], state[name], seen)
            masks = _masks(name, terms[name], values.shape[1:], (inputs.batch, mask), whole)
            total, count, of_all = _sums(name, values, *masks)
            metrics[f"loss/{name}"] = (total, count)
            loss = loss + mean_of(_at(weights[name], step) * total, of_all)
        num_valid, of_all = _sizes(mask, _parted(whole)[1])
        return loss, new_state, {"loss": (loss * of_all, num_valid), **metrics}

    return Objective(init, apply, *_stated({name: terms[name] for name in names}))


def _stated(terms: Mapping[str, Term]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the terms that couple the batch, and of those that ignore labels."""
    coupled = tuple(name for name, term in terms.items() if term.couples_batch)
    return coupled, tuple(n for n, term in terms.items() if term.ignore_label is not None)


def _masks(
    name: str, term: Term, shape: tuple[int, ...], part: tuple[Batch, Array], whole: Any
) -> tuple[Array, Array | None]:
    """Return what counts for a term in a part of a batch, and in the batch."""
    of_whole = _parted(whole)
    if term.ignore_label is None:
        return part[1], of_whole[1]
    if whole is not None and "label" in part[0] and "label" not in of_whole[0]:
        raise ValueError(
            f"combine: term {name!r} ignores a label: of a part of a batch, whole has to be "
            "{'mask': ..., 'label': ...} of the batch"
        )
    own = _labeled(term.ignore_label, shape, *part)
    return own, None if whole is None else _labeled(term.ignore_label, shape, *of_whole)


def _labeled(ignored: int, shape: tuple[int, ...], batch: Batch, mask: Array) -> Array:
    """Return what of a mask counts for values of a shape: not what has the ignored class label."""
    if "label" not in batch or batch["label"].shape[1:] != shape:
        return mask
    labels = in_wide(jnp.asarray(batch["label"]))
    weights = spread(mask, labels.shape)
    return jnp.where(labels == ignored, jnp.zeros_like(weights), weights)


def _parted(whole: Any) -> tuple[Batch, Any]:
    """Return what is given of a whole batch, and its mask."""
    return (whole, whole["mask"]) if isinstance(whole, dict) else ({}, whole)


def _sums(name: str, values: Array, mask: Array, whole: Array | None) -> tuple[Array, Array, Array]:
    """Return the total of a term, how many values went into it, and into that of the whole batch.

    Each grain has a number of its own: pixels, cells of smaller maps, examples.
    """
    if values.shape[:1] != mask.shape[:1]:
        raise ValueError(
            f"combine: term {name!r} returned values of shape {values.shape}, "
            f"expected one value per example, {mask.shape} like the mask"
        )
    total, count = masked_sum(values, mask)
    if whole is None:
        return total, count, count
    every = spread(whole, (len(whole), *values.shape[1:]))
    return total, count, jnp.sum(every, dtype=jnp.float32)


def _sizes(mask: Array, whole: Array | None) -> tuple[Array, Array]:
    """Return how much counts in a part, and in the whole batch."""
    own = jnp.sum(mask, dtype=jnp.float32)
    return own, own if whole is None else jnp.sum(whole, dtype=jnp.float32)


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
    counts = counted(weights)
    if weights.ndim == 1:
        return inputs._replace(mask=counts), weights

    def shown(x: Array) -> Array:
        if x.ndim < 2 or len(x) != len(counts):
            return x
        return jnp.where(positions_of(counts, x)[..., None], x, 0)

    def without_padding(outputs: Outputs | None) -> Any:
        features = {} if outputs is None else jax.tree.map(shown, dict(outputs.features))
        return outputs and outputs._replace(features=features)

    student, teacher = map(without_padding, (inputs.student, inputs.teacher))
    return inputs._replace(student=student, teacher=teacher, mask=counts), weights
