"""The losses of other tasks as loops over examples and labels, in float64 NumPy.

Nothing of ours is imported.
"""

import math

import numpy as np


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def binary_kl(z, v):
    p, q = sigmoid(v), sigmoid(z)
    return p * math.log(p / q) + (1 - p) * math.log(sigmoid(-v) / sigmoid(-z))


def each(fn, *arrays):
    """A function of the rows of arrays, for all leading axes."""
    batch = np.shape(arrays[0])[:-1]
    return np.array([fn(*(np.asarray(a, float)[i] for a in arrays)) for i in np.ndindex(*batch)]
                    ).reshape(batch)  # fmt: skip


def sigmoid_kd_loss(student, teacher, temperature=4.0):
    def one(s, t):
        pairs = zip(s / temperature, t / temperature, strict=True)
        return temperature**2 * np.mean([binary_kl(z, v) for z, v in pairs])

    return each(one, student, teacher)


def binary_cross_entropy(logits, labels):
    def one(z, y):
        pairs = zip(z, y, strict=True)
        return np.mean([math.log1p(math.exp(-abs(a))) + max(a, 0) - a * b for a, b in pairs])

    return each(one, logits, labels)


def squared_error(outputs, labels):
    return each(lambda z, y: np.mean((z - y) ** 2), outputs, labels)


def bounded_regression_loss(student, teacher, labels, margin=0.0):
    def one(s, t, y):
        own, bound = ((s - y) ** 2).sum(), ((t - y) ** 2).sum()
        return own if own + margin > bound else 0.0

    return each(one, student, teacher, labels)


def margin_mse_loss(student, teacher):
    def one(s, t):
        return np.mean([((s[0] - a) - (t[0] - b)) ** 2 for a, b in zip(s[1:], t[1:], strict=True)])

    return each(one, student, teacher)


def cosines(x):
    rows = np.asarray(x, float).reshape(len(x), -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def similarity_score_loss(student, teacher):
    return ((cosines(student) - cosines(teacher)) ** 2).mean(1)


def similarity_distribution_loss(student, teacher, temperature=0.05):
    values, (own, taught) = [], (cosines(student), cosines(teacher))
    for i in range(len(own)):
        z, v = (np.delete(x[i], i) / temperature for x in (own, taught))
        log_q, log_p = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (z, v))
        values.append((np.exp(log_p) * (log_p - log_q)).sum())
    return np.array(values)
