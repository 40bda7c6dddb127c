"""Every layer of the student against every layer of the teacher, weighed by attention."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.losses import _checks, _maps

Array = jax.Array


def layer_attention(queries: Array, keys: Array) -> Array:
    """How much each layer of the student should attend to each layer of the teacher.

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
    queries = _checks.as_logits(name, "queries", queries)
    keys = _checks.as_logits(name, "keys", keys)
    if queries.ndim != 3 or keys.ndim != 3 or queries.shape[::2] != keys.shape[::2]:
        raise ValueError(
            f"{name}: keys has shape {keys.shape}, expected [batch, teacher_layers, size] with the "
            f"batch and size of queries, {queries.shape}"
        )
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
    w = _checks.as_logits(name, "weights", weights)
    shape = (w.shape[0], len(student_features), len(student_features[0]))
    _checks.check_shape(name, "weights", w.shape, shape, "the pairs of layers")
    counts = [len(row) for row in student_features], [len(row) for row in teacher_features]
    if counts[0] != counts[1] or len(set(counts[0])) != 1:
        raise ValueError(
            f"{name}: teacher_features has {counts[1]} arrays by student layer, expected "
            f"{len(student_features)} times {shape[2]} like student_features"
        )
    total = jnp.zeros(shape[:1], w.dtype)
    for i, j in ((i, j) for i in range(shape[1]) for j in range(shape[2])):
        names = (f"student_features[{i}][{j}]", f"teacher_features[{i}][{j}]")
        student, teacher = _checks.as_pair(
            name, names, student_features[i][j], teacher_features[i][j]
        )
        squares = jnp.square(student - jax.lax.stop_gradient(teacher))
        total += w[:, i, j] * _maps.mean_per_example(squares)
    return total / shape[1]
