"""Relations and contrast as loops over pairs and triplets, in float64 NumPy: nothing of ours."""

import itertools
import math

import numpy as np


def rows(x):
    x = np.asarray(x, np.float64)
    return x.reshape(len(x), -1)


def both(function):
    """Apply a function of one network's rows to student and teacher."""
    return lambda student, teacher, *args: (
        function(rows(student), *args),
        function(rows(teacher), *args),
    )


def huber(r):
    return 0.5 * r * r if abs(r) < 1 else abs(r) - 0.5


def unit(v):
    length = math.sqrt(float(v @ v))
    return v / length if length > 0 else np.zeros_like(v)


def pair_distances(x, squared=False, eps=1e-12):
    out = np.zeros((len(x), len(x)))
    for i, j in itertools.permutations(range(len(x)), 2):
        square = max(float(np.sum((x[i] - x[j]) ** 2)), eps)
        out[i, j] = square if squared else math.sqrt(square)
    return out


def distance_relation_loss(student, teacher, squared=False):
    s, t = both(pair_distances)(student, teacher, squared)
    n = len(s)
    if n == 1:
        return np.zeros(1)
    s, t = (d / d[~np.eye(n, dtype=bool)].mean() for d in (s, t))
    return np.array([sum(huber(s[i, j] - t[i, j]) for j in range(n)) / n for i in range(n)])


def angle_relation_loss(student, teacher):
    s, t = rows(student), rows(teacher)
    n = len(s)
    values = np.zeros(n)
    for i, j, k in itertools.product(range(n), repeat=3):
        cos_s, cos_t = (float(unit(x[j] - x[i]) @ unit(x[k] - x[i])) for x in (s, t))
        values[i] += huber(cos_s - cos_t) / n**2
    return values


def hard_dark_rank_loss(student, teacher, scale=3.0, power=3.0, num_ranked=4):
    s, t = both(pair_distances)(student, teacher)
    values = []
    for i in range(len(s)):
        others = sorted((j for j in range(len(s)) if j != i), key=lambda j: t[i, j])
        ranked = [-scale * s[i, j] ** power for j in others[:num_ranked]]
        value = 0.0
        for place, score in enumerate(ranked):
            top = max(ranked[place:])
            total = sum(math.exp(other - top) for other in ranked[place:])
            value += top + math.log(total) - score
        values.append(value)
    return np.array(values)


def similarity_preserving_loss(student, teacher):
    s, t = both(lambda x: np.array([unit(x @ row) for row in x]))(student, teacher)
    return ((s - t) ** 2).mean(1)


def gaussian_kernel(x, gamma, max_power, normalize):
    x = np.array([unit(row) for row in x]) if normalize else x
    powers = range(max_power + 1)
    return np.array(
        [
            [
                math.exp(-2 * gamma)
                * sum((2 * gamma) ** p / math.factorial(p) * float(a @ b) ** p for p in powers)
                for b in x
            ]
            for a in x
        ]
    )


def correlation_congruence_loss(student, teacher, gamma=0.4, max_power=2, normalize=True):
    s, t = both(gaussian_kernel)(student, teacher, gamma, max_power, normalize)
    return ((s - t) ** 2).mean(1)


def consecutive_correlation_loss(student, teacher):
    errors = np.abs(rows(student) - rows(teacher))
    n = len(errors)
    values = [float(errors[i] @ errors[i + 1]) * n / (n - 1) for i in range(n - 1)]
    return np.array([*values, 0.0])


def neighbour_probs(x, eps):
    lengths = np.sqrt((x**2).sum(1))
    x = x / (lengths + eps)[:, None]
    kernel = (1 + x @ x.T) / 2
    return kernel / kernel.sum(1, keepdims=True)


def probabilistic_transfer_loss(student, teacher, eps=1e-7):
    q, p = both(neighbour_probs)(student, teacher, eps)
    return (p * np.log((p + eps) / (q + eps))).mean(1)


def itrd_correlation_loss(student, teacher, order=1.5):
    n = len(student)
    s, t = both(lambda x: (x - x.mean(0)) / x.std(0, ddof=1))(student, teacher)
    correlation = (s * t).sum(0) / n
    return np.full(n, np.log2((np.abs(correlation - 1) ** (2 * order)).sum()))


def itrd_mutual_loss(student, teacher):
    s, t = both(lambda x: np.array([[unit(a) @ unit(b) for b in x] for a in x]))(student, teacher)
    alone, joint = (m / np.trace(m) for m in (s, s * t))
    return len(s) * (alone**2 - joint**2).sum(1)


def contrastive_representation_loss(positive, negative, log_normalizer, num_examples, eps=1e-7):
    noise = negative.shape[1] / num_examples
    values = []
    for own, others in zip(positive, negative, strict=True):
        h = np.exp(own) / np.exp(log_normalizer)
        value = -np.log(h / (h + noise + eps))
        for score in others:
            value -= np.log(noise / (np.exp(score) / np.exp(log_normalizer) + noise + eps))
        values.append(value)
    return np.array(values)
