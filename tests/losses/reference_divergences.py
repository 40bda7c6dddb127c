"""Divergences by their textbook formulas in float64 NumPy, class by class where that is clearest.

Nothing of ours is imported. The classes are on the last axis; a class may lack mass (-inf).
"""

import numpy as np


def log_softmax(logits, temperature=1.0):
    z = np.asarray(logits, np.float64) / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(a, b):
    """Of probabilities a from probabilities b, with 0 log 0 = 0."""
    total = np.zeros(a.shape[:-1])
    for i in range(a.shape[-1]):
        x, y = a[..., i], b[..., i]
        with np.errstate(divide="ignore", invalid="ignore"):
            total = total + np.where(x > 0, x * (np.log(x) - np.log(y)), 0.0)
    return total


def probabilities(student_log_probs, teacher_log_probs):
    return np.exp(np.asarray(student_log_probs, float)), np.exp(
        np.asarray(teacher_log_probs, float)
    )


def generalized_js_divergence(student, teacher, beta=0.5):
    q, p = probabilities(student, teacher)
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_kl_divergence(student, teacher, skew=0.1):
    q, p = probabilities(student, teacher)
    return kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl_divergence(student, teacher, skew=0.1):
    return skew_kl_divergence(teacher, student, skew)


def symmetric_kl_divergence(student, teacher, reverse_weight=0.5):
    q, p = probabilities(student, teacher)
    return (1 - reverse_weight) * kl(p, q) + reverse_weight * kl(q, p)


def total_variation(student, teacher):
    q, p = probabilities(student, teacher)
    return np.maximum(p - q, 0).sum(-1) + 0.5 * (q.sum(-1) - p.sum(-1))


def head_and_tail(q, p, head_mass):
    """The two gaps of one example: classes join the head from the largest until it has the mass."""
    order = sorted(range(len(p)), key=lambda i: (p[i], i), reverse=True)
    head, mass = set(), 0.0
    for i in order:
        if head and mass >= head_mass * p.sum() and head_mass < 1:
            break
        head.add(i)
        mass += p[i]
    gaps = np.abs(p - q)
    inside = sum(gaps[i] for i in head)
    return inside, gaps.sum() - inside


def adaptive_kl_divergence(student, teacher, head_mass=0.5):
    q, p = probabilities(student, teacher)
    rows = []
    for a, b in zip(q.reshape(-1, q.shape[-1]), p.reshape(-1, p.shape[-1]), strict=True):
        head, tail = head_and_tail(a, b, head_mass)
        both = head * kl(b, a) + tail * kl(a, b)
        rows.append(both / (head + tail) if head + tail else 0.0)
    return np.reshape(rows, q.shape[:-1])


def taid_loss(student, teacher, interpolation):
    student, teacher = np.asarray(student, float), np.asarray(teacher, float)
    target = log_softmax((1 - interpolation) * student + interpolation * teacher)
    return -(np.exp(target) * log_softmax(student)).sum(-1)


def taid_schedule(losses, progress, *, start, end, step_size, decay):
    """The interpolation after each of these updates."""
    t, momentum, previous, after = start, 0.0, None, []
    for loss, share in zip(losses, progress, strict=True):
        if previous is not None:
            momentum = decay * momentum + (1 - decay) * (previous - loss) / previous
            grown = t + step_size * (1 - t) / (1 + np.exp(-momentum))
            t = min(end, max(start + (end - start) * share, grown))
        previous = loss
        after.append(t)
    return after


def universal_logit_loss(student, teacher, temperature=1.0, teacher_temperature=1.0):
    q = np.sort(np.exp(log_softmax(student, temperature)), -1)[..., ::-1]
    p = np.sort(np.exp(log_softmax(teacher, teacher_temperature)), -1)[..., ::-1]
    total = np.zeros(q.shape[:-1])
    for i in range(max(q.shape[-1], p.shape[-1])):
        mine = q[..., i] if i < q.shape[-1] else 0.0
        total = total + np.abs(mine - (p[..., i] if i < p.shape[-1] else 0.0))
    return total


def top_k(student, teacher, num_kept, *, tail):
    """Log-probabilities of one example on the student's largest classes."""
    best = np.argsort(-np.asarray(student), kind="stable")[:num_kept]
    pair = []
    for log_probs in (student, teacher):
        probs = np.exp(np.asarray(log_probs, float))
        kept = probs[best]
        rest = [np.delete(probs, best).sum()] if tail else []
        with np.errstate(divide="ignore"):
            pair.append(np.log(np.concatenate([kept if tail else kept / kept.sum(), rest])))
    return pair
