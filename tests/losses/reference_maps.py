"""The losses of feature maps as loops over examples, positions and channels, in float64 NumPy.

Nothing of ours is imported.
"""

import itertools
import math

import numpy as np


def pool(x, sizes):
    """Adaptive averages: x [..., channels] of one example, to so many positions along each axis."""
    x = np.asarray(x, float)
    result = np.zeros((*sizes, x.shape[-1]))
    for index in itertools.product(*map(range, sizes)):
        bins = []
        for i, old, new in zip(index, x.shape[:-1], sizes, strict=True):
            bins.append(slice(math.floor(i * old / new), math.ceil((i + 1) * old / new)))
        result[index] = x[tuple(bins)].reshape(-1, x.shape[-1]).mean(0)
    return result


def examples(student, teacher):
    """Pairs of one example's maps, in the smaller size along each axis."""
    for s, t in zip(student, teacher, strict=True):
        sizes = tuple(min(pair) for pair in zip(s.shape[:-1], t.shape[:-1], strict=True))
        yield pool(s, sizes), pool(t, sizes)


def unit(x):
    norm = math.sqrt((x**2).sum())
    return x / norm if norm else x


def attention(x, power):
    return unit(np.mean(np.abs(x) ** power, axis=-1))


def attention_map(features, power=2):
    return np.stack([attention(np.asarray(x, float), power) for x in features])


def attention_transfer_loss(student, teacher, power=2):
    pairs = examples(student, teacher)
    return np.array([np.mean((attention(s, power) - attention(t, power)) ** 2) for s, t in pairs])


def neuron_selectivity_loss(student, teacher):
    def kernel(one, other):
        ones, others = ([unit(x[..., c]) for c in range(x.shape[-1])] for x in (one, other))
        return np.mean([(a * b).sum() ** 2 for a in ones for b in others])

    return np.array(
        [kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in examples(student, teacher)]
    )


def flow_matrix(first, second):
    matrices = []
    for one, two in examples(first, second):
        one, two = one.reshape(-1, one.shape[-1]), two.reshape(-1, two.shape[-1])
        matrices.append(sum(np.outer(a, b) for a, b in zip(one, two, strict=True)) / len(one))
    return np.stack(matrices)


def flow_loss(students, teachers):
    result = np.zeros(len(students[0]))
    for i in range(len(students) - 1):
        gap = flow_matrix(*students[i : i + 2]) - flow_matrix(*teachers[i : i + 2])
        result += (gap**2).mean((1, 2))
    return result


def activation_boundary_loss(student, teacher, margin=1.0):
    def cost(s, t):
        if t <= 0:
            return (s + margin) ** 2 if s > -margin else 0.0
        return (s - margin) ** 2 if s <= margin else 0.0

    return np.array([sum(map(cost, s.ravel(), t.ravel())) for s, t in examples(student, teacher)])


def overhaul_loss(student, teacher, margin):
    def cost(s, t, m):
        if t <= m:
            return (s - m) ** 2 if s > m else 0.0
        return (s - t) ** 2 if t > 0 or s > t else 0.0

    def one(s, t):
        margins = np.broadcast_to(np.asarray(margin, float), s.shape)
        return sum(map(cost, s.ravel(), t.ravel(), margins.ravel()))

    return np.array([one(s, t) for s, t in examples(student, teacher)])


def batch_norm_margin(scale, bias):
    """By summing the density over a fine grid of negative numbers."""
    result = []
    for deviation, mean in zip(np.abs(scale), bias, strict=True):
        x = np.linspace(min(mean - 12 * deviation, -deviation), 0, 2_000_001)
        density = np.exp(-((x - mean) ** 2) / (2 * deviation**2))
        density /= deviation * math.sqrt(2 * math.pi)
        probability = np.trapezoid(density, x)
        rare = probability <= 1e-3
        result.append(-3 * deviation if rare else np.trapezoid(density * x, x) / probability)
    return np.array(result)


def variational_information_loss(student_mean, teacher, variance):
    variance = np.broadcast_to(np.asarray(variance, float), student_mean.shape)
    mean, teacher = np.asarray(student_mean, float), np.asarray(teacher, float)
    density = np.exp(-((mean - teacher) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    likelihood = -np.log(density).reshape(len(mean), -1).mean(1)
    return likelihood - math.log(2 * math.pi) / 2


def factor_transfer_loss(student, teacher, power=1):
    pairs = examples(student, teacher)
    return np.array([np.mean(np.abs(unit(s) - unit(t)) ** power) for s, t in pairs])


def hierarchical_context_loss(student, teacher, levels=(4, 2, 1)):
    result = []
    for s, t in examples(student, teacher):
        parts = [np.mean((s - t) ** 2)]
        axes = s.ndim - 1
        for level in levels:
            if axes and level < s.shape[0]:
                sizes = (level,) * axes
                parts.append(np.mean((pool(s, sizes) - pool(t, sizes)) ** 2))
        weights = [2.0**-i for i in range(len(parts))]
        result.append(np.dot(weights, parts) / sum(weights))
    return np.array(result)
