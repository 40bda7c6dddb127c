"""Factors: what small networks condense the features of student and teacher to."""

from typing import Any

import jax

from kdjax.losses import _checks, _maps, _norms

Array = jax.Array


def factor_transfer_loss(
    student_factors: Array, teacher_factors: Array, *, power: Any = 1
) -> Array:
    """Have the teacher's factors, up to their size.

    mean over all but the first axis of |a / ||a||_2 - b / ||b||_2|^power

    with a the student's factors of one example and b the teacher's, and the norm over all of them.
    Along each axis of positions the larger map is averaged to the size of the smaller.

    Args:
        student_factors: [batch, ..., channels], what a translator makes of the student's features,
            any floating type.
        teacher_factors: [batch, ..., channels], what a paraphraser makes of the teacher's;
            constant, its gradient is zero.
        power: at least 1.

    Returns:
        [batch], float32 or wider: one value per example. Factors that are all zero stay zero, and
        have no gradient.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if the numbers of axes, examples or channels differ, or the power is less than
            1.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import factor_transfer_loss
        >>> print(factor_transfer_loss(jnp.array([[3.0, 4.0]]), jnp.array([[8.0, 6.0]])))
        [0.2]

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
        2018, arXiv:1802.04977, equation 3.

    Differs from the paper: the mean over the factors, as its code has it, and not the norm.
    """
    name, names = "factor_transfer_loss", ("student_factors", "teacher_factors")
    _checks.check_number(name, "power", power, low=1.0)
    pair = _maps.as_like_maps(name, student_factors, teacher_factors, names)
    student, teacher = (_norms.normalize(x, tuple(range(1, x.ndim))) for x in pair)
    return _maps.mean_per_example(_maps.absolute(student - teacher) ** power)
