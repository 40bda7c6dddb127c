"""Max-norm: columns stay inside the ball, what is inside is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.optimizers import max_norm


def test_columns_are_projected_and_biases_are_not():
    params = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.1]]), "bias": jnp.array([100.0, 0.0])}
    optimizer = optax.chain(optax.sgd(1.0), max_norm(2.0))
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["kernel"], [[1.2, 0.1], [1.6, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(moved["bias"], params["bias"])


def test_what_is_bounded_is_where_the_update_leads():
    """Not where it starts, nor half of the way."""
    params, update = {"k": jnp.array([[0.6], [0.0]])}, {"k": jnp.array([[0.0], [0.8]])}
    for share, norm in ((1, 1.0), (2, np.hypot(0.6, 1.6))):
        given = jax.tree.map(lambda x, share=share: share * x, update)
        for limit in (0.5, norm + 1e-3):
            updates, _ = max_norm(limit).update(given, optax.EmptyState(), params)
            moved = params["k"] + updates["k"]
            expected = (params["k"] + given["k"]) * min(1, limit / norm)
            np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_norms_do_not_overflow_in_half_precision():
    weights = jnp.full((64, 1), 60, jnp.float16)
    moved = max_norm(100.0).update(jnp.zeros_like(weights), (), weights)[0] + weights
    np.testing.assert_allclose(moved, 12.5, rtol=1e-3)


def test_convolutions_are_bounded_per_output_channel():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    updates, _ = max_norm(1.0).update(
        {"k": jnp.ones_like(kernel)}, optax.EmptyState(), {"k": kernel}
    )
    moved = np.asarray(kernel + updates["k"]).reshape(-1, 5)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 1.0, rtol=1e-5)


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        max_norm(0)
    with pytest.raises(ValueError, match="needs the parameters"):
        max_norm(1.0).update({}, optax.EmptyState())
