"""Divergences between a student's and a teacher's log-probabilities, for vision and language."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.losses import _inputs
from kdjax.losses._numerics import mixtures


def kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the Kullback-Leibler divergence of the student from the teacher.

    KL(teacher || student) = sum p (log p - log q), p the teacher's and q the student's

    The log-probabilities are taken as given: nothing is normalized again, and neither side is held
    constant. Where both sum to 1 but for rounding, the value keeps its digits however close the two
    are, and is not negative; of others, a part of a distribution say, it is the sum as it stands. A
    class without mass in the teacher adds 0; one without mass in the student alone
    makes the value +inf.

    Args:
        student_log_probs: [..., num_classes], any floating type.
        teacher_log_probs: likewise, of the same shape.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(kl_divergence(student, teacher))
        0.368

    References:
        Kullback, Leibler, "On Information and Sufficiency", 1951, doi:10.1214/aoms/1177729694.
    """
    name = "kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    return mixtures.kl(teacher, student)


def reverse_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the Kullback-Leibler divergence of the teacher from the student.

    KL(student || teacher) = sum q (log q - log p), p the teacher's and q the student's

    Log-probabilities are taken as they are in `kl_divergence`, the other way round.

    Args:
        student_log_probs: [..., num_classes], any floating type.
        teacher_log_probs: likewise, of the same shape.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import reverse_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(reverse_kl_divergence(student, teacher))
        0.511

    References:
        Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", 2023,
        arXiv:2306.08543, on its use in distillation.
    """
    name = "reverse_kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    return mixtures.kl(student, teacher)


def generalized_js_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    beta: float | Array = 0.5,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the Jensen-Shannon divergence whose mixture weighs the teacher by beta.

    beta * KL(p || m) + (1 - beta) * KL(q || m), m = beta * p + (1 - beta) * q

    with p the teacher's probabilities and q the student's. It is bounded by log 2 and vanishes as
    beta tends to 0 or 1: as beta * KL(p || q) and as (1 - beta) * KL(q || p). At the ends
    themselves it is by convention these divergences without the vanishing factor, so that 0 gives
    `kl_divergence` and 1 gives `reverse_kl_divergence`; the value jumps there. In between, a
    learning rate or weight of 1 / beta, or 1 / (1 - beta), makes up for the factor.

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        beta: the teacher's share of the mixture in [0, 1], or an array: scalar or [...].
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider. Finite inside (0, 1), whatever class lacks mass.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or beta is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import generalized_js_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(generalized_js_divergence(student, teacher, beta=0.5))
        0.102

    References:
        Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of
        Language Models: Learning from Self-Generated Mistakes", 2023, arXiv:2306.13649,
        equation 2. The ends are as in the code of TRL and Liger.
    """
    name = "generalized_js_divergence"
    q, p = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    share = _inputs.as_fraction(name, "beta", beta, q)
    if isinstance(beta, jax.Array | np.ndarray):
        # Ends cannot be told from the rest before the program runs.
        at = jnp.squeeze(share, -1)
        inner = mixtures.jensen_shannon(p, q, share)
        reverse = jnp.where(at == 1, mixtures.kl(q, p), inner)
        return jnp.where(at == 0, mixtures.kl(p, q), reverse)
    if beta == 0:
        return mixtures.kl(p, q)
    return mixtures.kl(q, p) if beta == 1 else mixtures.jensen_shannon(p, q, share)


def skew_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    skew: float | Array = 0.1,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the KL divergence from the teacher to a student with some of the teacher in it.

    KL(p || skew * p + (1 - skew) * q), p the teacher's probabilities and q the student's

    The share of the teacher bounds the value by -log(skew) and the gradient's factor p / m, which
    is what makes `kl_divergence`, its limit at skew 0, hard to train where the student has little
    mass. The mixture is taken in log space, where no probability underflows.

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        skew: the share in [0, 1] of the distribution that the divergence starts from, here the
            teacher, in the mixture; or an array: scalar or [...].
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider. +inf only at skew 0, where the student alone lacks a class.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or skew is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import skew_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(skew_kl_divergence(student, teacher, skew=0.1))
        0.307

    References:
        Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models",
        2024, arXiv:2402.03898, definition 1. Their code leaves out the teacher's entropy, a
        constant; this is the divergence, 0 where student and teacher agree.
    """
    name = "skew_kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    share = _inputs.as_fraction(name, "skew", skew, student)
    return mixtures.skewed_kl(teacher, student, share)


def skew_reverse_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    skew: float | Array = 0.1,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the KL divergence from the student to a teacher with some of the student in it.

    KL(q || skew * q + (1 - skew) * p), p the teacher's probabilities and q the student's

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        skew: the share in [0, 1] of the distribution that the divergence starts from, here the
            student, in the mixture; or an array: scalar or [...].
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider. +inf only at skew 0, where the teacher alone lacks a class.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or skew is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import skew_reverse_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(skew_reverse_kl_divergence(student, teacher, skew=0.1))
        0.365

    References:
        Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models",
        2024, arXiv:2402.03898, definition 1.
    """
    name = "skew_reverse_kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    share = _inputs.as_fraction(name, "skew", skew, student)
    return mixtures.skewed_kl(student, teacher, share)


def symmetric_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    reverse_weight: float | Array = 0.5,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Weigh both Kullback-Leibler divergences: at one half, half of Jeffreys' divergence.

    (1 - w) * KL(p || q) + w * KL(q || p), p the teacher's probabilities and q the student's

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        reverse_weight: w in [0, 1], or an array: scalar or [...].
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider. +inf where one side alone lacks a class and the divergence
        from the other has weight.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or the weight is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import symmetric_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(symmetric_kl_divergence(student, teacher))
        0.439

    References:
        Jeffreys, "An Invariant Form for the Prior Probability in Estimation Problems", 1946,
        doi:10.1098/rspa.1946.0056.
    """
    name = "symmetric_kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    weight = _inputs.as_fraction(name, "reverse_weight", reverse_weight, student)
    return mixtures.weighted_kl(teacher, student, jnp.squeeze(weight, -1))


def total_variation(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Return the total variation: the most that the two can differ about the chance of an event.

    1/2 * sum |p - q|, p the teacher's probabilities and q the student's

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], in [0, 1], float32 or wider. A class where both agree has gradient 0.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import total_variation
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(total_variation(student, teacher))
        0.400

    References:
        Wen, Li, Du, Mou, "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        2023, arXiv:2307.15190, section 3.
    """
    name = "total_variation"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    return 0.5 * jnp.sum(mixtures.probability_gap(teacher, student), axis=-1)
