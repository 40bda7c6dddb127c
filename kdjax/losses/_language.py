"""Losses for language models: vocabularies or tokens that differ, and vocabularies too long."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, mixtures


def universal_logit_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: float | Array = 1.0,
    teacher_temperature: float | Array | None = None,
    axis: int = -1,
) -> Array:
    """Compare the sorted probabilities of two networks whose classes need not correspond.

    sum_i |q_(i) - p_(i)|, q_(i) the student's i-th largest probability and p_(i) the teacher's

    The smaller vocabulary is filled up with zeros. This is the Wasserstein distance where moving
    mass between any two classes costs the same.

    Args:
        student_logits: [..., num_student_classes], any floating type; -inf removes a class.
        teacher_logits: [..., num_teacher_classes], with the same batch; constant, its gradient is
            zero. Where the tokens differ too, `marked_first` lines the answers up.
        temperature: a positive number, or an array: scalar or [...].
        teacher_temperature: likewise, the teacher's own; None is the same.
        axis: the class axis of both.

    Returns:
        [...], in [0, 2], float32 or wider: one value per example. There is no factor T^2.

    Raises:
        TypeError: if logits are not of a floating type.
        ValueError: if the batches differ, or a temperature is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import universal_logit_loss
        >>> student, teacher = jnp.array([1.0, 3.0]), jnp.array([0.0, 2.0, 1.0])
        >>> print(universal_logit_loss(student, teacher))
        0.431

    References:
        Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal
        Logit Distillation Loss for LLMs", 2024, arXiv:2402.12030, equation 4.
    """
    name = "universal_logit_loss"
    student = _inputs.as_classes(name, "student_logits", student_logits, axis, None)
    teacher = _inputs.as_classes(name, "teacher_logits", teacher_logits, axis, None)
    teacher = jax.lax.stop_gradient(teacher)
    batch = (*student.shape[:-1], teacher.shape[-1])
    _inputs.check_shape(name, "teacher_logits", teacher, batch, "student_logits' batch")
    t = _inputs.as_temperature(name, temperature, student)
    u = t if teacher_temperature is None else teacher_temperature
    u = _inputs.as_temperature(name, u, teacher, "teacher_temperature")
    size = max(student.shape[-1], teacher.shape[-1])
    log_q, log_p = _descending(student, t, size), _descending(teacher, u, size)
    return jnp.sum(mixtures.probability_gap(log_p, log_q), axis=-1)


def marked_first(x: Array, mask: Array) -> tuple[Array, Array]:
    """Bring the marked tokens of every sequence to the front, in their order.

    The k-th answer token of a student then stands where the k-th of its teacher does, however long
    the prompts are in either's tokens. The mask marks the logits that count: the positions that
    predict an answer token are one before the positions that hold it.

    x'_k = x at the k-th marked position

    Args:
        x: [batch, tokens, ...], for example logits.
        mask: [batch, tokens], boolean.

    Returns:
        x with its tokens reordered, and [batch, tokens], boolean: which of them are marked. Pairs
        of two networks count where both masks are true.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if it is not shaped like the first two axes of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import marked_first
        >>> tokens, mask = jnp.array([[7, 8, 9]]), jnp.array([[False, True, True]])
        >>> print(*marked_first(tokens, mask))
        [[8 9 7]] [[ True  True False]]

    References:
        Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal
        Logit Distillation Loss for LLMs", 2024, arXiv:2402.12030, section 3.
    """
    x, mask = jnp.asarray(x), _inputs.as_booleans("marked_first", "mask", mask)
    _inputs.check_fits(mask.ndim == 2, "marked_first", "mask", mask, "[batch, tokens]")
    _inputs.check_shape("marked_first", "mask", mask, x.shape[:2], "the tokens of x")
    order = jnp.argsort(~mask, axis=1, stable=True)
    places = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    moved = jnp.take_along_axis(x, places, axis=1)
    return moved, jnp.take_along_axis(mask, order, axis=1)


def _descending(logits: Array, t: Array, size: int) -> Array:
    """Return log-probabilities in descending order, filled up to a size with -inf."""
    log_probs = exact.log_softmax(logits, t)
    missing = [(0, 0)] * (logits.ndim - 1) + [(0, size - logits.shape[-1])]
    padded = jnp.pad(log_probs, missing, constant_values=-jnp.inf)
    order = jnp.argsort(jax.lax.stop_gradient(padded), axis=-1)  # of equal ones the last first
    return jnp.flip(jnp.take_along_axis(padded, order, axis=-1), axis=-1)


def top_k_log_probs(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    num_kept: int,
    axis: int = -1,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """Keep the student's largest classes in both distributions, each normalized over them.

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
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    places = _largest(name, student, num_kept)
    first, second = (jnp.take_along_axis(x, places, axis=-1) for x in (student, teacher))
    one = exact.at_one(student)
    return exact.log_softmax(first, one), exact.log_softmax(second, one)


def top_k_log_probs_with_tail(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    num_kept: int,
    min_tail: float | Array = 0.0,
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
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    min_tail = _numbers.as_number(name, "min_tail", min_tail, student.dtype, _numbers.SHARE)
    places = _largest(name, student, num_kept)
    return _with_tail(student, places, min_tail), _with_tail(teacher, places, min_tail)


def _largest(function: str, student: Array, num_kept: int) -> Array:
    """Return the indices of the student's largest classes, [..., num_kept]."""
    num_kept = _numbers.as_count(function, "num_kept", num_kept, student.shape[-1])
    return jax.lax.top_k(jax.lax.stop_gradient(student), num_kept)[1]


@functools.partial(jnp.vectorize, signature="(v),(k)->(v)")
def _marked(nothing: Array, places: Array) -> Array:
    return nothing.at[places].set(True)


def _with_tail(log_probs: Array, places: Array, min_tail: float | Array) -> Array:
    """Return the classes at these places, and the logarithm of the mass of all others."""
    kept = jnp.take_along_axis(log_probs, places, axis=-1)
    chosen = _marked(jnp.zeros_like(log_probs, bool), places)
    others = jnp.where(chosen, -jnp.inf, log_probs)
    top = jax.lax.stop_gradient(jnp.max(others, axis=-1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0, top)
    mass = jnp.sum(jnp.exp(others - top), axis=-1, keepdims=True)
    tail = jnp.where(mass == 0, -jnp.inf, jnp.log(jnp.where(mass == 0, 1, mass)) + top)
    if not isinstance(min_tail, int | float) or min_tail > 0:
        tail = jnp.maximum(tail, jnp.log(jnp.asarray(min_tail, tail.dtype)))
    return _numbers.poisoned(jnp.concatenate([kept, tail], axis=-1), min_tail)
