"""What adapts to the student: the divergence (AKL), the target (TAID), the temperature (CTKD)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import exact, mixtures


def adaptive_kl_divergence(
    student_log_probs: Array,
    teacher_log_probs: Array,
    *,
    head_mass: float | Array = 0.5,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Weigh the forward and the reverse divergence by where the student is wrong.

    (h * KL(p || q) + t * KL(q || p)) / (h + t)

    with p the teacher's probabilities and q the student's, h the sum of |p - q| over the head and t
    that over the tail, both constants. The head is the teacher's largest classes, as few as hold
    `head_mass`. Of equal probabilities the earlier class goes to the tail first.

    Args:
        student_log_probs: [..., num_classes], any floating type; -inf is no mass.
        teacher_log_probs: likewise, of the same shape; not held constant but in the weights.
        head_mass: the share of the teacher's mass in the head, in [0, 1], or an array: scalar or
            [...]. At 1 the value is the forward divergence.
        axis: the class axis.
        where: boolean, broadcastable: the classes that count.

    Returns:
        [...], nats, float32 or wider: 0 where student and teacher agree. +inf where one side alone
        lacks a class and the divergence from the other has weight.

    Raises:
        TypeError: if an argument is not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or the mass is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import adaptive_kl_divergence
        >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
        >>> print(adaptive_kl_divergence(student, teacher, head_mass=0.5))
        0.439

    References:
        Wu, Tao, Wang, Yang, Zhao, Wong, "Rethinking Kullback-Leibler Divergence in Knowledge
        Distillation for Large Language Models", 2024, arXiv:2404.02657, section 4.
    """
    name = "adaptive_kl_divergence"
    student, teacher = _inputs.as_log_probs(name, student_log_probs, teacher_log_probs, axis, where)
    head_share = _inputs.as_fraction(name, "head_mass", head_mass, student)
    tail_share = 1 - head_share
    p, q = (jax.lax.stop_gradient(x) for x in (teacher, student))
    order = jnp.argsort(p, axis=-1, stable=True)
    gaps = jnp.take_along_axis(mixtures.probability_gap(p, q), order, axis=-1)
    mass = jnp.cumsum(jnp.exp(jnp.take_along_axis(p, order, axis=-1)), axis=-1)
    below = (mass <= tail_share * mass[..., -1:]) & (tail_share > 0)
    tail = jnp.sum(jnp.where(below.at[..., -1].set(False), gaps, 0), axis=-1)
    total = jnp.sum(gaps, axis=-1)
    equal = total == 0
    reverse_weight = jnp.where(equal, 0, tail / jnp.where(equal, 1, total))
    values = mixtures.weighted_kl(teacher, student, reverse_weight)
    return _numbers.poisoned(values, jnp.squeeze(head_share, -1))


def taid_loss(
    student_logits: Array,
    teacher_logits: Array,
    *,
    interpolation: float | Array,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """Follow a target between the student and the teacher, in the space of logits.

    - sum r log softmax(z), r = softmax((1 - t) * z + t * v) held constant

    with z the student's logits, v the teacher's and t the interpolation. The target starts near
    the student and ends at the teacher; see `taid_schedule_update`. There is no temperature.

    Args:
        student_logits: [..., num_classes], any floating type; -inf removes a class.
        teacher_logits: likewise, of the same shape; constant, its gradient is zero.
        interpolation: t in [0, 1], or an array: scalar or [...]; constant. At 0 the gradient is 0.
        axis: the class axis.
        where: boolean, broadcastable to the logits: the classes that exist.

    Returns:
        [...], nats, float32 or wider: one value per example. +inf where the student excludes a
        class and t is 1; the gradient is finite there too.

    Raises:
        TypeError: if logits are not of a floating type, or `where` is not boolean.
        ValueError: if the shapes differ or the interpolation is not in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import taid_loss
        >>> student, teacher = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(taid_loss(student, teacher, interpolation=0.4))
        [1.408]

    References:
        Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for
        Efficient Knowledge Transfer in Language Models", 2025, arXiv:2501.16937, section 3.1.

    Differs from the paper: the cross-entropy with the target, as in the authors' code, and not the
    divergence from it. They differ by the target's entropy, so that the gradients agree, and this
    value is not 0 where student and teacher agree. The schedule is tuned for this value.
    """
    name = "taid_loss"
    student, teacher = _inputs.as_logits(name, student_logits, teacher_logits, axis, where)
    t = _inputs.as_fraction(name, "interpolation", interpolation, student)
    target = jax.lax.stop_gradient(_interpolated(student, teacher, t))
    return exact.cross_entropy(student, target, jnp.ones_like(t))


def taid_schedule_init(*, start: float | Array = 0.4) -> dict[str, Array]:
    """Make the state from which a TAID interpolation grows.

    t = start, momentum 0, no loss seen

    Args:
        start: the first interpolation, in [0, 1].

    Returns:
        `interpolation`, `momentum` and `previous_loss`, float scalars, and `num_updates`, an int32
        scalar.

    Raises:
        ValueError: if the start is not in [0, 1].

    Example:
        >>> from kdjax.losses import taid_schedule_init
        >>> print(taid_schedule_init(start=0.25)["interpolation"])
        0.25

    References:
        Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for
        Efficient Knowledge Transfer in Language Models", 2025, arXiv:2501.16937, section 3.2.
    """
    start = _numbers.as_number("taid_schedule_init", "start", start, float, _numbers.SHARE)
    return {
        "interpolation": jnp.asarray(start, float),
        "momentum": jnp.zeros((), float),
        "previous_loss": jnp.zeros((), float),
        "num_updates": jnp.zeros((), jnp.int32),
    }


def taid_schedule_update(
    state: dict[str, Array],
    loss: Array,
    progress: float | Array,
    *,
    start: float | Array = 0.4,
    end: float | Array = 1.0,
    step_size: float | Array = 5e-4,
    decay: float | Array = 0.99,
) -> dict[str, Array]:
    """Move a TAID interpolation towards the teacher, faster while the loss falls.

    m <- decay * m + (1 - decay) * (previous_loss - loss) / previous_loss
    t <- min(end, max(start + (end - start) * progress, t + step_size * sigmoid(m) * (1 - t)))

    The first update only remembers the loss. The straight line from start to end is the least that
    t may be; a step size of 0 follows it.

    Args:
        state: what `taid_schedule_init` or the last update returned.
        loss: a scalar, the mean of `taid_loss` over the examples that count.
        progress: the share of training that is over, in [0, 1]: a number or a scalar array.
        start: where the line starts, in [0, 1].
        end: where it ends, and the most that t may be, in [0, 1].
        step_size: how far one update may move t, not negative.
        decay: of the running mean of the relative improvement, in [0, 1].

    Returns:
        The new state.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from kdjax.losses import taid_schedule_init, taid_schedule_update
        >>> state = taid_schedule_update(taid_schedule_init(start=0.4), 2.0, 0.0)
        >>> print(taid_schedule_update(state, 1.0, 0.5)["interpolation"])
        0.7

    References:
        Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for
        Efficient Knowledge Transfer in Language Models", 2025, arXiv:2501.16937, section 3.2 and
        algorithm 1.
    """
    t, momentum, previous = state["interpolation"], state["momentum"], state["previous_loss"]
    number = functools.partial(_numbers.as_number, "taid_schedule_update", dtype=t.dtype)
    step_size = number("step_size", step_size, limits=_numbers.NOT_NEGATIVE)
    progress = number("progress", progress, limits=_numbers.NOT_NEGATIVE)
    shares = (("start", start), ("end", end), ("decay", decay))
    start, end, decay = (number(name, x, limits=_numbers.SHARE) for name, x in shares)
    first = state["num_updates"] == 0
    loss = jax.lax.stop_gradient(jnp.asarray(loss, previous.dtype))
    improvement = (previous - loss) / (previous + jnp.asarray(1e-15, previous.dtype))
    momentum = jnp.where(first, momentum, decay * momentum + (1 - decay) * improvement)
    adapted = t + step_size * jax.nn.sigmoid(momentum) * (1 - t)
    grown = jnp.minimum(end, jnp.maximum(start + (end - start) * progress, adapted))
    return {
        "interpolation": jnp.where(first, t, grown).astype(t.dtype),
        "momentum": momentum,
        "previous_loss": loss,
        "num_updates": state["num_updates"] + 1,
    }


def _interpolated(student: Array, teacher: Array, t: Array) -> Array:
    """Mix as (1 - t) * student + t * teacher, exact at the ends; -inf where a part in it is."""
    absent = (jnp.isneginf(student) & (t < 1)) | (jnp.isneginf(teacher) & (t > 0))
    # Kept finite: a class may be absent from the part of weight 0.
    x, v = (jnp.where(jnp.isneginf(z), 0, z) for z in (student, teacher))
    mixed = jnp.where(t < 0.5, x + t * (v - x), v - (1 - t) * (v - x))
    return jnp.where(absent, -jnp.inf, mixed)


def reverse_gradient(x: Array, scale: float | Array = 1.0) -> Array:
    """Return x with its gradient reversed: what is behind it climbs where the rest descends.

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
    x = _inputs.as_type("reverse_gradient", "x", x, jnp.floating, "a floating type")
    scale = _numbers.as_number("reverse_gradient", "scale", scale, x.dtype, _numbers.NOT_NEGATIVE)
    return _reversed(x, jnp.asarray(scale, x.dtype))


@jax.custom_jvp
def _reversed(x: Array, scale: Array) -> Array:
    return x


@_reversed.defjvp
def _reversed_jvp(primals: _inputs.Pair, tangents: _inputs.Pair) -> _inputs.Pair:
    return _reversed(*primals), -primals[1] * tangents[0]


def curriculum_temperature(
    parameter: Array,
    strength: float | Array = 1.0,
    *,
    low: float | Array = 1.0,
    span: float | Array = 20.0,
) -> Array:
    """Return the temperature of a learned parameter that makes the student's task harder.

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
    x = _inputs.as_floats(name, "parameter", parameter)
    low = _numbers.as_number(name, "low", low, x.dtype, _numbers.POSITIVE)
    span = _numbers.as_number(name, "span", span, x.dtype, _numbers.NOT_NEGATIVE)
    return low + span * jax.nn.sigmoid(reverse_gradient(x, strength))


def curriculum_strength(step: float | Array, num_steps: int) -> Array:
    """Return how much of the reversed gradient a step gets: a cosine from 0 to 1, where it stays.

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
    name = "curriculum_strength"
    total = _numbers.as_number(name, "num_steps", num_steps, jnp.float32, _numbers.FROM_ONE)
    done = jnp.minimum(jnp.asarray(step, jnp.float32) / total, 1)
    return (1 - jnp.cos(jnp.pi * done)) / 2
