"""Corrections of logits for classes that training has shown too often or too rarely."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdjax.types import Array


def match_class_prior(
    logits: ArrayLike, class_prior: ArrayLike, *, num_iterations: int = 100
) -> Array:
    """Return biases that give every class its share of a classifier's probability.

        mean over examples of softmax(logits + bias) = class_prior

    A student that was distilled on a set without some classes knows them from the teacher's soft
    targets, but deems them too rare: in section 3 of the paper below, a higher bias for the class
    that it never saw makes it as good on that class as on the others. The paper finds that bias on
    the test set. This function needs no labels: `class_prior` is what is known of the classes'
    frequencies, or the teacher's mean probabilities on the transfer set.

    The biases are unique up to a constant, which is chosen to make their mean zero. They are found
    by scaling rows and columns in turn (Sinkhorn & Knopp, "Concerning nonnegative matrices and
    doubly stochastic matrices", 1967): rows are the softmax, columns get their share.

    Args:
        logits: of unlabeled examples as the classifier will meet them, [examples, num_classes].
        class_prior: the share of every class, positive, [num_classes]; scaled to sum to one.
        num_iterations: of the scaling; each costs a softmax over all examples.

    Returns:
        Biases to add to the logits, float32 [num_classes].

    Raises:
        ValueError: if the shapes differ or a share is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> logits = jnp.array([[4.0, 0.0, 0.0], [4.0, 1.0, 0.0], [4.0, 0.0, 1.0]])
        >>> third = jnp.full(3, 1 / 3)
        >>> int(specialists.match_class_prior(logits, third, num_iterations=10).argmin())
        0

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 3.
    """
    logits, prior = jnp.asarray(logits), np.asarray(class_prior, np.float64)
    if logits.ndim != 2 or prior.shape != logits.shape[1:]:
        raise ValueError(
            f"match_class_prior: class_prior has shape {prior.shape}, expected one share for each "
            f"class of logits {logits.shape}"
        )
    if not np.all(prior > 0) or not np.all(np.isfinite(prior)):
        raise ValueError(f"match_class_prior: class_prior must be positive, got {prior.tolist()}")
    log_prior = jnp.asarray(np.log(prior / prior.sum()), jnp.float32)
    bias: Array = _scale(logits.astype(jnp.float32), log_prior, num_iterations)
    return bias


def dustbin_shift(special_share: float, *, sampled_share: float = 0.5) -> float:
    """Return by how much a specialist's training has lowered its dustbin's logit.

        log(sampled / special) - log((1 - sampled) / (1 - special))

    A class that is shown r times too often gets r times the odds that it deserves. The special
    classes are shown sampled / special times as often as they occur, the others
    (1 - sampled) / (1 - special) times: the quotient is how much the special ones are oversampled,
    and its logarithm, added to the dustbin's logit, gives the odds of the real world.

    Args:
        special_share: share of the specialist's classes in the real world, in (0, 1).
        sampled_share: their share in its batches, in (0, 1).

    Returns:
        What to add to the dustbin's logit; positive where special classes were oversampled.

    Raises:
        ValueError: if a share is out of range.

    Example:
        >>> from kdjax import specialists
        >>> round(specialists.dustbin_shift(0.1), 3)
        2.197

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 5.2.
    """
    for name, share in (("special_share", special_share), ("sampled_share", sampled_share)):
        if not 0 < share < 1:
            raise ValueError(f"dustbin_shift: {name} is {share}, expected a share in (0, 1)")
    odds = [np.log(share) - np.log1p(-share) for share in (sampled_share, special_share)]
    return float(odds[0] - odds[1])


def shift_dustbin(logits: ArrayLike, shift: Any) -> Array:
    """Add a number to the dustbin's logit, the last.

    Args:
        logits: a specialist's, [..., set_size + 1].
        shift: what `dustbin_shift` returns.

    Returns:
        Logits of the same shape and type.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax import specialists
        >>> print(specialists.shift_dustbin(jnp.array([1.0, 2.0, 3.0]), 0.5))
        [1.  2.  3.5]
    """
    return jnp.asarray(logits).at[..., -1].add(shift)


@jax.jit
def _scale(logits: Array, log_prior: Array, num_iterations: int) -> Array:
    log_count = jnp.log(jnp.asarray(logits.shape[0], jnp.float32))

    def body(_: Array, bias: Array) -> Array:
        shifted = logits + jnp.broadcast_to(bias, logits.shape)
        log_mass = jax.nn.logsumexp(jax.nn.log_softmax(shifted, axis=-1), axis=0) - log_count
        bias = bias + log_prior - log_mass
        return bias - jnp.mean(bias)

    found: Array = jax.lax.fori_loop(0, num_iterations, body, jnp.zeros_like(log_prior))
    return found
