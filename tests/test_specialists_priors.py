"""Biases that give every class its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.specialists import match_class_prior


def test_every_class_gets_its_share():
    logits = 3 * jax.random.normal(jax.random.key(0), (400, 5))
    prior = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
    bias = match_class_prior(logits, prior)
    mass = jax.nn.softmax(logits + bias[None], axis=-1).mean(0)
    np.testing.assert_allclose(mass, prior, atol=1e-5)
    assert abs(float(bias.mean())) < 1e-6


def test_a_known_shift_is_undone():
    """Biases put on top of logits that match already come back with the other sign."""
    logits = jax.random.normal(jax.random.key(1), (300, 4))
    prior = jax.nn.softmax(logits, axis=-1).mean(0)
    shift = jnp.array([3.0, -1.0, -2.5, 0.5])
    found = match_class_prior(logits + shift[None], prior)
    np.testing.assert_allclose(found, -shift, atol=1e-4)


def test_counts_will_do_and_extremes_are_finite():
    logits = 50 * jax.random.normal(jax.random.key(2), (100, 3)) - jnp.array([[0.0, 0, 200]])
    counts = np.array([50, 40, 10])
    bias = match_class_prior(logits, counts, num_iterations=2000)
    mass = jax.nn.softmax(logits + bias[None], axis=-1).mean(0)
    np.testing.assert_allclose(mass, counts / 100, atol=0.01)


def test_misuse():
    with pytest.raises(ValueError, match=r"class_prior has shape \(3,\)"):
        match_class_prior(np.zeros((5, 4)), np.ones(3))
    with pytest.raises(ValueError, match="class_prior must be positive"):
        match_class_prior(np.zeros((5, 2)), np.array([1.0, 0.0]))
