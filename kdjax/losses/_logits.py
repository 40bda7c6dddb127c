"""Losses on logits (interim)."""
import jax
import jax.numpy as jnp
import optax

def cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)

def soft_target_loss(student_logits, teacher_logits, *, temperature=4.0):
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), -1)

def hint_loss(a, b):
    return jnp.mean(jnp.square(a - b).reshape(len(a), -1), -1)

def kd_loss(student_logits, teacher_logits, labels, *, temperature=4.0, soft_weight=0.9):
    return soft_weight * soft_target_loss(student_logits, teacher_logits, temperature=temperature) + (1 - soft_weight) * cross_entropy(student_logits, labels)
