"""Losses on the relations between the examples of a batch: distances, angles, ranks, directions.

Student and teacher are compared by what each makes of pairs or triplets of examples, so that
their features may have different widths. Every value belongs to an anchor, and the mean over the
anchors that count is the loss of the paper: a batch with a mask has the loss of the smaller batch.
"""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import norms, relations


def distance_relation_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    squared: bool = False,
    eps: float | Array = 1e-12,
    mask: Array | None = None,
) -> Array:
    """Keep the distances between examples in proportion: relational distillation of pairs.

    value_i = 1/n sum_j huber(d_ij / mean(d) - d'_ij / mean(d')), d_ij = |x_i - x_j|

    over the n examples that count, the mean over pairs of different ones, d' the teacher's, and
    huber(r) = r^2 / 2 up to |r| = 1 and |r| - 1/2 beyond. The gradient flows through mean(d).

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        squared: whether to compare squared distances, as some code does.
        eps: squared distances below it count as this much, with gradient 0; not negative.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor, 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, a shape does not fit, or eps is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import distance_relation_loss
        >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [5.0]])
        >>> print(distance_relation_loss(student, teacher).round(3))
        [0.034 0.068 0.034]

    References:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068,
        section 3.2.1.
    """
    name = "distance_relation_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    eps = _numbers.as_number(name, "eps", eps, batch.student.dtype, _numbers.NOT_NEGATIVE)
    student, teacher = (
        relations.distances(x, batch.mask, squared=squared, eps=eps)[0] for x in batch[:2]
    )
    unit, teacher_unit = _positive_mean(student), _positive_mean(teacher)
    gap = relations.gap_in_units(student, teacher, unit, teacher_unit)
    return jnp.sum(_huber(gap), axis=-1) / jnp.maximum(batch.num_valid, 1)


def _huber(r: Array) -> Array:
    """Return r^2 / 2 up to |r| = 1, |r| - 1/2 beyond."""
    size = jnp.abs(r)
    inside = jnp.minimum(size, 1)
    return 0.5 * jnp.square(inside) + (size - inside)


def _positive_mean(x: Array) -> Array:
    """Return the mean of what is positive, 1 where nothing is."""
    positive = x > 0
    count = jnp.maximum(jnp.sum(positive, dtype=x.dtype), 1)
    return jnp.where(jnp.any(positive), jnp.sum(x) / count, 1)


def angle_relation_loss(
    student_features: Array, teacher_features: Array, *, mask: Array | None = None
) -> Array:
    """Keep the angles that triplets of examples form: relational distillation of triplets.

    value_i = 1/n^2 sum_jk huber(cos a_jik - cos a'_jik), a_jik the angle at x_i of x_j and x_k

    over the n examples that count, a' the teacher's; huber as in `distance_relation_loss`. Where
    two examples coincide there is no angle and the cosine is 0, with gradient 0. Memory grows as
    n^2, not n^3: anchors are taken a few at a time where they are many.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], float32 or wider: one value per anchor (the vertex), 0 where the mask is False.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import angle_relation_loss
        >>> student = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> teacher = jnp.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        >>> print(angle_relation_loss(student, teacher))
        [0.111 0.268 0.010]

    References:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068,
        section 3.2.2.
    """
    name = "angle_relation_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    every = [relations.whole(x) for x in batch[:2]]

    def disagreement(anchor: tuple[Array, Array, Array]) -> Array:
        student, teacher, others = anchor
        own = _cosines(student, every[0], others)
        return jnp.sum(_huber(own - _cosines(teacher, every[1], others)))

    num_elements = batch.student.size + batch.teacher.size + 2 * batch.mask.size**2
    anchors = (batch.student, batch.teacher, relations.pairs(batch.mask))
    total = relations.over_anchors(disagreement, anchors, num_elements)
    return total / jnp.square(jnp.maximum(batch.num_valid, 1))


def _cosines(vertex: Array, x: Array, others: Array) -> Array:
    """Return the cosines of the angles at a vertex between all pairs of other rows."""
    return relations.gram(norms.normalize(jnp.where(others[:, None], x - vertex[None, :], 0)))


def hard_dark_rank_loss(
    student_features: Array,
    teacher_features: Array,
    *,
    scale: float | Array = 3.0,
    power: float | Array = 3.0,
    num_ranked: int = 4,
    eps: float | Array = 1e-12,
    mask: Array | None = None,
) -> Array:
    """Rank the nearest neighbors of each example as the teacher does.

    value_i = -log P(the teacher's order), P = prod_r exp(s_r) / sum_{q >= r} exp(s_q)

    with r = 1 .. num_ranked over the teacher's nearest neighbors of i, nearest first, and scores
    s_r = -scale * d_ir^power from the student's distances. Fewer are ranked where fewer count.

    Args:
        student_features: [batch, ...], any floating type.
        teacher_features: [batch, ...], of any width; constant, its gradient is zero.
        scale: how much a distance weighs, positive.
        power: of the distance, positive.
        num_ranked: how many neighbors are ranked, positive.
        eps: squared distances below it count as this much, with gradient 0; not negative.
        mask: [batch], boolean: the examples that count; None for all.

    Returns:
        [batch], nats, float32 or wider: one value per anchor, 0 where the mask is False. It is
        not 0 where student and teacher are equal.

    Raises:
        TypeError: if features are not of a floating type, or the mask is not boolean.
        ValueError: if the batches differ, a shape does not fit, or a number is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import hard_dark_rank_loss
        >>> student, teacher = jnp.array([[0.0], [1.0], [1.5]]), jnp.array([[0.0], [1.0], [3.0]])
        >>> print(hard_dark_rank_loss(student, teacher, scale=0.1).mean())
        0.621

    References:
        Chen, Wang, Zhang, "DarkRank: Accelerating Deep Metric Learning via Cross Sample
        Similarities Transfer", 2018, arXiv:1707.01220.
    """
    name = "hard_dark_rank_loss"
    batch = _inputs.as_feature_batch(name, student_features, teacher_features, mask)
    dtype = batch.student.dtype
    num_ranked = _numbers.as_count(name, "num_ranked", num_ranked)
    scale = _numbers.as_number(name, "scale", scale, dtype, _numbers.POSITIVE)
    power = _numbers.as_number(name, "power", power, dtype, _numbers.POSITIVE)
    eps = _numbers.as_number(name, "eps", eps, dtype, _numbers.NOT_NEGATIVE)
    others = relations.pairs(batch.mask)
    far, near = (jnp.multiply(*relations.distances(x, batch.mask, eps=eps)) for x in batch[:2])
    scores = jnp.where(others, -scale * jnp.where(far == 0, 1, far) ** power, 0)
    scores = jnp.where(far == 0, 0, scores)
    near = jnp.where(others, -near, -jnp.inf)
    _, order = jax.lax.top_k(near, min(num_ranked, len(near)))
    ranked = (jnp.take_along_axis(x, order, axis=1) for x in (scores, others))
    nearest = jnp.max(near, axis=1, initial=-jnp.inf)
    return _numbers.poisoned(_permutation_nll(*ranked), eps, nearest)


def _permutation_nll(scores: Array, where: Array) -> Array:
    """Return -log of the probability of the order at hand, by Plackett and Luce, [batch]."""
    rank = jnp.arange(scores.shape[1])
    later = rank[None, None, :] > rank[None, :, None]
    rivals = (later & where[:, None, :]) | (rank[None, None, :] == rank[None, :, None])
    # Only differences count: what is chosen at a place, against all that is left for it.
    gaps = jnp.where(rivals, scores[:, None, :] - scores[:, :, None], -jnp.inf)
    return jnp.sum(jnp.where(where, jax.nn.logsumexp(gaps, axis=-1), 0), axis=-1)


def direction_relation_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    regularization: float | Array = 0.1,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Match the cosines between the examples' logits, in Mahalanobis distance (SKD).

    sqrt(d_i . S^-1 d_i), d_i the row i of D = G(z) - G(v), S = cov(D) + r I

    with z the student's logits and v the teacher's, G their cosines between all pairs of examples,
    cov the unbiased covariance of D's columns over its rows, and r the regularization. The
    gradient passes through S too. The instance part of the method is `soft_target_loss` over T^2.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        regularization: r, a positive number, or a scalar array.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, or `where` or the mask is not boolean.
        ValueError: if the shapes do not fit, or the regularization is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import direction_relation_loss
        >>> student = jnp.array([[2.0, 0.0], [3.0, 0.0]])
        >>> teacher = jnp.array([[2.0, 0.0], [0.0, 3.0]])
        >>> print(direction_relation_loss(student, teacher))
        [2.335 2.335]

    References:
        Jeong, Lee, Choi, "Streamlined Knowledge Distillation", 2026, CVPR.
    """
    name = "direction_relation_loss"
    batch = _inputs.as_logit_batch(name, student_logits, teacher_logits, axis, where, mask)
    dtype, positive = batch.student.dtype, _numbers.POSITIVE
    r = _numbers.as_number(name, "regularization", regularization, dtype, positive)
    z, v = (_units(x, batch.valid) for x in (batch.student, batch.teacher))
    gap = relations.whole(relations.gram_gap(z, v, z - v, "iw,jw->ij"))
    valid = relations.whole(batch.valid.reshape(batch.valid.size))
    varied = norms.deviations(gap, jnp.broadcast_to(valid[:, None], gap.shape), axis=0)
    degrees = jnp.maximum(jnp.sum(valid, dtype=dtype) - 1, 1)
    covariance = jnp.einsum("ij,ik->jk", varied, varied, precision="highest") / degrees
    covariance += r * jnp.eye(len(gap), dtype=gap.dtype)
    factor = jnp.linalg.cholesky(covariance)
    scaled = jax.scipy.linalg.solve_triangular(factor, gap.T, lower=True)
    values = norms.l2_norm(scaled, axis=0).reshape(batch.valid.shape)
    return relations.split_like(values, batch.valid)


def _units(x: Array, valid: Array) -> Array:
    """Return unit vectors [examples, num_classes], 0 at what does not count."""
    x = jnp.where(jnp.isneginf(x) | ~valid[..., None], 0, x)
    return norms.normalize(relations.rows(x))
