"""A temperature that is learned against the student: curriculum temperature (CTKD)."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import _checks

Array = jax.Array


def reverse_gradient(x: Array, scale: Any = 1.0) -> Array:
    """Identity whose gradient is turned round: what is behind it climbs where the rest descends.

    f(x) = x, df/dx = -scale

    Args:
        x: [...], any floating type.
        scale: how much of the gradient, a number that is not negative, or a scalar array; 0 stops
            it. It has no gradient.

    Returns:
        [...], x as it is.

    Raises:
        TypeError: if x is not of a floating type, or the scale is not a number.
        ValueError: if the scale is a negative number.

    Example:
        >>> import jax
        >>> from kdjax.losses import reverse_gradient
        >>> print(jax.grad(lambda x: 3 * reverse_gradient(x, 0.5))(1.0))
        -1.5

    References:
        Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", 2014,
        arXiv:1409.7495, section 3.
    """
    _checks.check_number("reverse_gradient", "scale", scale, low=0.0)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"reverse_gradient: x has dtype {x.dtype}, expected a floating type")
    return _reversed(x, jnp.asarray(scale, x.dtype))


@jax.custom_jvp
def _reversed(x: Array, scale: Array) -> Array:
    return x


@_reversed.defjvp
def _reversed_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _reversed(*primals), -primals[1] * tangents[0]


def curriculum_temperature(
    parameter: Array, strength: Any = 1.0, *, low: Any = 1.0, span: Any = 20.0
) -> Array:
    """Temperature of a learned parameter that makes the student's task harder, not easier.

    low + span * sigmoid(parameter), the parameter's gradient times -strength

    An optimizer that lowers the loss by the student raises it by the temperature.

    Args:
        parameter: [...], any floating type; 1 at the start in the paper, which is a temperature of
            15.6.
        strength: of the reversed gradient, as `curriculum_strength` gives it.
        low: the lowest temperature, a positive number.
        span: how far the temperature may rise above it. The authors call this 20 the end of the
            range, which is 21.

    Returns:
        [...], in (low, low + span), float32 or wider.

    Raises:
        TypeError: if the parameter is not of a floating type, or a number is none.
        ValueError: if the strength or the span is negative, or `low` not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import curriculum_temperature
        >>> print(curriculum_temperature(jnp.array(1.0)))
        15.621

    References:
        Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge
        Distillation", 2022, arXiv:2211.16231, section 3.
    """
    name = "curriculum_temperature"
    _checks.check_number(name, "low", low, low=0.0, open_low=True)
    _checks.check_number(name, "span", span, low=0.0)
    x = _checks.as_logits(name, "parameter", parameter)
    return low + span * jax.nn.sigmoid(reverse_gradient(x, strength))


def curriculum_strength(step: Any, num_steps: int) -> Array:
    """How much of the reversed gradient a step gets: a cosine from 0 to 1, where it stays.

    (1 - cos(pi * min(step / num_steps, 1))) / 2

    Args:
        step: how many steps have been taken, a number or a scalar array.
        num_steps: over how many steps it rises, the paper's 10 epochs; at least 1.

    Returns:
        A float32 scalar in [0, 1].

    Raises:
        TypeError: if the number of steps is not a number.
        ValueError: if it is smaller than 1.

    Example:
        >>> from kdjax.losses import curriculum_strength
        >>> print(curriculum_strength(5, 10))
        0.5

    References:
        Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge
        Distillation", 2022, arXiv:2211.16231, equation 9.

    Differs from the paper: it rises with every step, not with every epoch.
    """
    _checks.check_number("curriculum_strength", "num_steps", num_steps, low=1.0)
    done = jnp.minimum(jnp.asarray(step, jnp.float32) / num_steps, 1)
    return (1 - jnp.cos(jnp.pi * done)) / 2
