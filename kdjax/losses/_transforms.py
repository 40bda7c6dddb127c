"""Transforms of logits: what comes out is fed to a loss in place of the logits."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _norms

Array = jax.Array


def standardize_logits(
    logits: Array, *, axis: int = -1, where: Array | None = None, eps: Any = 1e-7
) -> Array:
    """Z-scores of logits, so that a student need not match the teacher's shift and scale.

    (z - mean(z)) / (eps + std(z)), mean and unbiased standard deviation over the classes

    It goes before any loss on logits: the student's and the teacher's are standardised alike, and
    the loss's temperature is then the paper's base temperature. Where all of an example's logits
    are equal there is no scale: the scores are 0, with gradient 0.

    Args:
        logits: [..., num_classes], any floating type; -inf removes a class.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        eps: added to the standard deviation, a number that is not negative.

    Returns:
        [..., num_classes], float32 or wider; -inf at classes that do not exist.

    Raises:
        TypeError: if the logits are not of a floating type, or `where` is not boolean.
        ValueError: if a shape does not fit, or eps is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import standardize_logits
        >>> print(standardize_logits(jnp.array([5.0, 5.0, 8.0]))[-1])
        1.155

    References:
        Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", 2024,
        arXiv:2403.01427, algorithm 1.
    """
    name = "standardize_logits"
    _checks.check_number(name, "eps", eps, low=0.0)
    x = _checks.select_classes(name, _checks.as_logits(name, "logits", logits), where, axis)
    exists = ~jnp.isneginf(x)
    deviations = _norms.deviations(x, exists)
    degrees = jnp.sum(exists, axis=-1, keepdims=True) - 1
    variance = jnp.sum(jnp.square(deviations), axis=-1, keepdims=True) / jnp.maximum(degrees, 1)
    scale = eps + _norms.safe_sqrt(variance)
    scores = deviations / jnp.where(scale > 0, scale, 1)
    return jnp.moveaxis(jnp.where(exists, scores, -jnp.inf), -1, axis)
