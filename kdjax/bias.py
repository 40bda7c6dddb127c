"""Correcting a classifier's biases without labels."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array


def match_class_prior(
    logits: Array | np.ndarray, class_prior: Array | np.ndarray, *, num_iterations: int = 100
) -> Array:
    """Find biases that give every class its share of a classifier's probability.

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
        logits: of unlabelled examples as the classifier will meet them, [examples, num_classes].
        class_prior: the share of every class, positive, [num_classes]; scaled to sum to one.
        num_iterations: of the scaling; each costs a softmax over all examples.

    Returns:
        Biases to add to the logits, float32 [num_classes].

    Raises:
        ValueError: if the shapes do not fit or a share is not positive and finite.

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
    return _scale(logits.astype(jnp.float32), log_prior, num_iterations)


@jax.jit
def _scale(logits: Array, log_prior: Array, num_iterations: int) -> Array:
    log_count = jnp.log(jnp.asarray(logits.shape[0], jnp.float32))

    def body(_: Array, bias: Array) -> Array:
        shifted = logits + jnp.broadcast_to(bias, logits.shape)
        log_mass = jax.nn.logsumexp(jax.nn.log_softmax(shifted, axis=-1), axis=0) - log_count
        bias = bias + log_prior - log_mass
        return bias - jnp.mean(bias)

    return jax.lax.fori_loop(0, num_iterations, body, jnp.zeros_like(log_prior))
