"""What terms that learn have in common: parameters for the widths of a pair of features."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _inputs
from kdjax.terms._reading import pair_of, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def learned(
    term: str,
    paths: tuple[str, str],
    init: Callable[[Array, int, int], PyTree],
    loss: Callable[[PyTree, PyTree, Array, Array, TermInputs], Array],
    *,
    constants: PyTree = None,
    read: Callable[[str, TermInputs, str, str], tuple[Array, Array]] = pair_of,
    couples_batch: bool = True,
) -> Term:
    """Return a term of one pair of features, with parameters.

    Args:
        term: its name, for messages.
        paths: of the student's feature and the teacher's.
        init: makes the parameters from a key and both widths.
        loss: of parameters, constants, both features and the inputs.
        constants: copied; they travel as state.
        read: how the features are read, by name, inputs and paths.
        couples_batch: whether an example's value depends on the others.
    """

    def init_pair(key: Array, inputs: TermInputs) -> Variables:
        params = init(key, *(x.shape[-1] for x in read(term, inputs, *paths)))
        # A copy: the state's buffers are donated, and the teacher needs its own.
        return Variables(params, {} if constants is None else jax.tree.map(jnp.array, constants))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return loss(params, state, *read(term, inputs, *paths), inputs), state

    return Term(init_pair, apply, couples_batch)


def staged(stages: Sequence[Term], *, decay: float = 1.0) -> Term:
    """Return the sum of learned terms, of which `stage_<i>` holds parameters and constants.

    Args:
        stages: one for each, from the input to the output.
        decay: what the weight of a stage is multiplied by for each stage behind it.
    """
    names = [f"stage_{i}" for i in range(len(stages))]

    def init(key: Array, inputs: TermInputs) -> Variables:
        keys = [jax.random.fold_in(key, i) for i in range(len(stages))]
        made = {n: x.init(k, inputs) for n, x, k in zip(names, stages, keys, strict=True)}
        state = {name: v.state for name, v in made.items() if jax.tree.leaves(v.state)}
        return Variables({name: v.params for name, v in made.items()}, state)

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = []
        for behind, name, stage in zip(range(len(stages))[::-1], names, stages, strict=True):
            value, _ = stage.apply(params[name], state.get(name), inputs)
            values.append(decay**behind * value)
        return total(values, inputs.mask), state

    return Term(init, apply, any(stage.couples_batch for stage in stages))


def one_size(term: str, inputs: TermInputs, student: str, teacher: str) -> tuple[Array, Array]:
    """Read a pair of maps and average the larger to the size of the smaller."""
    return _inputs.as_one_size(term, *pair_of(term, inputs, student, teacher))
