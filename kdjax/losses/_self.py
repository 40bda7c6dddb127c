"""Teacher-free distillation: soft targets made from the labels, or from the student itself."""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact


def virtual_teacher_loss(
    student_logits: Array,
    labels: Array,
    *,
    temperature: float | Array = 20.0,
    confidence: float | Array = 0.99,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Regularize towards a teacher made by hand: always right, and softened (Tf-KD).

    KL(softmax(log(u) / T) || q), u = a at the label and (1 - a) / (K - 1) at the other classes

    with q the student's probabilities at temperature 1, a the confidence and K the number of
    classes. There is no factor T^2.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        labels: integer classes [...].
        temperature: T, a positive number, or an array: scalar or [...], one for each example.
        confidence: a in (0, 1], a number or a scalar array.
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or labels not integers.
        ValueError: if the shapes do not fit, the temperature is not positive and finite, the
            confidence not in (0, 1], or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import virtual_teacher_loss
        >>> print(virtual_teacher_loss(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0])))
        [0.409]

    References:
        Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing
        Regularization", 2019, arXiv:1909.11723, section 5.2.

    Differs from the authors' code: that takes a softmax of u / T, probabilities in the place of
    logits, which at T = 20 is all but uniform; softening takes their logarithms. It also divides
    by K, which belongs into the weight: 0.1 * 100 there is 0.1 here, with 100 classes.
    """
    name = "virtual_teacher_loss"
    x = _inputs.as_classes(name, "student_logits", student_logits, axis, where)
    some = _numbers.Limits(0, 1, open_low=True)
    confidence = _numbers.as_number(name, "confidence", confidence, x.dtype, some)
    labeled = _inputs.as_chosen(name, labels, x, ignore_label)
    x, chosen = labeled.counting(x), labeled.chosen
    t = _inputs.as_temperature(name, temperature, x)
    teacher = exact.smoothed(chosen, ~jnp.isneginf(x), jnp.asarray(confidence, x.dtype))
    divergence = exact.tempered_kl(x, exact.over(teacher, t), exact.at_one(x))
    return labeled.of(divergence)


def self_target_loss(
    student_logits: Array,
    labels: Array,
    *,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """Weigh the labels by how well the student knows them already, its own soft target (USKD).

    - (1 + q_y^2 - mean over the batch of q_y^2) * log q_y

    with q the student's probabilities and y the label. The factor is constant.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        labels: integer classes [...].
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.
        mask: boolean, the leading axes of [...]: the examples that count; None for all.

    Returns:
        [...], nats, float32 or wider: one value per example, 0 where the mask is False.

    Raises:
        TypeError: if logits are not of a floating type, labels not integers or the mask not
            boolean.
        ValueError: if the shapes do not fit, or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import self_target_loss
        >>> print(self_target_loss(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([0, 0])).sum())
        0.834

    References:
        Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge
        Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", 2023,
        arXiv:2303.13005, equation 9.
    """
    name = "self_target_loss"
    x = _inputs.as_classes(name, "student_logits", student_logits, axis, where)
    valid = _inputs.as_examples(name, mask, x)
    labeled = _inputs.as_chosen(name, labels, x, ignore_label)
    if labeled.ignored is not None:
        valid &= ~labeled.ignored
    x = jnp.where(valid[..., None], x, 0)
    nll = exact.nll(x, labeled.chosen)
    squares = jnp.where(valid, jnp.exp(-2 * jax.lax.stop_gradient(nll)), 0)
    mean = jnp.sum(squares) / jnp.maximum(jnp.sum(valid, dtype=x.dtype), 1)
    return jnp.where(valid, labeled.of((1 + squares - mean) * nll), 0)


def self_rank_loss(
    student_logits: Array,
    weak_logits: Array,
    labels: Array,
    *,
    ignore_label: int | None = None,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Teach the other classes by their rank alone, as Zipf's law would share them out (USKD).

    - sum over the classes c but y of z_c log q'_c, z_c in proportion to 1 / rank(c)

    with y the label and q' the student's probabilities of the classes without y, normalized again.
    The rank of a class, over all classes, is that of q'_c + r'_c, r' the same from the weak
    logits, those of a linear layer on a feature early in the student. The targets are constant:
    the weak logits have no gradient here, and learn from a smoothed cross-entropy of their own.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        weak_logits: likewise, of the same shape; constant, their gradient is zero.
        labels: integer classes [...].
        ignore_label: the label of examples that do not count: their value is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example.

    Raises:
        TypeError: if logits are not of a floating type, or labels not integers.
        ValueError: if the shapes do not fit, or a label that is not traced is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import self_rank_loss
        >>> student, weak = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(self_rank_loss(student, weak, jnp.array([0])))
        [0.913]

    References:
        Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge
        Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", 2023,
        arXiv:2303.13005, equation 12.

    Differs from the authors' code: that ranks by a sum of the weak probabilities and of the
    student's logarithms divided by 1 - log q_y, for want of a second name, and adds 1e-6 to the
    divisors.
    """
    name = "self_rank_loss"
    names = ("student_logits", "weak_logits")
    student, weak = _inputs.as_logits(name, student_logits, weak_logits, axis, where, names)
    labeled = _inputs.as_chosen(name, labels, student, ignore_label)
    student, weak = labeled.counting(student), labeled.counting(weak)
    chosen = labeled.chosen
    ones = exact.at_one(student)
    constants = (jax.lax.stop_gradient(student), weak)
    student_probs, weak_probs = (_normalized(x, chosen, ones) for x in constants)
    place = jnp.argsort(jnp.argsort(-(student_probs + weak_probs), axis=-1), axis=-1)
    absent = chosen | jnp.isneginf(student)
    target = jnp.where(absent, -jnp.inf, -jnp.log1p(place.astype(student.dtype)))
    values = exact.cross_entropy(exact.but(student, chosen), target, ones)
    return labeled.of(_numbers.poisoned(values, jnp.max(weak, axis=-1)))


def _normalized(x: Array, chosen: Array, ones: Array) -> Array:
    """Divide probabilities by what the chosen class leaves, its own too: those are its odds."""
    others = jnp.exp(exact.log_softmax(exact.but(x, chosen), ones))
    log_probs = exact.log_softmax(x, ones)
    rest = jax.nn.logsumexp(exact.but(log_probs, chosen), axis=-1, keepdims=True)
    return jnp.where(chosen, jnp.exp(log_probs - rest), others)
