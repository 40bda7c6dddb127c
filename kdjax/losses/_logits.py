"""Losses on logits."""

import jax
import jax.numpy as jnp
import optax


def kd_loss(student_logits, teacher_logits, labels, *, temperature=4.0, soft_weight=0.9):
    """Tempered KL times T^2 mixed with cross-entropy, one value per example."""
    student = jax.nn.log_softmax(student_logits / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    soft = temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), -1)
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(student_logits, labels)
    return soft_weight * soft + (1 - soft_weight) * hard
