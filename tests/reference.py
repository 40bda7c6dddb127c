"""The losses again, from their formulas: in float64 NumPy, and exactly with fifty digits.

Nothing here imports anything of ours.
"""

from decimal import Decimal, localcontext

import numpy as np


def log_softmax(logits, temperature=1.0):
    z = np.asarray(logits, np.float64) / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def kl_divergence(student_log_probs, teacher_log_probs):
    return (np.exp(teacher_log_probs) * (teacher_log_probs - student_log_probs)).sum(-1)


def reverse_kl_divergence(student_log_probs, teacher_log_probs):
    return kl_divergence(teacher_log_probs, student_log_probs)


def soft_target_loss(student, teacher, temperature=4.0):
    logs = log_softmax(student, temperature), log_softmax(teacher, temperature)
    return temperature**2 * kl_divergence(*logs)


def cross_entropy(logits, labels):
    log_probs, labels = log_softmax(logits), np.asarray(labels)
    if labels.ndim < log_probs.ndim:
        labels = np.eye(log_probs.shape[-1])[labels]
    return -(labels * log_probs).sum(-1)


def kd_loss(student, teacher, labels, temperature=4.0, soft_weight=0.9):
    soft = soft_target_loss(student, teacher, temperature)
    return soft_weight * soft + (1 - soft_weight) * cross_entropy(student, labels)


def hint_loss(student, teacher):
    squares = (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2
    return squares.reshape(len(squares), -1).mean(-1)


def exact_kd(student, teacher, label, temperature, soft_weight=1.0):
    """Return value and gradient of kd_loss for one example, with fifty digits."""
    with localcontext() as context:
        context.prec = 50
        t, weight = Decimal(temperature), Decimal(soft_weight)
        log_p, log_q = _exact_log_softmax(teacher, t), _exact_log_softmax(student, t)
        log_hard = _exact_log_softmax(student, Decimal(1))
        p, q, hard = ([x.exp() for x in logs] for logs in (log_p, log_q, log_hard))
        soft = t * t * sum(a * (x - y) for a, x, y in zip(p, log_p, log_q, strict=True))
        value = weight * soft + (1 - weight) * -log_hard[label]
        gradient = [
            weight * t * (q[i] - p[i]) + (1 - weight) * (hard[i] - (i == label))
            for i in range(len(p))
        ]
        return value, gradient


def _exact_log_softmax(logits, temperature):
    z = [Decimal(float(x)) / temperature for x in logits]
    top = max(z)
    norm = sum((x - top).exp() for x in z).ln()
    return [x - top - norm for x in z]
