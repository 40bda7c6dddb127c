"""From a loss to a term: `of`, and the three that most objectives have."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.metrics import examples_of, positions_of, spread
from kdjax.terms._reading import (
    Paths,
    at_positions,
    feature_of,
    pair_paths,
    paths_of,
    teacher_of,
    total,
)
from kdjax.terms._signature import Signature, signature_of
from kdjax.types import Array, Outputs, PyTree, Term, TermInputs, Variables

Reader = Callable[[TermInputs], Any]
_NETWORKS: dict[str, Callable[[TermInputs], Outputs]] = {
    "student": lambda x: x.student,
    "teacher": teacher_of,
}
_READERS: dict[str, Reader] = {
    "student_logits": lambda x: x.student.logits,
    "logits": lambda x: x.student.logits,
    "teacher_logits": lambda x: teacher_of(x).logits,
    "labels": lambda x: x.batch["label"],
    "label_probs": lambda x: x.batch["label"],
    "student_outputs": lambda x: x.student.logits,
    "outputs": lambda x: x.student.logits,
    "teacher_outputs": lambda x: teacher_of(x).logits,
    "mask": lambda x: x.mask if x.mask.ndim == 1 else spread(x.mask, x.student.logits.shape[:-1]),
}
_AVERAGES = (losses.cosine_loss, losses.hint_loss, losses.projected_feature_loss)
"""Losses that average over positions, each by itself: a mask of positions selects some."""


def stateless(fn: Callable[[TermInputs], Array], *, couples_batch: bool = False) -> Term:
    """Lift a function of the inputs to a term that neither learns nor remembers.

    Args:
        fn: maps `TermInputs` to one value per example, [batch...].
        couples_batch: whether an example's value depends on the others (relations between
            examples do), in which case micro-batches change the loss.

    Returns:
        A term with empty variables.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term = terms.stateless(
        ...     lambda inputs: jax.numpy.square(inputs.student.logits).mean(-1)
        ... )
        >>> term.apply({}, {}, term_inputs())[0].shape
        (8,)
    """

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        return fn(inputs), state

    return Term(_init_nothing, apply, couples_batch)


def of(
    loss: Callable[..., Array],
    *,
    student: Paths | None = None,
    teacher: Paths | None = None,
    couples_batch: bool | None = None,
    averages: bool | None = None,
    **hyper_parameters: Any,
) -> Term:
    """Lift a loss, of `kdjax.losses` or your own, to a term, by the names of its parameters.

    What a parameter takes is read off its name:

    - `student_logits` (or `logits`), `teacher_logits`, and of real numbers `student_outputs` (or
      `outputs`), `teacher_outputs`: of the networks' outputs;
    - `student_log_probs`, `teacher_log_probs`: of their softened probabilities, the teacher's
      constant; the hyper-parameter `temperature`, 1 by default, softens both, without a factor T^2;
    - `labels`, `label_probs`: `batch["label"]`;
    - `mask`: the examples that count; such a loss couples the batch;
    - any other name that begins with `student` or `teacher`, as `student_features` does: the
      features at the paths that `student=` and `teacher=` name; the path "logits" stands for the
      networks' outputs.

    All other parameters, `where` and `axis` too, are hyper-parameters: the loss's defaults hold
    where they are not given. With an `ignore_label` the mean is over the other class labels.

    Args:
        loss: arrays in, one value per example out, [batch...]; it neither learns nor remembers.
        student: module path of a student feature, such as one of `Model.paths.stages`, or one for
            each stage: the losses add up. A loss whose parameter is annotated as a sequence, such
            as `kdjax.losses.flow_loss`, takes the features of all stages at once.
        teacher: paths of as many teacher features.
        couples_batch: whether an example's value depends on the others; by default, whether the
            loss takes a `mask`.
        averages: whether a loss of features averages over positions, each by itself; under a mask
            of positions, of pixels or tokens, it then has a value for each. By default known of
            the losses of kdjax. All others see 0 in both networks at positions that do not count.
        **hyper_parameters: what the loss is called with beside that.

    Returns:
        A term with empty variables.

    Raises:
        TypeError: if the loss has no such hyper-parameter.
        ValueError: if a parameter of the loss cannot be filled, or paths are given that it does not
            take or that are not as many; at trace time, if a feature was not captured.

    Example:
        >>> from kdjax import losses, terms
        >>> from kdjax.testing import term_inputs
        >>> inputs = term_inputs()
        >>> dkd = terms.of(losses.dkd_loss, temperature=2.0)
        >>> values, _ = dkd.apply({}, {}, inputs)
        >>> values.shape
        (8,)
        >>> stages = ("stage_1", "stage_2")
        >>> at = terms.of(losses.attention_transfer_loss, student=stages, teacher=stages)
        >>> pkt = terms.of(losses.probabilistic_transfer_loss, student="hidden", teacher="hidden")
        >>> at.couples_batch, pkt.couples_batch
        (False, True)
    """
    signature = signature_of(loss)
    softness = _softness(signature, hyper_parameters)
    _check_names(signature, {"student": student, "teacher": teacher}, hyper_parameters)
    names = [n for n in (*signature.positional, *signature.missing) if n not in hyper_parameters]
    if "mask" in signature.defaults and "mask" not in hyper_parameters:
        names.append("mask")
    calls = [
        {name: _reader(signature, name, paths, softness) for name in names}
        for paths in _stages(signature, student, teacher)
    ]

    averages = _plain(loss) in _AVERAGES if averages is None else averages

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = []
        for readers in calls:
            arrays = {name: read(inputs) for name, read in readers.items()}
            arrays = _fitted(_plain(loss), arrays, inputs.mask)
            fn = functools.partial(loss, **hyper_parameters)
            values.append(at_positions(fn, inputs.mask, **arrays) if averages else fn(**arrays))
        return total(values, inputs.mask), state

    coupled = "mask" in names if couples_batch is None else couples_batch
    bound = {**signature.defaults, **hyper_parameters}
    return Term(_init_nothing, apply, coupled, bound.get("ignore_label"))


def cross_entropy(*, label_smoothing: float | Array = 0.0) -> Term:
    """Cross-entropy of the student at temperature 1 with `batch["label"]`, perhaps smoothed.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.cross_entropy(label_smoothing=0.1), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)
    """
    return of(losses.cross_entropy, label_smoothing=label_smoothing)


def soft_targets(*, temperature: float | Array = 4.0) -> Term:
    """The soft part of distillation, see `kdjax.losses.soft_target_loss`; it needs no labels.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.soft_targets(temperature=2.0), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)
    """
    return of(losses.soft_target_loss, temperature=temperature)


def kd(*, temperature: float | Array = 4.0, soft_weight: float | Array = 0.9) -> Term:
    """Soft targets and labels in one value, see `kdjax.losses.kd_loss`.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.kd(temperature=2.0), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)
    """
    return of(losses.kd_loss, temperature=temperature, soft_weight=soft_weight)


def _init_nothing(key: Array, inputs: TermInputs) -> Variables:
    return Variables({}, {})


def _plain(loss: Callable[..., Array]) -> Callable[..., Array]:
    """Return a loss without what was bound to it."""
    return loss.func if isinstance(loss, functools.partial) else loss


def _fitted(loss: Any, arrays: dict[str, Any], mask: Array) -> dict[str, Any]:
    """Return what a loss takes as it has to be where a mask tells of positions."""
    if mask.ndim > 1 and loss is losses.projected_feature_loss:
        return dict(zip(arrays, losses.match_sizes(*arrays.values()), strict=True))
    if mask.ndim > 1 and loss is losses.channel_wise_loss:
        # A softmax over positions has to be told which there are.
        found = ((name, x, positions_of(mask, x)[..., None]) for name, x in arrays.items())
        return {name: jnp.where(counts, x, -jnp.inf) for name, x, counts in found}
    return arrays


def _softness(signature: Signature, hyper_parameters: dict[str, Any]) -> float | Array:
    """Return the temperature of log-probabilities and remove it: their loss takes none."""
    takes = any(name.endswith("_log_probs") for name in signature.positional)
    own = "temperature" in (*signature.defaults, *signature.missing)
    given: float | Array = hyper_parameters.pop("temperature", 1.0) if takes and not own else 1.0
    return given


def _side(name: str) -> str | None:
    """Return whose feature a parameter takes, None if it takes none."""
    if name in _READERS or name.endswith("_log_probs"):
        return None
    return next((side for side in _NETWORKS if name.startswith(side)), None)


def _check_names(
    signature: Signature, paths: dict[str, Paths | None], hyper_parameters: dict[str, Any]
) -> None:
    """Raise an error that names the first parameter that is unknown or cannot be filled."""
    needed = (*signature.positional, *signature.missing)
    known = {*needed, *signature.defaults}
    unknown = [name for name in hyper_parameters if name not in known]
    if unknown:
        raise TypeError(
            f"of: {signature.name} has no parameter {unknown[0]!r}, only {sorted(known)}"
        )
    unfilled = [name for name in needed if name not in hyper_parameters]
    for name in unfilled:
        _check_fillable(signature.name, name, paths)
    for side in _NETWORKS:
        if paths[side] is not None and side not in map(_side, unfilled):
            raise ValueError(f"of: {signature.name} takes no feature of the {side}, got {side}=")


def _check_fillable(loss: str, name: str, paths: dict[str, Paths | None]) -> None:
    side = _side(name)
    if side and paths[side] is None:
        raise ValueError(f"of: {loss} takes {name}, a feature: give its path as {side}=")
    if not (side or name in _READERS or name.endswith("_log_probs")):
        raise ValueError(
            f"of: {loss} takes {name}, which is neither of the batch nor of a network: give it as "
            f"{name}="
        )


def _stages(
    signature: Signature, student: Paths | None, teacher: Paths | None
) -> list[dict[str, Paths]]:
    """Return for each call of the loss the path, or the paths, of each network's feature."""
    given = {s: p for s, p in {"student": student, "teacher": teacher}.items() if p is not None}
    if len(given) == 2:
        pairs = pair_paths(signature.name, given["student"], given["teacher"])
        given = {"student": [pair[0] for pair in pairs], "teacher": [pair[1] for pair in pairs]}
    if any(map(_side, signature.lists)) or not given:
        return [{side: paths_of(paths) for side, paths in given.items()}]
    columns = zip(*map(paths_of, given.values()), strict=True)
    return [dict(zip(given, column, strict=True)) for column in columns]


def _reader(
    signature: Signature, name: str, paths: dict[str, Paths], softness: float | Array
) -> Reader:
    """Return what fills a parameter."""
    side = _side(name)
    if name == "mask" and paths:
        return lambda x: examples_of(x.mask)
    if side:
        network, chosen = _NETWORKS[side], paths[side]
        if isinstance(chosen, str):
            return lambda x: feature_of(signature.name, side, network(x), chosen)
        return lambda x: tuple(feature_of(signature.name, side, network(x), p) for p in chosen)
    if name == "teacher_log_probs":
        return lambda x: losses.tempered_log_softmax(
            jax.lax.stop_gradient(teacher_of(x).logits), softness
        )
    if name.endswith("_log_probs"):
        return lambda x: losses.tempered_log_softmax(x.student.logits, softness)
    return _READERS[name]
