"""Losses on several stages of a network together: the flow between them, all against all."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers
from kdjax.losses._numerics import pooling


def flow_matrix(first_features: Array, second_features: Array) -> Array:
    """Return how two stages of one network go together: the mean product of their channels.

    G[i, j] = mean over the positions of first[..., i] * second[..., j]

    Along each axis the larger map is averaged to the size of the smaller.

    Args:
        first_features: [batch, ..., first_channels], one axis of positions or more, any floating
            type.
        second_features: [batch, ..., second_channels], likewise, of a later stage.

    Returns:
        [batch, first_channels, second_channels], float32 or wider.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if there are no positions, or the batch or the number of axes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import flow_matrix
        >>> print(flow_matrix(jnp.array([[[1.0], [3.0]]]), jnp.array([[[2.0, 1.0], [0.0, 1.0]]])))
        [[[1. 2.]]]

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning", 2017, doi:10.1109/CVPR.2017.754, equation 1.

    Differs from the paper: maps of different sizes are brought to one by averaging, as the code
    behind its successors' tables does it, and not by the maximum.
    """
    return _flow("flow_matrix", first_features, second_features)


def flow_loss(student_features: Sequence[Array], teacher_features: Sequence[Array]) -> Array:
    """Solve the task as the teacher does: mean squared difference of the flow matrices.

    sum over consecutive stages of mean over i, j of (G_student[i, j] - G_teacher[i, j])^2

    with G the `flow_matrix` of two consecutive stages.

    Args:
        student_features: two stages or more, each [batch, ..., channels], any floating type.
        teacher_features: as many, with as many channels each; constant, their gradient is zero.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if a feature is not of a floating type.
        ValueError: if the numbers of stages, examples or channels differ, or there are fewer than
            two stages.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import flow_loss
        >>> one, two = jnp.array([[[1.0], [3.0]]]), jnp.array([[[2.0], [0.0]]])
        >>> print(flow_loss([one, two], [two, two]))
        [1.]

    References:
        Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning", 2017, doi:10.1109/CVPR.2017.754, equation 2.

    Differs from the paper: the mean of the squares, as the code behind its successors' tables has
    it, and not their sum.
    """
    if len(student_features) != len(teacher_features) or len(student_features) < 2:
        raise ValueError(
            f"flow_loss: teacher_features has {len(teacher_features)} stages and student_features "
            f"{len(student_features)}, expected two or more of each, as many"
        )
    student, teacher = (
        [_flow("flow_loss", *stages) for stages in itertools.pairwise(features)]
        for features in (student_features, teacher_features)
    )
    return functools.reduce(jnp.add, map(_gap, student, teacher))


def _flow(function: str, first: Array, second: Array) -> Array:
    names = ("first_features", "second_features")
    maps = _inputs.both(_inputs.as_map, function, (first, second), names)
    first, second = _inputs.as_one_size(function, *maps, names)
    first, second = map(pooling.positions, (first, second))
    product = jnp.einsum("bpc,bpd->bcd", first, second, precision="highest")
    return product / first.shape[1]


def _gap(student: Array, teacher: Array) -> Array:
    names = ("student_features' flow matrix", "teacher_features' flow matrix")
    student, teacher = _inputs.as_features("flow_loss", student, teacher, names)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2))


def hierarchical_context_loss(
    student_features: Array, teacher_features: Array, *, levels: Sequence[int] = (4, 2, 1)
) -> Array:
    """Match two feature maps, and what is left of them at lower resolutions (ReviewKD).

    (h(d) + h(pool_1(d)) / 2 + h(pool_2(d)) / 4 + ...) / (1 + 1/2 + 1/4 + ...)

    with d the difference of the maps, h the mean of its squares, and pool_i its average over as
    many bins along each axis as the i-th level says. Levels of as many bins as the first axis of
    positions is long, or more, are left out, and the weights move up; a shorter axis beside it is
    then read more than once, as in the authors' code.

    Args:
        student_features: [batch, ..., channels], fused and projected to the teacher's shape, any
            floating type.
        teacher_features: likewise, of the same shape; constant, its gradient is zero.
        levels: bins along each axis, positive.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if a feature is not of a floating type, or a level not an integer.
        ValueError: if the shapes differ, there is no axis behind the batch, or a level is not
            positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import hierarchical_context_loss
        >>> student, teacher = jnp.array([[[1.0], [3.0]]]), jnp.array([[[1.0], [1.0]]])
        >>> print(hierarchical_context_loss(student, teacher))
        [1.667]

    References:
        Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044,
        section 3.3 and figure 3.
    """
    name = "hierarchical_context_loss"
    bins = [_numbers.as_count(name, "levels", level) for level in levels]
    student, teacher = _inputs.as_features(name, student_features, teacher_features)
    gap = student - teacher
    total, weights, weight = pooling.mean_per_example(jnp.square(gap)), 1.0, 1.0
    sizes = gap.shape[1:-1]
    for level in (level for level in bins if level < max(sizes[:1], default=0)):
        weight /= 2
        weights += weight
        pooled = pooling.average_pool(gap, [level] * len(sizes))
        total += weight * pooling.mean_per_example(jnp.square(pooled))
    return total / weights


def layer_attention(queries: Array, keys: Array) -> Array:
    """Return how much each layer of the student attends to each layer of the teacher.

    softmax over the teacher's layers of the inner products of queries and keys

    Args:
        queries: [batch, student_layers, size], any floating type; of the student's layers.
        keys: [batch, teacher_layers, size], likewise; of the teacher's layers.

    Returns:
        [batch, student_layers, teacher_layers], float32 or wider; sums to 1 over the last axis.

    Raises:
        TypeError: if an argument is not of a floating type.
        ValueError: if batch or size differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import layer_attention
        >>> print(layer_attention(jnp.array([[[1.0, 0.0]]]), jnp.array([[[2.0, 1.0], [2.0, 5.0]]])))
        [[[0.5 0.5]]]

    References:
        Chen, Mei, Zhang, Wang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic
        Calibration", 2020, arXiv:2012.03236.
    """
    name = "layer_attention"
    queries = _inputs.as_floats(name, "queries", queries)
    keys = _inputs.as_floats(name, "keys", keys)
    fits = queries.ndim == keys.ndim == 3 and queries.shape[::2] == keys.shape[::2]
    expected = "[batch, teacher_layers, size] with the batch and size of queries, "
    _inputs.check_fits(fits, name, "keys", keys, f"{expected}{queries.shape}")
    energy = jnp.einsum("bsd,btd->bst", queries, keys, precision="highest")
    return jax.nn.softmax(energy, axis=-1)


def semantic_calibration_loss(
    student_features: Sequence[Sequence[Array]],
    teacher_features: Sequence[Sequence[Array]],
    weights: Array,
) -> Array:
    """Regress every teacher layer from every student layer, the fitting pairs more than others.

    1 / S * sum over pairs (i, j) of w[i, j] * mean of (z[i][j] - v[i][j])^2

    with z[i][j] layer i of S student layers projected to the shape of teacher layer j, and v[i][j]
    teacher layer j at the size of student layer i.

    Args:
        student_features: for each student layer one array per teacher layer, [batch, ...], any
            floating type.
        teacher_features: likewise, of the same shapes; constant, their gradients are zero.
        weights: [batch, student_layers, teacher_layers], as `layer_attention` gives them; it has
            a gradient.

    Returns:
        [batch], float32 or wider: one value per example.

    Raises:
        TypeError: if an array is not of a floating type.
        ValueError: if the shapes or the numbers of layers differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdjax.losses import semantic_calibration_loss
        >>> student = [[jnp.array([[1.0, 2.0]]), jnp.array([[1.0]])]]
        >>> teacher = [[jnp.array([[1.0, 4.0]]), jnp.array([[2.0]])]]
        >>> print(semantic_calibration_loss(student, teacher, jnp.array([[[0.75, 0.25]]])))
        [1.75]

    References:
        Chen, Mei, Zhang, Wang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic
        Calibration", 2020, arXiv:2012.03236.
    """
    name = "semantic_calibration_loss"
    w = _inputs.as_floats(name, "weights", weights)
    shape = (w.shape[0], len(student_features), len(student_features[0]))
    _inputs.check_shape(name, "weights", w, shape, "the pairs of layers")
    counts = [len(row) for row in student_features], [len(row) for row in teacher_features]
    if counts[0] != counts[1] or len(set(counts[0])) != 1:
        raise ValueError(
            f"{name}: teacher_features has {counts[1]} arrays by student layer, expected "
            f"{len(student_features)} times {shape[2]} like student_features"
        )
    total = jnp.zeros(shape[:1], w.dtype)
    for i, j in ((i, j) for i in range(shape[1]) for j in range(shape[2])):
        names = (f"student_features[{i}][{j}]", f"teacher_features[{i}][{j}]")
        pair = student_features[i][j], teacher_features[i][j]
        student, teacher = _inputs.as_pair(name, *pair, names)
        squares = jnp.square(student - jax.lax.stop_gradient(teacher))
        total += w[:, i, j] * pooling.mean_per_example(squares)
    return total / shape[1]
