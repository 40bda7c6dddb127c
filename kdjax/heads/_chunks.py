"""A loss and its gradient, made chunk by chunk in the forward pass."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, PartitionSpec

from kdjax import metrics
from kdjax.heads._head import Head, finished, product_of, widest
from kdjax.losses._inputs import TopK, in_full
from kdjax.types import PyTree

LossFn = Callable[..., Array]
# A loss sees a part of a chunk: what it keeps is several times its logits.
PARTS = 4
_NARROW = jnp.dtype(jnp.float16)


class Tokens(NamedTuple):
    """What each token has, [tokens, ...]: the weight 0 where it does not count."""

    hidden: Array
    teacher: PyTree
    labels: Array | None
    weights: Array


class Trained(NamedTuple):
    """What the gradient is for: the head's kernel; bias and soft cap, and a loss's numbers."""

    kernel: Array
    others: PyTree


class Plan(NamedTuple):
    """How the tokens are cut: over devices, then into chunks."""

    loss_fn: LossFn
    chunk_size: int
    mesh: AbstractMesh | None
    axes: tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mean_over_chunks(
    plan: Plan, trained: Trained, hidden: Array, teacher: Head | None, data: tuple[PyTree, ...]
) -> tuple[Array, Array]:
    """Return the mean and the values, without any gradient."""
    rows = Tokens(hidden, *data)
    _, values, _ = _over_parts(plan, False, trained, teacher, rows, jnp.sum(rows.weights))
    return metrics.mean_of(*metrics.masked_sum(values, rows.weights)), values


def _mean_forward(
    plan: Plan, trained: Trained, hidden: Array, teacher: Head | None, data: tuple[PyTree, ...]
) -> tuple[tuple[Array, Array], PyTree]:
    """Return the same, and the gradients of the mean with what says their types."""
    trained = jax.tree.map(jnp.asarray, trained)  # outside of a jit numbers may be Python's
    rows = Tokens(hidden, *data)
    count, narrow = jnp.sum(rows.weights), {trained.kernel.dtype, hidden.dtype} == {_NARROW}
    # Shares of many tokens are too small for float16: they are taken of less, by a power of two.
    unit = _power_of_two(count) if narrow else None
    share = count if unit is None else count / unit
    sums, values, by_hidden = _over_parts(plan, True, trained, teacher, rows, share)
    if unit is not None:
        sums, by_hidden = jax.tree.map(lambda x: x / unit, (sums, by_hidden))
    mean = metrics.mean_of(*metrics.masked_sum(values, rows.weights))
    types = jax.tree.map(lambda x: jnp.zeros((), x.dtype), (trained, hidden))
    return (mean, values), ((sums, by_hidden), types)


def _mean_backward(plan: Plan, kept: PyTree, cotangents: tuple[Array, Array]) -> PyTree:
    """Return the gradients in the types of what they are for; the values have none."""
    gradients, types = kept
    scaled = jax.tree.map(lambda g, x: (cotangents[0] * g).astype(x.dtype), gradients, types)
    return *scaled, None, None


mean_over_chunks.defvjp(_mean_forward, _mean_backward)


def _over_parts(
    plan: Plan, gradient: bool, trained: Trained, teacher: Head | None, rows: Tokens, count: Array
) -> tuple[PyTree, Array, Array | None]:
    """Take each device's tokens on their own; what the head's gradient has of each is summed once.

    Left to the compiler the sum would be taken once a chunk.
    """

    def part(trained: Trained, teacher: Head | None, rows: Tokens, count: Array) -> PyTree:
        sums, *of_tokens = _over_chunks(plan, gradient, trained, teacher, rows, count)
        return jax.lax.psum(sums, plan.axes) if plan.axes else sums, *of_tokens

    if plan.mesh is None:
        alone: tuple[PyTree, Array, Array | None] = part(trained, teacher, rows, count)
        return alone
    whole, split = PartitionSpec(), PartitionSpec(plan.axes)
    run = jax.shard_map(
        part,
        mesh=plan.mesh,
        in_specs=(whole, whole, split, whole),
        out_specs=(whole, split, split),
        axis_names=set(plan.axes),
        check_vma=False,
    )
    results: tuple[PyTree, Array, Array | None] = jax.jit(run)(trained, teacher, rows, count)
    return results


def _power_of_two(count: Array) -> Array:
    """Return the largest power of two that is no more than a count, 1 for none."""
    return jnp.where(count > 0, jnp.exp2(jnp.floor(jnp.log2(count))), 1)


def _over_chunks(
    plan: Plan,
    gradient: bool,
    trained: Trained,
    teacher: Head | None,
    rows: Tokens,
    count: Array,
) -> tuple[PyTree, Array, Array | None]:
    """Return the gradient of what is trained, the tokens' values and hidden states' gradient."""
    tokens = rows.weights.shape
    num_tokens, parts = math.prod(tokens), math.gcd(plan.chunk_size, PARTS)
    num_chunks = -(-num_tokens // plan.chunk_size)
    grid = (num_chunks, parts, plan.chunk_size // parts)

    # Every so manieth token: where the tokens are split over devices that we know nothing of, each
    # has its share of every chunk and part.
    def cut(x: Array) -> Array:
        x = x.reshape(num_tokens, *x.shape[len(tokens) :])
        x = jnp.pad(x, [(0, math.prod(grid) - num_tokens)] + [(0, 0)] * (x.ndim - 1))
        x = x.reshape(grid[2], num_chunks * parts, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(*grid, *x.shape[2:])

    def joined(x: Array) -> Array:
        x = x.reshape(num_chunks * parts, grid[2], *x.shape[3:]).swapaxes(0, 1)
        x = x.reshape(math.prod(grid), *x.shape[2:])[:num_tokens]
        return x.reshape(*tokens, *x.shape[1:])

    def one(sums: Trained | None, chunk: Tokens) -> tuple[PyTree, PyTree]:
        return _chunk(plan.loss_fn, trained, teacher, chunk, count, sums)

    sums = jax.tree.map(
        lambda x: jnp.zeros(x.shape, widest(x.dtype)), trained if gradient else None
    )
    sums, of_tokens = jax.lax.scan(one, sums, jax.tree.map(cut, rows))
    return sums, *jax.tree.map(joined, of_tokens)


def _chunk(
    loss_fn: LossFn,
    trained: Trained,
    teacher: Head | None,
    rows: Tokens,
    count: Array,
    sums: Trained | None,
) -> tuple[Trained | None, PyTree]:
    """Add a chunk's part of the gradient to the sums; return its values and hidden states' part.

    Without sums there is no gradient. What a loss keeps, it keeps of a part of the chunk.
    """
    kernel = trained.kernel
    # What does not count may be nan, which 0 does not remove.
    counts = rows.weights > 0
    rows = jax.tree.map(lambda x: jnp.where(_like(counts, x), x, jnp.zeros((), x.dtype)), rows)
    answers = rows.teacher
    if teacher is not None:
        answers = product_of("...w,vw->...v", rows.teacher, teacher.kernel)
    product = product_of("...w,vw->...v", rows.hidden, kernel)
    parts = Tokens(product, answers, rows.labels, rows.weights / count)
    run = functools.partial(_part, loss_fn, trained.others, teacher)
    others, (values, by_product) = jax.lax.scan(run, sums and sums.others, parts)
    if sums is None:
        return None, (values, None)
    # In the type of the factors, so that the products are as fast as the one before.
    by_product = by_product.astype(jnp.promote_types(rows.hidden.dtype, kernel.dtype))
    by_hidden = product_of("...v,vw->...w", by_product, kernel)
    return Trained(_add_product(sums.kernel, by_product, rows.hidden), others), (values, by_hidden)


def _part(
    loss_fn: LossFn, others: PyTree, teacher: Head | None, sums: PyTree, rows: Tokens
) -> tuple[PyTree, PyTree]:
    """Return a part's values and its gradient for the products with the head; add to the sums."""
    size = rows.hidden.shape[-1]
    given = [] if rows.teacher is None else [_logits_of(rows.teacher, teacher, size)]
    given += [] if rows.labels is None else [rows.labels]

    def values_of(product: Array, others: PyTree) -> Array:
        bias, soft_cap, numbers = others
        values = loss_fn(finished(product, bias, soft_cap), *given, *numbers)
        return jnp.where(rows.weights > 0, values, 0)

    others = jax.tree.map(lambda x: x.astype(widest(x.dtype)), others)
    if sums is None:
        return None, (values_of(rows.hidden, others), None)
    values, pull = jax.vjp(values_of, rows.hidden, others)
    by_product, by_others = pull(rows.weights.astype(values.dtype))
    return jax.tree.map(lambda total, x: total + x, sums, by_others), (values, by_product)


def _add_product(total: Array, by_product: Array, hidden: Array) -> Array:
    """Add by_product' @ hidden, as many columns at a time as need no more room than by_product."""
    by_product, hidden = (x.reshape(-1, x.shape[-1]) for x in (by_product, hidden))
    tokens, width = hidden.shape
    size = next(n for n in range(min(tokens, width), 0, -1) if width % n == 0)
    if size == width:
        return total + product_of("tv,tw->vw", by_product, hidden)

    def add(i: Array, total: Array) -> Array:
        columns = jax.lax.dynamic_slice_in_dim(hidden, i * size, size, axis=1)
        before = jax.lax.dynamic_slice_in_dim(total, i * size, size, axis=1)
        after = before + product_of("tv,tw->vw", by_product, columns)
        return jax.lax.dynamic_update_slice_in_dim(total, after, i * size, axis=1)

    added: Array = jax.lax.fori_loop(0, width // size, add, total)
    return added


def _logits_of(answers: Array | TopK, head: Head | None, size: int) -> Array:
    """Return a teacher's logits of as many ids as the student has, -inf where it has none."""
    if isinstance(answers, TopK):
        return in_full(answers, size)
    logits = answers[:, :size].astype(widest(answers.dtype))
    if head is not None:
        bias = None if head.bias is None else head.bias[:size]
        logits = finished(logits, bias, head.soft_cap)
    missing = size - logits.shape[-1]
    return jnp.pad(logits, [(0, 0), (0, missing)], constant_values=-jnp.inf) if missing else logits


def _like(counts: Array, x: Array) -> Array:
    return counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim))
