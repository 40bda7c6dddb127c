"""Where a network looks, for which class, and what its neurons select: losses between maps."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import norms, pooling


def attention_map(features: Array, *, power: float | Array = 2) -> Array:
    """Map where a network looks: the strength of its channels at every position, normalized.

    a / ||a||_2, a = mean over the channels of |f|^power, the norm over all positions

    Args:
        features: [batch, ..., channels], one axis of positions or more, any floating type.
        power: at least 1; the larger, the more the strongest channels count.

    Returns:
        [batch, ...], float32 or wider, of norm 1 for each example; zeros where all features are
        zero, and no gradient there.

    Raises:
        TypeError: if the features are not of a floating type.
        ValueError: if there are no positions, or the power is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import attention_map
        >>> print(attention_map(jnp.array([[[1.0, -1.0], [2.0, 0.0]]])))
        [[0.447 0.894]]

    References:
        Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of
        Convolutional Neural Networks via Attention Transfer", 2016, arXiv:1612.03928, section 3.1.
    """
    return _attention("attention_map", _inputs.as_map("attention_map", "features", features), power)


def attention_transfer_loss(
    student_features: Array, teacher_features: Array, *, power: float | Array = 2
) -> Array:
    """Look where the teacher looks: mean squared difference of the attention maps.

    mean over the positions of (A(student) - A(teacher))^2, A the `attention_map`

    The widths may differ. So may the sizes: along each axis the larger map is averaged to the
    size of the smaller, before its attention is taken.

    Args:
        student_features: [batch, ..., student_channels], one axis of positions or more, any
            floating type.
        teacher_features: [batch, ..., teacher_channels], likewise; constant, its gradient is zero.
        power: of the attention map, at least 1.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if there are no positions, the batch or the number of axes differ, or the
            power is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import attention_transfer_loss
        >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[0.0], [1.0]]])
        >>> print(attention_transfer_loss(student, teacher))
        [1.]

    References:
        Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of
        Convolutional Neural Networks via Attention Transfer", 2016, arXiv:1612.03928, equation 2.

    Differs from the paper: its code, and this, take the mean of the squares, its equation the norm.
    """
    name = "attention_transfer_loss"
    maps = _inputs.as_maps(name, student_features, teacher_features)
    student, teacher = (_attention(name, x, power) for x in maps)
    return pooling.mean_per_example(jnp.square(student - teacher))


def _attention(function: str, features: Array, power: float | Array) -> Array:
    power = _numbers.as_number(function, "power", power, features.dtype, _numbers.FROM_ONE)
    features = features / norms.unit_of(features, tuple(range(1, features.ndim)))
    strength = jnp.mean(norms.absolute(features) ** power, axis=-1)
    return norms.normalize(strength, tuple(range(1, strength.ndim)))


def neuron_selectivity_loss(student_features: Array, teacher_features: Array) -> Array:
    """Have neurons that select what the teacher's select, however many there are of each.

    mean k(s, s') + mean k(t, t') - 2 mean k(s, t), k(x, y) = (x . y)^2

    the squared maximum mean discrepancy between two sets of channels: s and t run over the
    channels of student and teacher, each one's map scaled to norm 1. The sizes may differ: along
    each axis the larger map is averaged to the size of the smaller.

    It is computed as the squared distance of the two second moments of the channels, so that
    equal sets give exactly 0, and never holds more than positions^2 or channels^2 numbers.

    Args:
        student_features: [batch, ..., student_channels], one axis of positions or more, any
            floating type.
        teacher_features: [batch, ..., teacher_channels], likewise; constant, its gradient is zero.

    Returns:
        [batch], float32 or wider: one value per example. A channel that is zero everywhere is
        unlike all others, and has no gradient.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if there are no positions, or the batch or the number of axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import neuron_selectivity_loss
        >>> student, teacher = jnp.array([[[3.0], [0.0]]]), jnp.array([[[2.0, 0.0], [0.0, 1.0]]])
        >>> print(neuron_selectivity_loss(student, teacher))
        [0.5]

    References:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
        arXiv:1707.01219, equation 7, with the polynomial kernel.
    """
    maps = _inputs.as_maps("neuron_selectivity_loss", student_features, teacher_features)
    student, teacher = (_selectivity(x) for x in maps)
    widest = max(student.shape[-1], teacher.shape[-1])
    if student.shape[1] <= widest:
        return jnp.sum(jnp.square(_gram(student) - _gram(teacher)), axis=(1, 2))
    missing = ([(0, 0), (0, 0), (0, widest - x.shape[-1])] for x in (student, teacher))
    return _moment_gap(*map(jnp.pad, (student, teacher), missing))


def _selectivity(features: Array) -> Array:
    """Scale channels to norm 1 over sqrt(channels), [batch, positions, channels]."""
    return norms.normalize(pooling.positions(features), 1) / math.sqrt(features.shape[-1])


def _gram(x: Array) -> Array:
    return jnp.einsum("bpc,bqc->bpq", x, x, precision="highest")


def _moment_gap(x: Array, y: Array) -> Array:
    """Return ||x x' - y y'||^2 without matrices of positions, by the sum (s d' + d s') / 2.

    With s = x + y and d = x - y nothing large cancels where x and y are close.
    """
    s, d = x + y, x - y

    def product(a: Array, b: Array) -> Array:
        return jnp.einsum("bpc,bpd->bcd", a, b, precision="highest")

    mixed = product(s, d)
    terms = product(s, s) * product(d, d) + mixed * jnp.swapaxes(mixed, 1, 2)
    return jnp.sum(terms, axis=(1, 2)) / 2


def class_attention_loss(
    student_features: Array, teacher_features: Array, *, resolution: int = 2, normalize: bool = True
) -> Array:
    """Look at the places that the teacher holds each class responsible for.

    mean over classes and r x r cells of (a / |a| - b / |b|)^2

    with a and b the class activation maps of a class, the student's and the teacher's, averaged
    down to r x r cells. A class activation map holds the logits that the classifier would give to
    each position alone; see `kdjax.models.with_class_maps`. A map that is zero stays zero.

    Args:
        student_features: class activation maps [batch, height, width, num_classes], or any number
            of axes of positions; any floating type.
        teacher_features: likewise; height and width may differ; constant, its gradient is zero.
        resolution: r, the height and width that both are averaged to.
        normalize: whether each map is divided by its norm over the cells.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if features are not of a floating type, or the resolution is no integer.
        ValueError: if they are no maps, batch or classes differ, or the resolution is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import class_attention_loss
        >>> student = jnp.array([[[3.0], [0.0]], [[0.0], [0.0]]])[None]
        >>> teacher = jnp.array([[[0.0], [0.0]], [[0.0], [2.0]]])[None]
        >>> print(class_attention_loss(student, teacher))
        [0.5]

    References:
        Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", 2023,
        arXiv:2304.12777.
    """
    name = "class_attention_loss"
    student, teacher = _inputs.both(_inputs.as_map, name, (student_features, teacher_features))
    ends = [(x.ndim, len(x), x.shape[-1]) for x in (student, teacher)]
    expected = f"the axes, batch and classes of student_features, {student.shape}"
    _inputs.check_fits(ends[0] == ends[1], name, "teacher_features", teacher, expected)
    cells = (_numbers.as_count(name, "resolution", resolution),) * (student.ndim - 2)
    maps = [pooling.average_pool(x, cells) for x in (student, jax.lax.stop_gradient(teacher))]
    if normalize:
        maps = [norms.normalize(x, range(1, x.ndim - 1)) for x in maps]
    return pooling.mean_per_example(jnp.square(maps[0] - maps[1]))
