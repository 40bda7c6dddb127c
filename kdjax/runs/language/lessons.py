"""What is minimized: a divergence from the teacher and the labels' cross-entropy, on hidden states.

Networks answer with hidden states and the head that reads them, and with no logits: those exist for
a chunk of tokens at a time, here and where networks are measured.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import heads, losses, metrics, models, terms
from kdjax.heads import Head
from kdjax.objective import combine
from kdjax.runs.language.settings import LanguageSettings
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Model,
    Objective,
    Outputs,
    PyTree,
    Teacher,
    TermInputs,
    Variables,
)

_OF_LOGITS: Mapping[str, Callable[..., Array]] = {
    "reverse-kl": losses.reverse_kl_divergence,
    "jsd": losses.generalized_js_divergence,
    "skew-kl": losses.skew_kl_divergence,
    "skew-reverse-kl": losses.skew_reverse_kl_divergence,
    "symmetric-kl": losses.symmetric_kl_divergence,
    "total-variation": losses.total_variation,
}
"""Divergences of log-probabilities, by the name of the flag."""
_AUDITED = 64
"""Tokens that an objective is held against what it should satisfy on."""


def inputs_of(batch: Batch) -> Any:
    """Return what a decoder is fed out of a batch."""
    if "document" in batch:
        return {"tokens": batch["tokens"], "document": batch["document"]}
    return batch["tokens"]


def without_logits(model: Model) -> Model:
    """Let a decoder answer with `hidden` states and its `head`, and with logits of no word."""
    path = model.paths.embedding

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(params, state, inputs, train=train, key=key)
        head = models.head_of(Variables(params, state)).kernel
        return answer_of(outputs.features[path], head), state

    return model._replace(apply=apply)


def answer_of(hidden: Array, head: Array) -> Outputs:
    """Return hidden states [..., width] and a head [vocab, width] in the place of logits.

    The head has two axes before its own, so that its rows are never taken for those of a batch.
    """
    none = jnp.zeros((*hidden.shape[:-1], 0), jnp.float32)
    return Outputs(none, {"hidden": hidden, "head": head[None, None]})


def from_labels(chunk_size: int) -> Objective:
    """Return the objective of the labels' cross-entropy alone."""

    def loss(inputs: TermInputs, step: Any) -> Array:
        return _mean(losses.cross_entropy, inputs, chunk_size, taught=False)

    return _objective(loss)


def distilled(settings: LanguageSettings, num_steps: int) -> Objective:
    """Return the objective of the flags: the divergence and, with the rest of the weight, labels.

    Where a batch says so (`of_data` is 0), its labels are the student's own words and do not count.

    Args:
        settings: the flags.
        num_steps: over which `taid` moves from the student to the teacher.
    """
    own = settings.soft_weight

    def loss(inputs: TermInputs, step: Any) -> Array:
        hard = (1 - own) * jnp.asarray(inputs.batch.get("of_data", 1.0), jnp.float32)
        progress = jnp.asarray(step, jnp.float32) / num_steps
        if settings.divergence == "logit-mse":
            return own * _squared(inputs) + hard * _mean(
                losses.cross_entropy, inputs, settings.chunk_size, taught=False
            )

        def of_tokens(student: Array, teacher: Array, labels: Array) -> Array:
            soft = divergence(settings, student, teacher, progress)
            return own * soft + hard * losses.cross_entropy(student, labels)

        return _mean(of_tokens, inputs, settings.chunk_size, taught=True)

    return _objective(loss)


def of_logits(
    settings: LanguageSettings, batch: Batch, student: Outputs, teacher: Outputs
) -> tuple[Objective, tuple[Batch, Outputs, Outputs]]:
    """Return what is minimized as an objective of logits, and those of a batch's first tokens.

    Args:
        settings: the flags.
        batch: labels [rows, length] and their mask.
        student: what it says without logits.
        teacher: likewise.
    """
    label = batch["label"].ravel()[:_AUDITED]
    tokens = {"label": label, "mask": batch["mask"].ravel()[:_AUDITED]}

    def with_logits(outputs: Outputs) -> Outputs:
        hidden, head = (outputs.features[name] for name in ("hidden", "head"))
        few = hidden.reshape(-1, hidden.shape[-1])[:_AUDITED].astype(jnp.float32)
        return Outputs(few @ head[0, 0].astype(jnp.float32).T)

    def soft(inputs: TermInputs) -> Array:
        assert inputs.teacher is not None
        given = inputs.student.logits, jax.lax.stop_gradient(inputs.teacher.logits)
        return divergence(settings, *given, jnp.float32(0))

    parts = {"soft": terms.stateless(soft), "labels": terms.cross_entropy()}
    weights = {"soft": settings.soft_weight, "labels": 1 - settings.soft_weight}
    return combine(parts, weights), (tokens, with_logits(student), with_logits(teacher))


def divergence(
    settings: LanguageSettings, student: Array, teacher: Array, progress: Array
) -> Array:
    """Return the divergence of the flags, one value per token, of logits [tokens, vocab].

    Args:
        settings: divergence, temperature, beta and skew.
        student: logits.
        teacher: logits.
        progress: the share of the training that is over, for `taid`.
    """
    name, t = settings.divergence, settings.temperature
    if name == "logit-mse":
        return jnp.var(student - teacher, -1)
    if name == "kl":
        return losses.soft_target_loss(student, teacher, temperature=t)
    if name == "taid":
        start = 0.4
        mixed = start + (1 - start) * jnp.clip(progress, 0, 1)
        return t**2 * losses.taid_loss(student / t, teacher / t, interpolation=mixed)
    options: dict[str, float] = {}
    if name == "jsd":
        options = {"beta": settings.beta}
    if name in ("skew-kl", "skew-reverse-kl"):
        options = {"skew": settings.skew}
    both = (losses.tempered_log_softmax(x, t) for x in (student, teacher))
    value = _OF_LOGITS[name](*both, **options)
    return value if name == "total-variation" else t**2 * value


def make_eval_step(
    model: Model,
    *,
    chunk_size: int,
    layout_fn: Any = None,
    teacher: Teacher | None = None,
    keep_fn: Callable[[Metrics, Array], object] | None = None,
) -> Callable[[Variables, Batch], Metrics]:
    """Compile what a decoder is measured by on rows of text.

    Args:
        model: one that answers without logits.
        chunk_size: tokens whose logits are in memory at a time.
        layout_fn: where its variables live.
        teacher: what it is compared with.
        keep_fn: is given what each batch is measured to be, and of each token how sure the decoder
            is, whether it is right and whether it counts, [tokens, 3].

    Returns:
        `eval_step(variables, batch) -> metrics`: `nll` (nats a token), `accuracy` and `ece` of the
        next token; with a teacher `kl`, KL(teacher || student) in nats, and `agreement`.
    """
    from kdjax import sharding

    held = teacher.variables if teacher else None

    @jax.jit
    def measured(variables: Variables, batch: Batch, held: PyTree) -> tuple[Metrics, Array]:
        variables = sharding.gather(variables, layout_fn)
        outputs, _ = model.apply(*variables, inputs_of(batch), train=False)
        answers = [outputs] + ([teacher.apply(held, batch)] if teacher else [])
        pairs = [_hidden_and_head(own) for own in answers]
        counts = metrics.spread(batch["mask"], batch["label"].shape).ravel()
        rows = {"label": batch["label"].ravel()}
        for i, (hidden, _) in enumerate(pairs):
            rows[f"hidden_{i}"] = hidden.reshape(-1, hidden.shape[-1])
        kernels = [head.kernel for _, head in pairs]
        found = _of_chunks(rows, kernels, min(chunk_size, len(counts)))
        judged = found.pop("confidence"), found["accuracy"], counts
        sums = {name: metrics.masked_sum(x, counts) for name, x in found.items()}
        return {**sums, "ece": metrics.calibration_of(*judged)}, jnp.stack(judged, -1)

    def eval_step(variables: Variables, batch: Batch) -> Metrics:
        found: Metrics
        found, tokens = measured(variables, batch, held)
        if keep_fn is not None:
            keep_fn(found, tokens)
        return found

    return eval_step


def fewest_nats(measured: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what the best network has most of: minus its loss."""
    total, count = measured["nll"]
    return -total, count


def _of_chunks(rows: dict[str, Array], kernels: list[Array], chunk_size: int) -> dict[str, Array]:
    """Measure every token, [tokens], with the logits of one chunk in memory.

    A chunk is every so manieth token: each device has its share of every one.
    """
    count = len(rows["label"])
    chunks = -(-count // chunk_size)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, chunks * chunk_size - count)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunk_size, chunks, *x.shape[1:]).swapaxes(0, 1)

    def measure(chunk: dict[str, Array]) -> dict[str, Array]:
        logits = [
            jnp.einsum(
                "tw,vw->tv", chunk[f"hidden_{i}"], kernel, preferred_element_type=jnp.float32
            )
            for i, kernel in enumerate(kernels)
        ]
        log_probs = jax.nn.log_softmax(logits[0])
        best = jnp.argmax(logits[0], -1)
        own = jnp.take_along_axis(log_probs, chunk["label"][:, None], -1)[:, 0]
        found = {"nll": -own, "accuracy": (best == chunk["label"]).astype(jnp.float32)}
        found["confidence"] = jnp.exp(jnp.max(log_probs, -1))
        if logits[1:]:
            found["kl"] = losses.soft_target_loss(logits[0], logits[1], temperature=1.0)
            found["agreement"] = (best == jnp.argmax(logits[1], -1)).astype(jnp.float32)
        return found

    found = jax.lax.map(measure, jax.tree.map(cut, rows))
    return {name: x.swapaxes(0, 1).ravel()[:count] for name, x in found.items()}


def _objective(loss_fn: Callable[[TermInputs, Any], Array]) -> Objective:
    """Make an objective of a mean over the tokens that count, which learns nothing of its own."""

    def apply(
        params: PyTree,
        state: PyTree,
        inputs: TermInputs,
        *,
        step: Array | int = 0,
        whole: Array | None = None,
    ) -> tuple[Array, PyTree, Metrics]:
        mean, count = loss_fn(inputs, step), jnp.sum(inputs.mask, dtype=jnp.float32)
        of_all = count if whole is None else jnp.sum(whole, dtype=jnp.float32)
        return metrics.mean_of(mean * count, of_all), state, {"loss": (mean * count, count)}

    return Objective(lambda key, inputs: Variables({}, {}), apply, ())


def _mean(loss_fn: Any, inputs: TermInputs, chunk_size: int, *, taught: bool) -> Array:
    student, answers = _hidden_and_head(inputs.student), (None, None)
    if taught:
        answers = _hidden_and_head(inputs.teacher)
    mean, _ = heads.chunked_mean(
        *(loss_fn, *student, *answers),
        labels=inputs.batch["label"],
        mask=inputs.mask,
        chunk_size=chunk_size,
    )
    return mean


def _squared(inputs: TermInputs) -> Array:
    values = heads.logit_mse(*_hidden_and_head(inputs.student), *_hidden_and_head(inputs.teacher))
    return metrics.mean_of(*metrics.masked_sum(values, inputs.mask))


def _hidden_and_head(outputs: Outputs | None) -> tuple[Any, Any]:
    assert outputs is not None
    return outputs.features["hidden"], Head(outputs.features["head"][0, 0])
