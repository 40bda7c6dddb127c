"""Losses of other tasks than one class of many: several labels, real numbers, scores of candidates.

Of several labels each is true or false by itself, with the probability sigmoid(z) of its logit z.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact


def sigmoid_kd_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 4.0,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Follow the teacher's softened probability of each label: distillation of several labels.

    T^2 * mean over labels of p log(p / q) + (1 - p) log((1 - p) / (1 - q))

    with q = sigmoid(z / T) the student's probability of a label and p = sigmoid(v / T) the
    teacher's. A binary task has one label, one logit. It keeps its digits where p and q are close.

    Args:
        student_logits: [..., num_labels], any floating type; +-inf is certainty.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        axis: the axis of labels.
        where: boolean, broadcastable to the logits: the labels that are known.

    Returns:
        [...], nats, float32 or wider: one value per example, 0 where no label is known. +inf where
        the student is certain of what the teacher is not; the gradient is finite there too.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ, or the temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import sigmoid_kd_loss
        >>> student, teacher = jnp.array([[1.0, -2.0]]), jnp.array([[3.0, -2.0]])
        >>> print(sigmoid_kd_loss(student, teacher))
        [0.229]

    References:
        Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang, "Multi-Label Knowledge Distillation", 2023,
        arXiv:2308.06453, section 3.2.

    Differs from the paper: the mean over the labels, and not the sum, so that the weight does not
    depend on their number; with the factor T^2 of Hinton, Vinyals and Dean.
    """
    name = "sigmoid_kd_loss"
    pair = _inputs.as_pair(name, student_logits, teacher_logits, _inputs.LOGITS)
    known = _known(name, pair[0], axis, where)
    student, teacher = (jnp.moveaxis(x, axis, -1) for x in pair)
    t = _inputs.as_temperature(name, temperature, student)
    each = jnp.broadcast_to(t, student.shape)[..., None]
    divergences = exact.tempered_kl(
        _outcomes(student), _outcomes(jax.lax.stop_gradient(teacher)), each
    )
    return _mean(divergences, known) * jnp.squeeze(t * t, -1)


def binary_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the cross-entropy of several labels, each true or false by itself.

    mean over labels of -y log sigmoid(z) - (1 - y) log sigmoid(-z)

    Args:
        logits: [..., num_labels], any floating type; +-inf is certainty.
        labels: 0, 1 or booleans, or probabilities, shaped like the logits, or [...] for one logit;
            constant.
        ignore_label: the integer for a label that is not known, such as -1: it does not count.
        axis: the axis of labels.
        where: boolean, broadcastable to the logits: the labels that are known.

    Returns:
        [...], nats, float32 or wider: one value per example, 0 where no label is known; nan where
        a traced label is not in [0, 1].

    Raises:
        TypeError: if the logits are not of a floating type.
        ValueError: if the shapes do not fit, or a label that is not traced is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import binary_cross_entropy
        >>> print(binary_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[1, 0]])))
        [0.41]

    References:
        Cox, "The Regression Analysis of Binary Sequences", 1958,
        doi:10.1111/j.2517-6161.1958.tb00292.x.
    """
    name = "binary_cross_entropy"
    x = _inputs.as_floats(name, "logits", logits)
    known = _known(name, x, axis, where)
    x = jnp.moveaxis(x, axis, -1)
    y, known = _truths(name, labels, x, axis, ignore_label, known)
    return _mean(_part(y, -x) + _part(1 - y, x), known)


def squared_error(outputs: Array, labels: Array) -> Array:
    """Return the squared error of real numbers: regression from labels.

    mean over values of (z - y)^2

    Args:
        outputs: [..., values], any floating type.
        labels: real numbers or integers of the same shape, or [...] for one value; constant.

    Returns:
        [...], float32 or wider: one value per example.

    Raises:
        TypeError: if an argument holds no numbers.
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import squared_error
        >>> print(squared_error(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 4.0])))
        [0. 4.]

    References:
        Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.1.
    """
    x = _inputs.as_floats("squared_error", "outputs", outputs)
    return jnp.mean(jnp.square(x - _targets("squared_error", labels, x, "outputs")), axis=-1)


def bounded_regression_loss(
    student_outputs: Array,
    teacher_outputs: Array,
    labels: Array,
    *,
    margin: float | Array = 0.0,
) -> Array:
    """Regress the labels only while the student is no better than the teacher.

    |z - y|^2 where |z - y|^2 + m > |v - y|^2, else 0

    with z the student's outputs, v the teacher's, y the labels and m the margin. The teacher is an
    upper bound, not a target: it may be wrong in any direction. It goes beside a loss of the labels
    alone, such as `squared_error`.

    Args:
        student_outputs: [..., values], any floating type.
        teacher_outputs: likewise, of the same shape; constant, its gradient is zero.
        labels: real numbers or integers of the same shape, or [...] for one value; constant.
        margin: m, by how much the student has to be better; not negative.

    Returns:
        [...], float32 or wider: one value per example.

    Raises:
        TypeError: if an argument holds no numbers.
        ValueError: if the shapes do not fit, or the margin is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import bounded_regression_loss
        >>> student, teacher = jnp.array([[1.0], [3.0]]), jnp.array([[2.0], [2.0]])
        >>> print(bounded_regression_loss(student, teacher, jnp.zeros(2)))
        [0. 9.]

    References:
        Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
        Distillation", 2017, NeurIPS, section 3.3.
    """
    name, names = "bounded_regression_loss", ("student_outputs", "teacher_outputs")
    student, teacher = _inputs.as_pair(name, student_outputs, teacher_outputs, names)
    margin = _numbers.as_number(name, "margin", margin, student.dtype, _numbers.NOT_NEGATIVE)
    y = _targets(name, labels, student, names[0])
    own, bound = (jnp.sum(jnp.square(x - y), -1) for x in (student, teacher))
    bound = jax.lax.stop_gradient(bound)
    return _numbers.poisoned(jnp.where(own + margin <= bound, 0, own), margin, bound)


def margin_mse_loss(
    student_logits: Array, teacher_logits: Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """Keep by how much the teacher prefers the relevant candidate to each of the others.

    mean over candidates j > 0 of ((z_0 - z_j) - (v_0 - v_j))^2

    with z the student's scores of a query's candidates and v the teacher's. Scores of two networks
    need no common scale or origin but that of their differences.

    Args:
        student_logits: [..., candidates], the relevant one first, then one or more others; any
            floating type; -inf removes a candidate.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        axis: the axis of candidates.
        where: boolean, broadcastable to the scores: the candidates that exist.

    Returns:
        [...], float32 or wider: one value per query; +inf where only one of the two has a
        candidate.

    Raises:
        TypeError: if scores are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ, or there is one candidate alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import margin_mse_loss
        >>> print(margin_mse_loss(jnp.array([[0.9, 0.4]]), jnp.array([[12.0, 9.5]])))
        [4.]

    References:
        Hofstätter, Althammer, Schröder, Sertkan, Hanbury, "Improving Efficient Neural Ranking
        Models with Cross-Architecture Knowledge Distillation", 2020, arXiv:2010.02666, section 3.
    """
    student, teacher = _inputs.as_logits(
        "margin_mse_loss", student_logits, teacher_logits, axis, where
    )
    absent = [jnp.isneginf(x) for x in (student, teacher)]
    both = ~(absent[0] | absent[1])
    gap = jnp.where(both, jnp.where(both, student, 0) - jnp.where(both, teacher, 0), 0)
    others = both[..., 1:] & both[..., :1]
    squares = jnp.where(others, jnp.square(gap[..., :1] - gap[..., 1:]), 0)
    count = jnp.maximum(jnp.sum(others, axis=-1, dtype=squares.dtype), 1)
    apart = jnp.any(absent[0] != absent[1], axis=-1)
    return jnp.where(apart, jnp.inf, jnp.sum(squares, axis=-1) / count)


def _known(function: str, x: Array, axis: int, where: Array | None) -> Array:
    """Return which labels are known, the axis of labels last."""
    chosen = _inputs.select_classes(function, "logits", jnp.zeros_like(x), where, axis, fewest=1)
    return ~jnp.isneginf(chosen)


def _outcomes(x: Array) -> Array:
    """Return logits of false and true, [..., 2], whose softmax is the sigmoid; certainty stays."""
    return jnp.stack([jnp.minimum(-x, 0), jnp.minimum(x, 0)], axis=-1)


def _mean(values: Array, known: Array) -> Array:
    """Average over the labels that are known, 0 where none is."""
    count = jnp.maximum(jnp.sum(known, axis=-1, dtype=values.dtype), 1)
    return jnp.sum(jnp.where(known, values, 0), axis=-1) / count


def _part(share: Array, x: Array) -> Array:
    """Return share * log(1 + exp(x)), which is 0 for a share of 0 even where x is infinite."""
    none = share == 0
    return jnp.where(none, 0, share * jax.nn.softplus(jnp.where(none, 0, x)))


def _targets(function: str, labels: Array, x: Array, like: str, axis: int = -1) -> Array:
    """Return numbers as constants, values last, like those of a network; [...] fits one value."""
    y = _inputs.as_type(function, "labels", labels, jnp.generic, "numbers")
    y = y[..., None] if y.shape == x.shape[:-1] and x.shape[-1] == 1 else jnp.moveaxis(y, axis, -1)
    _inputs.check_shape(function, "labels", y, x.shape, like)
    return jax.lax.stop_gradient(y.astype(x.dtype))


def _truths(
    function: str, labels: Array, x: Array, axis: int, ignore_label: int | None, known: Array
) -> tuple[Array, Array]:
    """Return labels in [0, 1], nan where a traced one is not, and which of them count."""
    if ignore_label is not None and _inputs.are_probs(labels):
        raise TypeError(f"{function}: ignore_label is {ignore_label}, but labels are floating")
    y = _targets(function, labels, x, "the logits", axis)
    known = known if ignore_label is None else known & (y != ignore_label)
    values, counts = _numbers.known(y), _numbers.known(known)
    if values is not None and counts is not None:
        wrong = values[~((values >= 0) & (values <= 1)) & np.asarray(counts)]
        if wrong.size:
            raise ValueError(
                f"{function}: labels has {wrong[0]:g}, expected 0, 1 or a probability between; "
                "`where`, or ignore_label, leaves such labels out"
            )
    # What is not known is 0: its gradient would be nan, and 0 * nan is nan.
    y = jnp.where(known, y, 0)
    return jnp.where((y >= 0) & (y <= 1), y, jnp.nan), known
