"""The mean of a loss over tokens: what it takes, and how the tokens are cut."""

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, AxisType

from kdjax import losses, metrics
from kdjax.heads._chunks import PARTS, LossFn, Plan, Tokens, Trained, mean_over_chunks
from kdjax.heads._head import Head, as_head, check_tokens, widest
from kdjax.losses import _inputs, _numbers
from kdjax.losses._inputs import TopK
from kdjax.types import PyTree


def chunked_mean(
    loss_fn: LossFn,
    student_hidden: Array,
    student_head: Head,
    teacher_hidden: Array | TopK | None,
    teacher_head: Head | None,
    *,
    labels: Array | None = None,
    mask: Array | None = None,
    ignore_label: int | None = None,
    chunk_size: int = 256,
    token_axes: tuple[str, ...] = ("data", "fsdp"),
) -> tuple[Array, Array]:
    """Average a loss on logits over tokens, with no more logits in memory than a chunk's.

    sum over the tokens of w * loss_fn(z, v[, y]) / sum of w

    z = student_head(student_hidden), v = teacher_head(teacher_hidden), w the mask. Value and
    gradient are those of the plain form, whatever the chunk. The gradient is made in the forward
    pass, so that nothing is computed twice: for the student's hidden states and head, and for the
    numbers that `loss_fn` closes over, such as a temperature. Teacher, labels and mask are data.
    It is for reverse mode: `jax.grad`, not `jax.jvp`.

    Where ids are not in both vocabularies, their logits are -inf on both sides; there are as many
    logits as the student has.

    Args:
        loss_fn: `(student_logits, teacher_logits[, labels])` to one value per token, [chunk], of
            logits [chunk, vocab] in float32 or wider. Any loss here whose value of a token depends
            on no other, or one's own.
        student_hidden: [tokens..., width], any floating type.
        student_head: its own floating type.
        teacher_hidden: [tokens..., teacher_width]; or without a head a `TopK`, or the logits
            [tokens..., vocab]. None for a `loss_fn` of `(student_logits[, labels])`.
        teacher_head: likewise.
        labels: [tokens...], or [tokens..., n]: the third argument of `loss_fn`, a chunk at a time.
        mask: [tokens...] or its leading axes: booleans, or weights as in `metrics.masked_sum`.
        ignore_label: the label of tokens that do not count, such as -100.
        chunk_size: how many tokens a device holds the logits of. Memory is in proportion.
        token_axes: mesh axes that split the first axis of the tokens, so far as the mesh of the
            student's hidden states has them. Chunks are cut inside each part.

    Returns:
        The mean, a scalar, 0 if no token counts; and the values, [tokens...], 0 at tokens that do
        not count, which have no gradient. Both in float32 or wider.

    Raises:
        TypeError: if a type does not fit.
        ValueError: if shapes do not fit, a label that is not traced is no id of both vocabularies,
            `loss_fn` relates tokens to one another, as one that takes a mask does, or it does not
            return one value per token.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import heads, losses
        >>> hidden, teacher_hidden = jnp.ones((6, 4)), jnp.ones((6, 8))
        >>> student, teacher = heads.Head(jnp.eye(32, 4)), heads.Head(jnp.eye(32, 8))
        >>> mean_fn = functools.partial(heads.chunked_mean, losses.ttm_loss, chunk_size=4)
        >>> mean, values = jax.eval_shape(mean_fn, hidden, student, teacher_hidden, teacher)
        >>> mean.shape, values.shape
        ((), (6,))
    """
    name = "chunked_mean"
    chunk_size = _numbers.as_count(name, "chunk_size", chunk_size)
    _check_alone(name, loss_fn)
    hidden, head = as_head(name, "student", student_hidden, student_head)
    teacher, answers, shared = _as_teacher(name, teacher_hidden, teacher_head, hidden, head)
    weights = _as_weights(name, mask, hidden)
    if ignore_label is None:
        ignore_label = getattr(loss_fn, "keywords", {}).get("ignore_label")
    labels, weights = _as_labels(name, labels, mask, weights, shared, ignore_label)
    rows = Tokens(hidden, *jax.lax.stop_gradient((answers, labels, weights)))
    mesh, axes, parts = _split(hidden, token_axes)
    chunk_size = max(1, min(chunk_size, weights.size // parts))
    shape = (chunk_size // math.gcd(chunk_size, PARTS), len(head.kernel))
    fn, numbers = _as_function(name, loss_fn, rows, shape, shared)
    plan = Plan(fn, chunk_size, mesh, axes)
    trained = Trained(head.kernel, (head.bias, head.soft_cap, tuple(numbers)))
    data = jax.lax.stop_gradient(teacher), rows[1:]
    mean, values = mean_over_chunks(plan, trained, hidden, *data)
    return mean, jax.lax.stop_gradient(values)


def _check_alone(name: str, loss_fn: LossFn) -> None:
    """Raise a ValueError if a loss takes a mask, as those do that relate what is in a batch."""
    loss = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    if loss in vars(losses).values() and "mask" in inspect.signature(loss).parameters:
        raise ValueError(
            f"{name}: {loss.__name__} relates the tokens of a batch to one another: it cannot be "
            "taken a chunk at a time"
        )


def _split(
    hidden: Array, token_axes: tuple[str, ...]
) -> tuple[AbstractMesh | None, tuple[str, ...], int]:
    """Return the mesh whose axes split the tokens, those axes, and into how many parts."""
    mesh = jax.typeof(hidden).sharding.mesh
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(a for a in token_axes if types.get(a, AxisType.Manual) != AxisType.Manual)
    parts = math.prod(mesh.shape[a] for a in axes)
    if parts == 1 or hidden.ndim < 2 or hidden.shape[0] % parts:
        return None, (), 1
    return mesh, axes, parts


def _as_teacher(
    name: str, given: Array | TopK | None, head: Head | None, hidden: Array, student: Head
) -> tuple[Head | None, PyTree, int]:
    """Return a teacher's head and what each token has of it; how many ids both networks know."""
    tokens, size = hidden.shape[:-1], len(student.kernel)
    if head is not None:
        answers, head = as_head(name, "teacher", given, head)
        check_tokens(name, "teacher_hidden", answers, tokens)
        return head, answers, min(size, len(head.kernel))
    if given is None:
        return None, None, size
    if isinstance(given, TopK):
        logits = _inputs.as_floats(name, "teacher_hidden.logits", given.logits)
        ids = _inputs.as_integers(name, "teacher_hidden.indices", given.indices)
        check_tokens(name, "teacher_hidden.logits", logits, tokens)
        _inputs.check_shape(name, "teacher_hidden.indices", ids, logits.shape, "its logits")
        return None, TopK(logits, ids), size
    answers = _inputs.as_type(name, "teacher_hidden", given, jnp.floating, "a floating type")
    check_tokens(name, "teacher_hidden", answers, tokens)
    return None, answers, min(size, answers.shape[-1])


def _as_weights(name: str, mask: Array | None, hidden: Array) -> Array:
    """Return the weight of every token, float32 or wider, 0 where it does not count."""
    tokens = hidden.shape[:-1]
    if mask is None:
        return jnp.ones(tokens, widest(hidden.dtype))
    shape = jnp.shape(mask)
    expected = f"the tokens of student_hidden, {tokens}, or their leading axes"
    _inputs.check_fits(shape == tokens[: len(shape)], name, "mask", mask, expected)
    weights = metrics.spread(mask, tokens)
    return weights.astype(widest(hidden.dtype))


def _as_labels(
    name: str, labels: Array | None, mask: Array | None, weights: Array, size: int, ignored: Any
) -> tuple[Array | None, Array]:
    """Return labels, where they count the ids of two vocabularies; and what tokens weigh then."""
    if labels is None:
        return None, weights
    found, tokens = jnp.asarray(labels), weights.shape
    expected = f"{tokens} like the tokens of student_hidden"
    _inputs.check_fits(found.shape[: len(tokens)] == tokens, name, "labels", found, expected)
    if found.shape == tokens and jnp.issubdtype(found.dtype, jnp.integer):
        found = _inputs.as_integers(name, "labels", found)
        counts = None if mask is None else metrics.counted(weights)
        _inputs.check_labels(name, labels, size, ignored, counts)
        weights = weights if ignored is None else jnp.where(found == ignored, 0, weights)
    return found, weights


def _as_function(
    name: str, loss_fn: LossFn, rows: Tokens, shape: tuple[int, int], shared: int
) -> tuple[LossFn, list[Any]]:
    """Return a loss of a chunk that closes over no number to be differentiated; those numbers."""
    given = [jax.ShapeDtypeStruct(shape, widest(rows.hidden.dtype))]
    if rows.teacher is not None:
        wide = widest(jax.tree.leaves(rows.teacher)[0].dtype)
        given.append(jax.ShapeDtypeStruct(shape, wide))
    if rows.labels is not None:
        behind = rows.labels.shape[rows.weights.ndim :]
        given.append(jax.ShapeDtypeStruct((shape[0], *behind), rows.labels.dtype))

    def of_shared(logits: Array, *others: Array) -> Array:
        known = jnp.arange(shape[1])[None, :] < shared
        return loss_fn(
            logits if shared == shape[1] else jnp.where(known, logits, -jnp.inf), *others
        )

    fn, numbers = jax.closure_convert(of_shared, *given)
    values = jax.eval_shape(fn, *given, *numbers)
    one = isinstance(values, jax.ShapeDtypeStruct) and values.shape == shape[:1]
    if not one or not jnp.issubdtype(values.dtype, jnp.floating):
        found = jax.tree.map(lambda x: x.shape, values)
        raise ValueError(
            f"{name}: loss_fn returns shape {found} for logits {shape}, expected {shape[:1]}: "
            "one floating value per token"
        )
    return fn, numbers
