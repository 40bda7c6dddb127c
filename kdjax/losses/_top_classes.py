"""Transforms that leave the student's largest classes to compare, of vocabularies too long."""

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _exact, _mixtures

Array = jax.Array


def top_k_log_probs(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    num_kept: int,
    axis: int = -1,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Keep the student's largest classes in both distributions, each normalised over them.

    log q_i - log sum_j q_j and log p_i - log sum_j p_j, i and j among the student's largest

    Any divergence compares what is left: `generalized_js_divergence(*top_k_log_probs(...))`.

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        num_kept: how many classes, from 1 to num_classes.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        The student's and the teacher's log-probabilities, [..., num_kept], the classes on the last
        axis in the student's order; float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or there are fewer classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import top_k_log_probs
        >>> student, teacher = jnp.log(jnp.array([[0.4, 0.4, 0.2], [0.1, 0.3, 0.6]]))
        >>> print(*(jnp.exp(x) for x in top_k_log_probs(student, teacher, num_kept=2)))
        [0.5 0.5] [0.25 0.75]

    References:
        Hübotter, Lübeck, Behric, Baumann, Bagatella, Marta, Hakimi, Shenfeld, Kleine Buening,
        Guestrin, Krause, "Reinforcement Learning via Self-Distillation", 2026, arXiv:2601.20802,
        and TRL's code for it.
    """
    name = "top_k_log_probs"
    student, teacher = _mixtures.as_pair(name, student_log_probs, teacher_log_probs, axis, where)
    places = _largest(name, student, num_kept)
    one = jnp.ones((*student.shape[:-1], 1), student.dtype)
    first, second = (
        _exact.log_softmax(jnp.take_along_axis(x, places, axis=-1), one) for x in (student, teacher)
    )
    return first, second


def top_k_log_probs_with_tail(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    num_kept: int,
    min_tail: float = 0.0,
    axis: int = -1,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Keep the student's largest classes in both distributions, and all others as one more class.

    log q_i and log p_i for i among the student's largest, then log sum of the others

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant.
        num_kept: how many classes, from 1 to num_classes.
        min_tail: the least that the last class may hold, in [0, 1]. Peers that take 1 minus the
            kept mass need one against rounding (TRL: 1e-7); the sum over the others does not.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        The student's and the teacher's log-probabilities, [..., num_kept + 1], the classes on the
        last axis in the student's order; float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ, there are fewer classes, or `min_tail` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import top_k_log_probs_with_tail
        >>> student, teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
        >>> print(*(jnp.exp(x) for x in top_k_log_probs_with_tail(student, teacher, num_kept=1)))
        [0.5 0.5] [0.25 0.75]

    References:
        Hübotter, Lübeck, Behric, Baumann, Bagatella, Marta, Hakimi, Shenfeld, Kleine Buening,
        Guestrin, Krause, "Reinforcement Learning via Self-Distillation", 2026, arXiv:2601.20802,
        and TRL's code for it.
    """
    name = "top_k_log_probs_with_tail"
    student, teacher = _mixtures.as_pair(name, student_log_probs, teacher_log_probs, axis, where)
    _checks.check_number(name, "min_tail", min_tail, low=0.0, high=1.0)
    places = _largest(name, student, num_kept)
    first, second = (_with_tail(x, places, min_tail) for x in (student, teacher))
    return first, second


def _largest(function: str, student: Array, num_kept: int) -> Array:
    """The indices of the student's largest classes, [..., num_kept]."""
    if isinstance(num_kept, bool) or not isinstance(num_kept, int):
        raise TypeError(f"{function}: num_kept is {num_kept!r}, expected an int")
    if not 1 <= num_kept <= student.shape[-1]:
        raise ValueError(
            f"{function}: num_kept is {num_kept}, expected 1 to {student.shape[-1]}, the classes "
            f"of student_log_probs of shape {student.shape}"
        )
    return jax.lax.top_k(jax.lax.stop_gradient(student), num_kept)[1]


def _with_tail(log_probs: Array, places: Array, min_tail: float) -> Array:
    """The classes at these places, and the logarithm of the mass of all others."""
    kept = jnp.take_along_axis(log_probs, places, axis=-1)
    chosen = jnp.put_along_axis(
        jnp.zeros(log_probs.shape, bool), places, True, axis=-1, inplace=False
    )
    others = jnp.where(chosen, -jnp.inf, log_probs)
    top = jax.lax.stop_gradient(jnp.max(others, axis=-1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0, top)
    mass = jnp.sum(jnp.exp(others - top), axis=-1, keepdims=True)
    tail = jnp.where(mass == 0, -jnp.inf, jnp.log(jnp.where(mass == 0, 1, mass)) + top)
    if min_tail:
        tail = jnp.maximum(tail, jnp.log(jnp.asarray(min_tail, tail.dtype)))
    return jnp.concatenate([kept, tail], axis=-1)
