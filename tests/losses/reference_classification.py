"""Losses on the logits of classifiers as textbook loops in float64 NumPy; nothing of ours is used.

The classes are on the last axis, all of them exist, and the batch is the first axis of two.
"""

import math

import numpy as np


def probs(logits, temperature=1.0):
    z = np.asarray(logits, float) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True) if pi > 0)


def cross(p, q):
    return -sum(pi * math.log(qi) for pi, qi in zip(p, q, strict=True) if pi > 0)


def per_row(rule):
    """Make a rule for examples out of one for a single example."""

    def loss(*arrays, **hyper):
        arrays = [np.asarray(a) for a in arrays]
        batch = arrays[0].shape[:-1]
        values = [rule(*(a[i] for a in arrays), **hyper) for i in np.ndindex(batch)]
        return np.array(values).reshape(batch)

    return loss


def standardize_logits(z, eps=1e-7):
    return (z - z.mean(-1, keepdims=True)) / (eps + z.std(-1, ddof=1, keepdims=True))


@per_row
def dkd_loss(s, t, y, temperature=4.0, target_weight=1.0, nontarget_weight=8.0):
    q, p = probs(s, temperature), probs(t, temperature)
    target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    q, p = (probs(np.delete(z, y), temperature) for z in (s, t))
    return temperature**2 * (target_weight * target + nontarget_weight * kl(p, q))


@per_row
def nkd_loss(s, t, y, temperature=1.0, nontarget_weight=1.5):
    others = cross(*(probs(np.delete(z, y), temperature) for z in (t, s)))
    target = -probs(t)[y] * math.log(probs(s)[y])
    return target + nontarget_weight * temperature**2 * others


@per_row
def wsld_loss(s, t, y, temperature=2.0, eps=1e-7):
    student, teacher = -math.log(probs(s)[y]), -math.log(probs(t)[y])
    weight = 1 - math.exp(-student / (teacher + eps))
    return weight * temperature**2 * cross(probs(t, temperature), probs(s, temperature))


@per_row
def ttm_loss(s, t, temperature=10.0):
    powers = probs(t) ** (1 / temperature)
    return kl(powers / powers.sum(), probs(s))


@per_row
def wttm_loss(s, t, temperature=5.0):
    powers = probs(t) ** (1 / temperature)
    return powers.sum() * kl(powers / powers.sum(), probs(s))


@per_row
def logit_mse_loss(s, t):
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)


@per_row
def logit_distance_loss(s, t, eps=0.0):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) + eps)


@per_row
def hard_target_loss(s, t, smoothing=0.0):
    target = np.full(len(s), smoothing / (len(s) - 1))
    target[int(np.argmax(t))] = 1 - smoothing
    return kl(target, probs(s))


@per_row
def virtual_teacher_loss(s, y, temperature=20.0, confidence=0.99):
    teacher = np.full(len(s), (1 - confidence) / (len(s) - 1))
    teacher[y] = confidence
    softened = teacher ** (1 / temperature)
    return kl(softened / softened.sum(), probs(s))


def pearson(x, y, eps):
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (np.sqrt(x @ x) * np.sqrt(y @ y) + eps)


def dist_loss(s, t, temperature=1.0, inter_weight=1.0, intra_weight=1.0, eps=1e-8):
    q, p = probs(s, temperature), probs(t, temperature)
    intra = np.mean([1 - pearson(a, b, eps) for a, b in zip(q.T, p.T, strict=True)])
    inter = np.array([1 - pearson(a, b, eps) for a, b in zip(q, p, strict=True)])
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def batch_correlation_loss(s, t, temperature=4.0):
    q, p = probs(s, temperature), probs(t, temperature)
    pairs = [[(qi @ qj - pi @ pj) ** 2 for qj, pj in zip(q, p, strict=True)]
             for qi, pi in zip(q, p, strict=True)]  # fmt: skip
    return np.sum(pairs, axis=1)


def class_correlation_loss(s, t, temperature=4.0):
    value = class_correlation_rows(s, t, temperature).sum() / s.shape[-1]
    return np.full(len(s), value)


def class_correlation_rows(s, t, temperature):
    """For every class the squared differences of its products with all classes."""
    q, p = probs(s, temperature).T, probs(t, temperature).T
    return np.array([[(qc @ qd - pc @ pd) ** 2 for qd, pd in zip(q, p, strict=True)]
                     for qc, pc in zip(q, p, strict=True)]).sum(1)  # fmt: skip


def multi_level_loss(s, t, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), confidence_quantile=1.0):
    sure, common = probs(t).max(1), probs(t).sum(0)
    rows = sure <= np.quantile(sure, confidence_quantile)
    classes = common <= np.quantile(common, confidence_quantile)
    total = np.zeros(len(s))
    for T in temperatures:
        instance = [T * T * kl(a, b) for a, b in zip(probs(t, T), probs(s, T), strict=True)]
        total += rows * (np.array(instance) + batch_correlation_loss(s, t, T))
        total += (classes * class_correlation_rows(s, t, T)).sum() / s.shape[-1]
    return total


def direction_relation_loss(s, t, regularization=0.1):
    def cosines(z):
        return np.array([[a @ b / math.sqrt((a @ a) * (b @ b)) for b in z] for a in z])

    gap = cosines(s) - cosines(t)
    inverse = np.linalg.inv(np.cov(gap, rowvar=False) + regularization * np.eye(len(s)))
    return np.array([math.sqrt(row @ inverse @ row) for row in gap])


def self_target_loss(s, y):
    q = probs(s)[np.arange(len(s)), y]
    return -(1 + q**2 - np.mean(q**2)) * np.log(q)


@per_row
def self_rank_loss(s, w, y):
    score = probs(w) / (1 - probs(w)[y]) + probs(s) / (1 - probs(s)[y])
    zipf = np.array([1 / (1 + sum(score > value)) for value in score])
    zipf = np.delete(zipf, y)
    return cross(zipf / zipf.sum(), probs(np.delete(s, y)))
