"""Gradient transformations that optax lacks."""

import jax
import jax.numpy as jnp
import optax

from kdjax.types import Array, PyTree

__all__ = ["max_norm"]


def max_norm(limit: float) -> optax.GradientTransformation:
    """Keep the incoming weights of every unit inside a ball, after each update.

    It belongs last in a chain, where the updates are what will be added to the parameters. The
    columns of every array with two axes or more are scaled back to the limit when they exceed it;
    biases and scales are left alone.

    Args:
        limit: the largest Euclidean norm of a unit's incoming weights.

    Returns:
        A stateless transformation, which needs the parameters.

    Raises:
        ValueError: if the limit is not positive.

    Example:
        >>> import numpy as np
        >>> import optax
        >>> from kdjax.optimizers import max_norm
        >>> optimizer = optax.chain(optax.sgd(1.0), max_norm(1.0))
        >>> params, grads = {"kernel": np.zeros((2, 1))}, {"kernel": np.array([[-3.0], [-4.0]])}
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> print(updates["kernel"].ravel())
        [0.6 0.8]

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: A Simple Way to Prevent
        Neural Networks from Overfitting", 2014, JMLR 15, section 5.1.
    """
    if not limit > 0:
        raise ValueError(f"max_norm: limit must be positive, got {limit}")

    def project(update: Array, param: Array) -> Array:
        if param.ndim < 2:
            return update
        moved = jnp.asarray(param + update)
        # In half precision squares overflow.
        wide = moved.astype(jnp.float32) if moved.dtype.itemsize < 4 else moved
        norms = jnp.linalg.norm(wide.reshape(-1, moved.shape[-1]), axis=0)
        scale = (limit / jnp.maximum(norms, limit)).astype(moved.dtype)
        return moved * jnp.broadcast_to(scale, moved.shape) - param

    def update_fn(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError("max_norm: update needs the parameters")
        return jax.tree.map(project, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
