"""What the losses should be: textbook formulas in float64 NumPy, and one in 50 decimal digits.

Nothing of ours is imported. The classes are on the last axis, and all of them exist.
"""

import decimal

import numpy as np


def log_softmax(logits, temperature=1.0):
    z = np.asarray(logits, np.float64) / np.asarray(temperature, np.float64)[..., None]
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def kl_divergence(student_log_probs, teacher_log_probs):
    student, teacher = np.asarray(student_log_probs, float), np.asarray(teacher_log_probs, float)
    return (np.exp(teacher) * (teacher - student)).sum(-1)


def reverse_kl_divergence(student_log_probs, teacher_log_probs):
    return kl_divergence(teacher_log_probs, student_log_probs)


def soft_target_loss(student, teacher, temperature=4.0):
    divergence = kl_divergence(log_softmax(student, temperature), log_softmax(teacher, temperature))
    return np.square(temperature) * divergence


def soft_target_gradient(student, teacher, temperature=4.0):
    gap = softmax(student, temperature) - softmax(teacher, temperature)
    return np.asarray(temperature)[..., None] * gap


def cross_entropy(logits, labels):
    log_probs, labels = log_softmax(logits), np.asarray(labels)
    if np.issubdtype(labels.dtype, np.integer):
        return -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    return -(labels * log_probs).sum(-1)


def kd_loss(student, teacher, labels, temperature=4.0, soft_weight=0.9):
    soft = soft_target_loss(student, teacher, temperature)
    return soft_weight * soft + (1 - soft_weight) * cross_entropy(student, labels)


def hint_loss(student, teacher):
    squares = np.square(np.asarray(student, float) - np.asarray(teacher, float))
    return squares.reshape(len(squares), -1).mean(1)


def exact_soft_target_loss(student, teacher, temperature):
    """The loss of one example in 50 digits, as floats.

    Args:
        student: finite logits, [num_classes]; a float is taken for the number it is.
        teacher: likewise.
        temperature: a number.

    Returns:
        The value and its gradient with respect to the student's logits, [num_classes].
    """
    with decimal.localcontext() as context:
        context.prec = 50
        t = decimal.Decimal(float(temperature))
        q, log_q = _exact_softmax(student, t)
        p, log_p = _exact_softmax(teacher, t)
        terms = (pi * (lp - lq) for pi, lp, lq in zip(p, log_p, log_q, strict=True))
        value = t * t * sum(terms, decimal.Decimal(0))
        grad = [float(t * (qi - pi)) for qi, pi in zip(q, p, strict=True)]
        return float(value), np.array(grad)


def _exact_softmax(logits, t):
    z = [decimal.Decimal(float(x)) / t for x in logits]
    top = max(z)
    z = [x - top for x in z]
    grown = [x.exp() for x in z]
    total = sum(grown, decimal.Decimal(0))
    log_total = total.ln()
    return [x / total for x in grown], [x - log_total for x in z]
