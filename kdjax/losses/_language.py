"""Where student and teacher have different vocabularies, or different tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _exact, _mixtures

Array = jax.Array


def universal_logit_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    temperature: Any = 1.0,
    teacher_temperature: Any = None,
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
    sides = (("student_logits", student_logits), ("teacher_logits", teacher_logits))
    student, teacher = (
        _checks.select_classes(name, _checks.as_logits(name, side, x), None, axis)
        for side, x in sides
    )
    teacher = jax.lax.stop_gradient(teacher)
    batch = (*student.shape[:-1], teacher.shape[-1])
    _checks.check_shape(name, "teacher_logits", teacher.shape, batch, "student_logits' batch")
    t = _checks.as_temperature(name, temperature, student)
    u = t if teacher_temperature is None else teacher_temperature
    u = _checks.as_temperature(name, u, teacher).astype(teacher.dtype)
    size = max(student.shape[-1], teacher.shape[-1])
    log_q, log_p = _descending(student, t, size), _descending(teacher, u, size)
    return jnp.sum(_mixtures.probability_gap(log_p, log_q), axis=-1)


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
    x, mask = jnp.asarray(x), jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"marked_first: mask has dtype {mask.dtype}, expected bool")
    if mask.ndim != 2:
        raise ValueError(f"marked_first: mask has shape {mask.shape}, expected [batch, tokens]")
    _checks.check_shape("marked_first", "mask", mask.shape, x.shape[:2], "the tokens of x")
    order = jnp.argsort(~mask, axis=1, stable=True)
    places = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    moved = jnp.take_along_axis(x, places, axis=1)
    return moved, jnp.take_along_axis(mask, order, axis=1)


def _descending(logits: Array, t: Array, size: int) -> Array:
    """Log-probabilities in descending order, filled up to a size with classes without mass."""
    log_probs = _exact.log_softmax(logits, t)
    missing = [(0, 0)] * (logits.ndim - 1) + [(0, size - logits.shape[-1])]
    padded = jnp.pad(log_probs, missing, constant_values=-jnp.inf)
    return jnp.flip(jnp.sort(padded, axis=-1), axis=-1)  # of equal classes the last comes first
