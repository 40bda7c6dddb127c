"""Losses that match the teacher's logits, its choice, or probabilities that it alone softens."""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, norms


def logit_mse_loss(
    student_logits: Array, teacher_logits: Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Return the mean squared difference of the logits.

    mean over the classes of (z - v)^2

    with z the student's logits and v the teacher's. Unlike a softmax it sees their common shift.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], float32 or wider: one value per example; +inf where only one of the two has a class.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import logit_mse_loss
        >>> print(logit_mse_loss(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
        [2.]

    References:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2013, arXiv:1312.6184, equation 1.
        Kim, Oh, Kim, Cho, Yun, "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss
        in Knowledge Distillation", 2021, arXiv:2105.08919.

    Differs from the papers: the mean over the classes, as their successors' code has it, and not
    the sum, so that the weight does not depend on the number of classes.
    """
    name = "logit_mse_loss"
    pair = _inputs.as_logits(name, student_logits, teacher_logits, axis, where, fewest=1)
    squares, count, apart = _squared_gaps(*pair)
    return jnp.sum(squares, axis=-1) / jnp.maximum(count, 1) + apart


def logit_distance_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    eps: float | Array = 0.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the Euclidean distance of the logits.

    sqrt(sum over the classes of (z - v)^2 + eps)

    with z the student's logits and v the teacher's. Of `tempered_log_softmax(logits, 1.0)` in
    their place it does not see a common shift.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        eps: a number that is not negative. At 0 the gradient at equal logits is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], float32 or wider: one value per example; +inf where only one of the two has a class.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes do not fit, or eps is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import logit_distance_loss
        >>> print(logit_distance_loss(jnp.array([[1.0, 5.0]]), jnp.array([[4.0, 1.0]])))
        [5.]

    References:
        Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov, "Knowledge distillation: A good teacher is
        patient and consistent", 2021, arXiv:2106.05237, whose code has it among its distances.
    """
    name = "logit_distance_loss"
    pair = _inputs.as_logits(name, student_logits, teacher_logits, axis, where, fewest=1)
    eps = _numbers.as_number(name, "eps", eps, pair[0].dtype, _numbers.NOT_NEGATIVE)
    squares, _, apart = _squared_gaps(*pair)
    return norms.safe_sqrt(jnp.sum(squares, axis=-1) + eps) + apart


def hard_target_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    smoothing: float | Array = 0.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Follow the class that the teacher finds most likely, as if it were the label (DeiT).

    KL(u || q), u = 1 - s at the teacher's first largest logit and s / (K - 1) at the other classes

    with q the student's probabilities, s the smoothing and K the number of classes. Without
    smoothing this is the cross-entropy.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        smoothing: s, a number in [0, 1], or a scalar array.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes do not fit, or the smoothing is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import hard_target_loss
        >>> print(hard_target_loss(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])))
        [2.408]

    References:
        Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training data-efficient image
        transformers & distillation through attention", 2020, arXiv:2012.12877, equation 3.
    """
    name = "hard_target_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    s = _numbers.as_number(name, "smoothing", smoothing, student.dtype, _numbers.SHARE)
    there = ~jnp.isneginf(teacher)
    chosen = there & jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1], dtype=bool)
    target = exact.smoothed(chosen, there, 1 - jnp.asarray(s, student.dtype))
    values = exact.tempered_kl(student, target, exact.at_one(student))
    return _numbers.poisoned(values, jnp.max(teacher, axis=-1))


def ttm_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 10.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Match a teacher that alone is softened: transformed teacher matching (TTM).

    KL(softmax(v / T) || softmax(z))

    with z the student's logits and v the teacher's. There is no factor T^2. Compared with
    `soft_target_loss` it holds the student's Renyi entropy up.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example. The
            paper's exponent of the power transform is 1 / T.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes do not fit, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import ttm_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(ttm_loss(student, teacher, temperature=2.0))
        [0.879]

    References:
        Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", 2024,
        arXiv:2402.11148, equation 9. The default is the exponent 0.1 of their example.
    """
    name = "ttm_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    t = _inputs.as_temperature(name, temperature, student)
    return exact.tempered_kl(student, exact.over(teacher, t), exact.at_one(student))


def wttm_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 5.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Weigh transformed teacher matching by how unsure the teacher is of an example (WTTM).

    (sum of p^(1 / T)) * KL(softmax(v / T) || softmax(z)), p = softmax(v)

    with z the student's logits and v the teacher's. There is no factor T^2. The power sum lies
    between 1 and K^(1 - 1 / T) for K classes.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a number of at least 1 as a rule, or an array: scalar or [...]. The paper's
            exponent of the power transform is 1 / T.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes do not fit, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import wttm_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(wttm_loss(student, teacher, temperature=2.0))
        [1.351]

    References:
        Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", 2024,
        arXiv:2402.11148, equation 13. The default is the exponent 0.2 of their example.
    """
    name = "wttm_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    t = _inputs.as_temperature(name, temperature, student)
    softened = exact.over(teacher, t)
    powers = exact.over(exact.log_softmax(teacher, exact.at_one(teacher)), t)
    divergence = exact.tempered_kl(student, softened, exact.at_one(student))
    return jnp.sum(jnp.exp(powers), axis=-1) * divergence


def _squared_gaps(x: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return squared differences, the number of classes, and +inf where one side lacks one."""
    without = jnp.isneginf(x), jnp.isneginf(v)
    both = ~(without[0] | without[1])
    squares = jnp.square(jnp.where(both, jnp.where(both, x, 0) - jnp.where(both, v, 0), 0))
    apart = jnp.any(without[0] != without[1], axis=-1)
    count = jnp.sum(both, axis=-1, dtype=x.dtype)
    return squares, count, jnp.where(apart, jnp.inf, 0).astype(x.dtype)
