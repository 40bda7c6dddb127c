"""What all terms are made of."""

from collections.abc import Callable

from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables


def stateless(fn: Callable[[TermInputs], Array], *, couples_batch: bool = False) -> Term:
    """Lift a function of the inputs to a term that neither learns nor remembers.

    Args:
        fn: maps `TermInputs` to one value per example, [batch...].
        couples_batch: whether an example's value depends on the others (relations between
            examples do), in which case micro-batches change the loss.

    Returns:
        A term with empty variables.
    """

    def init(key: Array, inputs: TermInputs) -> Variables:
        return Variables({}, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return fn(inputs), state

    return Term(init, apply, couples_batch)


def teacher_of(inputs: TermInputs) -> Outputs:
    """Return the teacher's outputs.

    Raises:
        ValueError: if the step was given none.
    """
    if inputs.teacher is None:
        raise ValueError("this term needs a teacher's outputs, but the step was given none")
    return inputs.teacher


def feature_of(term: str, whose: str, outputs: Outputs, name: str) -> Array:
    """Return a captured feature.

    Args:
        term: the term that asks, for the message.
        whose: "student" or "teacher", likewise.
        outputs: of that network.
        name: the feature's module path.

    Raises:
        ValueError: if the network captured no feature of that name.
    """
    if name not in outputs.features:
        raise ValueError(
            f"{term}: the {whose} captured no feature {name!r}, only {sorted(outputs.features)}"
        )
    return outputs.features[name]
