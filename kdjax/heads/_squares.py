"""The squared difference of logits from what two heads have in common."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.heads._head import Head, as_head, check_tokens, widest


def logit_mse(
    student_hidden: Array,
    student_head: Head,
    teacher_hidden: Array,
    teacher_head: Head,
) -> Array:
    """Return the mean squared difference of centered logits, without any logits.

    mean over the vocabulary of ((z - mean z) - (v - mean v))^2

    z = W h, v = E t: with W and E centered over the vocabulary, h' W'W h - 2 h' W'E t + t' E'E t.
    Those products of the heads, [width, width], are all that sees the vocabulary. Twice what
    `soft_target_loss` tends to at high temperatures.

    Args:
        student_hidden: [tokens..., width], any floating type.
        student_head: without a soft cap; ids beyond the other vocabulary are left out.
        teacher_hidden: [tokens..., teacher_width]; constant, as is its head.
        teacher_head: likewise.

    Returns:
        [tokens...], float32 or wider: one value per token, exact to the last digits of the mean
        squares of z and v.

    Raises:
        TypeError: if a type does not fit.
        ValueError: if shapes do not fit, or a head has a soft cap, which is not linear.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from kdjax import heads
        >>> hidden, teacher_hidden = jnp.ones((6, 4)), jnp.ones((6, 8))
        >>> student, teacher = heads.Head(jnp.eye(32, 4)), heads.Head(jnp.eye(32, 8))
        >>> jax.eval_shape(heads.logit_mse, hidden, student, teacher_hidden, teacher).shape
        (6,)

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        arXiv:1503.02531, section 2.1.
    """
    name = "logit_mse"
    student = as_head(name, "student", student_hidden, student_head)
    teacher = jax.lax.stop_gradient(as_head(name, "teacher", teacher_hidden, teacher_head))
    check_tokens(name, "teacher_hidden", teacher[0], student[0].shape[:-1])
    size = min(len(head.kernel) for _, head in (student, teacher))
    (h, w), (t, e) = (_centered(name, *pair, size) for pair in (student, teacher))
    product = functools.partial(jnp.einsum, precision="highest")
    joint = jnp.concatenate([h, -t], axis=-1)
    both = jnp.concatenate([w, e], axis=-1)
    gram = product("vi,vj->ij", both, both) / size
    return jnp.maximum(jnp.sum(product("...i,ij->...j", joint, gram) * joint, axis=-1), 0)


def _centered(name: str, hidden: Array, head: Head, size: int) -> tuple[Array, Array]:
    """Return hidden states and the head's first rows less their mean, the bias a column more."""
    if head.soft_cap is not None:
        raise ValueError(f"{name}: a head has soft_cap {head.soft_cap}, expected None: not linear")
    wide = widest(hidden.dtype, head.kernel.dtype)
    hidden, kernel = hidden.astype(wide), head.kernel.astype(wide)
    if head.bias is not None:
        kernel = jnp.concatenate([kernel, head.bias.astype(wide)[:, None]], axis=-1)
        hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)
    kernel = kernel[:size]
    return hidden, kernel - jnp.mean(kernel, axis=0, keepdims=True)
