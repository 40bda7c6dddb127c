"""Losses of each example against a memory of others: noise-contrastive estimation."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import norms


def contrastive_representation_loss(
    positive_scores: Array,
    negative_scores: Array,
    *,
    log_normalizer: float | Array,
    num_examples: int,
    eps: float | Array = 1e-7,
) -> Array:
    """Distinguish an example's own counterpart from others drawn at random, in one of two networks.

    value = -log(h / (h + c + eps)) - sum_k log(c / (h_k + c + eps))
    h = exp(score) / Z, c = num_negatives / num_examples

    The score is the inner product of a unit embedding of one network with a remembered unit
    embedding of the other, over a temperature. The loss of the method is the sum of two of these,
    the student's against the teacher's memory and the teacher's against the student's.

    Args:
        positive_scores: [batch], any floating type: with the memory of the same example.
        negative_scores: [batch, num_negatives], likewise: with memories of random examples.
        log_normalizer: log Z, a number or scalar array, see `contrastive_log_normalizer`.
        num_examples: how many examples the negatives are drawn from.
        eps: keeps the logarithms finite, not negative.

    Returns:
        [batch], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if scores are not of a floating type.
        ValueError: if the batches differ, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import contrastive_representation_loss
        >>> positive, negative = jnp.array([3.0]), jnp.array([[0.0, -1.0]])
        >>> print(contrastive_representation_loss(
        ...     positive, negative, log_normalizer=1.0, num_examples=10))
        [1.587]

    References:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019, arXiv:1910.10699.
    """
    name = "contrastive_representation_loss"
    positive, negative = _as_scores(name, positive_scores, negative_scores)
    log_z = _numbers.as_number(name, "log_normalizer", log_normalizer, positive.dtype)
    eps = _numbers.as_number(name, "eps", eps, positive.dtype, _numbers.NOT_NEGATIVE)
    noise = negative.shape[1] / _numbers.as_count(name, "num_examples", num_examples)
    known = isinstance(eps, int | float)
    log_noise = math.log(noise + eps) if known else jnp.log(noise + eps)
    rest = math.log1p(eps / noise) if known else jnp.log1p(eps / noise)
    own = jax.nn.softplus(log_noise - (positive - log_z))
    others = jax.nn.softplus((negative - log_z) - log_noise) + rest
    return own + jnp.sum(others, axis=-1)


def contrastive_log_normalizer(
    positive_scores: Array, negative_scores: Array, *, num_examples: int, mask: Array | None = None
) -> Array:
    """Estimate log Z for `contrastive_representation_loss` from one batch of scores.

    log Z = log(num_examples mean(exp(score))), over all scores of the examples that count

    Args:
        positive_scores: [batch], any floating type.
        negative_scores: [batch, num_negatives], likewise.
        num_examples: how many examples the negatives are drawn from.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        A scalar, float32 or wider, constant: its gradient is zero. 0 where no example counts.

    Raises:
        TypeError: if scores are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, or a shape or number does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import contrastive_log_normalizer
        >>> print(contrastive_log_normalizer(jnp.zeros(2), jnp.zeros((2, 5)), num_examples=10))
        2.303

    References:
        Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination", 2018, arXiv:1805.01978.
    """
    name = "contrastive_log_normalizer"
    positive, negative = _as_scores(name, positive_scores, negative_scores)
    num_examples = _numbers.as_count(name, "num_examples", num_examples)
    valid = _inputs.as_mask(name, mask, len(positive))
    scores = jnp.concatenate([positive[:, None], negative], axis=1)
    scores = jax.lax.stop_gradient(jnp.where(valid[:, None], scores, -jnp.inf))
    count = jnp.sum(valid) * scores.shape[1]
    estimate = jax.nn.logsumexp(scores) - jnp.log(jnp.maximum(count, 1)) + math.log(num_examples)
    return jnp.where(count > 0, estimate, 0)


def remembered_embeddings(
    old_embeddings: Array, new_embeddings: Array, *, momentum: float | Array = 0.5
) -> Array:
    """Move remembered unit embeddings towards new ones.

    m / |m|, m = momentum * old + (1 - momentum) * new

    Args:
        old_embeddings: [..., width], any floating type.
        new_embeddings: likewise, of the same shape.
        momentum: how much of the old stays, from 0 to 1.

    Returns:
        [..., width], float32 or wider, constant: its gradient is zero.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the shapes differ, or the momentum is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import remembered_embeddings
        >>> print(remembered_embeddings(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
        [0.707 0.707]

    References:
        Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination", 2018, arXiv:1805.01978.
    """
    name = "remembered_embeddings"
    names = ("old_embeddings", "new_embeddings")
    old, new = _inputs.as_pair(name, old_embeddings, new_embeddings, names)
    momentum = _numbers.as_number(name, "momentum", momentum, old.dtype, _numbers.SHARE)
    return jax.lax.stop_gradient(norms.normalize(momentum * old + (1 - momentum) * new))


def _as_scores(function: str, positive: Array, negative: Array) -> tuple[Array, Array]:
    names = ("positive_scores", "negative_scores")
    positive, negative = _inputs.both(_inputs.as_floats, function, (positive, negative), names)
    if positive.ndim != 1 or negative.ndim != 2 or len(positive) != len(negative):
        raise ValueError(
            f"{function}: positive_scores and negative_scores have shapes {positive.shape} and "
            f"{negative.shape}, expected [batch] and [batch, num_negatives]"
        )
    if not negative.shape[1]:
        raise ValueError(f"{function}: negative_scores has shape {negative.shape}: no negatives")
    return positive, negative
