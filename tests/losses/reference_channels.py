"""What the losses on channels, class maps and embeddings should be: loops in float64 NumPy.

Nothing of ours is imported. Features are [batch, ..., channels].
"""

import numpy as np


def softmax(x):
    grown = np.exp(x - x.max())
    return grown / grown.sum()


def unit(x):
    length = np.sqrt((x * x).sum())
    return x / length if length else x


def channels(x):
    """The values of every channel at all positions, [batch, channels, positions]."""
    x = np.asarray(x, np.float64)
    return np.moveaxis(x, -1, 1).reshape(len(x), x.shape[-1], -1)


def channel_wise_loss(student, teacher, temperature=4.0):
    values = []
    for z, v in zip(channels(student), channels(teacher), strict=True):
        total = 0.0
        for one, other in zip(z, v, strict=True):
            q, p = softmax(one / temperature), softmax(other / temperature)
            total += (p * (np.log(p) - np.log(q))).sum()
        values.append(temperature**2 * total / len(z))
    return np.array(values)


def inter_channel_correlation_loss(student, teacher):
    values = []
    for z, v in zip(channels(student), channels(teacher), strict=True):
        rows = [unit(z @ z[c]) - unit(v @ v[c]) for c in range(len(z))]
        values.append(sum((row**2).sum() for row in rows) / len(z))
    return np.array(values)


def affinity_loss(student, teacher):
    values = []
    for z, v in zip(channels(student), channels(teacher), strict=True):
        a, b = [unit(x) for x in z], [unit(x) for x in v]
        gaps = [np.outer(x, x) - np.outer(y, y) for x, y in zip(a, b, strict=True)]
        values.append(sum(np.sqrt((gap**2).sum()) for gap in gaps) / z.shape[1])
    return np.array(values)


def cells(x, count):
    """Average a map [height, width] over count x count windows."""
    height, width = x.shape
    pooled = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            top, bottom = int(np.floor(i * height / count)), int(np.ceil((i + 1) * height / count))
            left, right = int(np.floor(j * width / count)), int(np.ceil((j + 1) * width / count))
            pooled[i, j] = x[top:bottom, left:right].mean()
    return pooled


def class_attention_loss(student, teacher, resolution=2, normalize=True):
    values = []
    for z, v in zip(np.asarray(student, float), np.asarray(teacher, float), strict=True):
        squares = []
        for k in range(z.shape[-1]):
            maps = [cells(x[..., k], resolution) for x in (z, v)]
            a, b = [unit(x) for x in maps] if normalize else maps
            squares.append((a - b) ** 2)
        values.append(np.mean(squares))
    return np.array(values)


def intra_class_variation_loss(student, teacher, labels, num_classes):
    values = []
    for z, v, label in zip(student, teacher, labels, strict=True):
        (height, width), squares = z.shape[:2], []
        rows, columns = label.shape
        own = label[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
        for i in range(height):
            for j in range(width):
                if not 0 <= own[i, j] < num_classes:
                    squares.append(0.0)
                    continue
                means = [np.asarray(x, float)[own == own[i, j]].mean(0) for x in (z, v)]
                sides = [unit(np.asarray(x, float)[i, j]) for x in (z, v)]
                student_cos, teacher_cos = (unit(m) @ s for m, s in zip(means, sides, strict=True))
                squares.append((student_cos - teacher_cos) ** 2)
        values.append(np.mean(squares))
    return np.array(values)


def cosine_loss(student, teacher):
    values = []
    for z, v in zip(np.asarray(student, float), np.asarray(teacher, float), strict=True):
        pairs = zip(z.reshape(-1, z.shape[-1]), v.reshape(-1, v.shape[-1]), strict=True)
        values.append(
            np.mean([1 - unit(a) @ unit(b) if a.any() or b.any() else 0 for a, b in pairs])
        )
    return np.array(values)


def projected_feature_loss(student, teacher):
    squares = (np.asarray(student, float) - np.asarray(teacher, float)) ** 2
    return squares.reshape(len(squares), -1).mean(1)


def prime_aware_loss(student, teacher, log_variances, eps=1e-6):
    squares = (np.asarray(student, float) - np.asarray(teacher, float)) ** 2
    values = squares / (eps + np.exp(log_variances)) + log_variances
    return values.reshape(len(values), -1).mean(1)


def softmax_regression_loss(
    student, teacher, student_logits, teacher_logits, feature_weight=1.0, logit_weight=1.0
):
    z, v = (
        channels(x).mean(-1) if np.ndim(x) > 2 else np.asarray(x, float) for x in (student, teacher)
    )
    by_feature = ((z - v) ** 2).mean(-1)
    by_logit = ((np.asarray(student_logits, float) - np.asarray(teacher_logits, float)) ** 2).mean(
        -1
    )
    return feature_weight * by_feature + logit_weight * by_logit


def convolve(x, kernel, bias):
    """A 3x3 convolution of [height, width, channels] with zeros around."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, kernel.shape[-1])) + bias
    for i in range(3):
        for j in range(3):
            out += padded[i : i + height, j : j + width] @ kernel[i, j]
    return out


def masked_generation_loss(student, teacher, keep, generator):
    values = []
    keep = np.broadcast_to(keep, np.shape(student))
    for z, v, mask in zip(
        np.asarray(student, float), np.asarray(teacher, float), keep, strict=True
    ):
        x = np.maximum(convolve(z * mask, generator["kernel_1"], generator["bias_1"]), 0)
        x = convolve(x, generator["kernel_2"], generator["bias_2"])
        values.append(((x - v) ** 2).sum())
    return np.array(values)


def layer_attention(queries, keys):
    energies = [
        q @ k.T for q, k in zip(np.asarray(queries, float), np.asarray(keys, float), strict=True)
    ]
    return np.array([[softmax(row) for row in energy] for energy in energies])


def semantic_calibration_loss(student, teacher, weights):
    values = np.zeros(len(weights))
    for n in range(len(weights)):
        for i, row in enumerate(student):
            for j, z in enumerate(row):
                gap = np.asarray(z[n], float) - np.asarray(teacher[i][j][n], float)
                values[n] += weights[n, i, j] * (gap**2).mean() / len(student)
    return values
