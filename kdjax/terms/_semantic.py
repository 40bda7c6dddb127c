"""Semantic calibration: every student layer learns from the teacher layers that suit it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import _inputs
from kdjax.losses._numerics import norms
from kdjax.metrics import examples_of
from kdjax.terms._layers import batch_norm, conv, init_conv, init_linear, init_norm, linear
from kdjax.terms._reading import feature_of, paths_of, teacher_of
from kdjax.types import Array, PyTree, Term, TermInputs, Variables

_EMBED_FACTOR = 4


def semantic_calibration(student_features: Sequence[str], teacher_features: Sequence[str]) -> Term:
    """Regress all teacher layers from all student layers, weighed by learned attention: SemCKD.

    See `kdjax.losses.semantic_calibration_loss`. Query and key of an example in a layer come from
    the inner products of its features with those of all examples of the batch, through a small
    network for each layer (linear, ReLU, linear, length one). For each pair of layers the
    student's features go through 1x1, 3x3 and 1x1 convolutions with BatchNorm and ReLU between
    them, after the larger map is averaged to the size of the smaller.

    The small networks have one input for each example of the batch: all batches have to be as
    large as the first, and micro-batches are refused.

    Args:
        student_features: module paths of student feature maps [batch, height, width, channels].
        teacher_features: module paths of teacher feature maps; their number may differ.

    Returns:
        A term with parameters `query_<i>` and `key_<j>` for layers and `project_<i>_<j>` for pairs.

    Raises:
        ValueError: if there is no path; at trace time, if a feature was not captured or is no map,
            or the batch is not as large as the one the parameters were made for.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = (
        ...     terms.semantic_calibration(("stage_1", "stage_2"), ("stage_1", "stage_2")),
        ...     term_inputs(),
        ... )
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Chen, Mei, Zhang, Wang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic
        Calibration", 2020, arXiv:2012.03236.
    """
    paths = _paths(student_features, teacher_features)
    pairs = [(i, j) for i in range(len(paths[0])) for j in range(len(paths[1]))]

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = _features(inputs, paths)
        keys = iter(jax.random.split(key, len(student) + len(teacher) + len(pairs)))
        size = len(inputs.mask)
        params = {f"query_{i}": _init_embedding(next(keys), size) for i in range(len(student))}
        params |= {f"key_{j}": _init_embedding(next(keys), size) for j in range(len(teacher))}
        for i, j in pairs:
            widths = student[i].shape[-1], teacher[j].shape[-1]
            params[f"project_{i}_{j}"] = _init_projection(next(keys), *widths)
        return Variables(params, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = _features(inputs, paths)
        mask = inputs.mask
        examples = examples_of(mask)
        queries = [_embed(params[f"query_{i}"], x, examples) for i, x in enumerate(student)]
        keys = [_embed(params[f"key_{j}"], x, examples) for j, x in enumerate(teacher)]
        weights = losses.layer_attention(jnp.stack(queries, axis=1), jnp.stack(keys, axis=1))
        projected: list[list[Array]] = [[] for _ in student]
        targets: list[list[Array]] = [[] for _ in student]
        for i, j in pairs:
            source, target = _inputs.as_one_size("semantic_calibration", student[i], teacher[j])
            projected[i].append(_project(params[f"project_{i}_{j}"], source, mask))
            targets[i].append(target)
        values = losses.semantic_calibration_loss(projected, targets, weights)
        return jnp.where(examples, values, 0), state

    return Term(init, apply, couples_batch=True)


def _paths(student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
    paths = paths_of(student), paths_of(teacher)
    if not all(paths):
        raise ValueError(
            f"semantic_calibration: student_features are {paths[0]} and teacher_features "
            f"{paths[1]}, expected at least one of each"
        )
    return paths


def _features(
    inputs: TermInputs, paths: tuple[list[str], list[str]]
) -> tuple[list[Array], list[Array]]:
    name, teacher = "semantic_calibration", teacher_of(inputs)
    student = [feature_of(name, "student", inputs.student, path) for path in paths[0]]
    taught = [feature_of(name, "teacher", teacher, path) for path in paths[1]]
    for path, x in zip(paths[0] + paths[1], student + taught, strict=True):
        if x.ndim != 4:
            raise ValueError(
                f"{name}: {path} has shape {x.shape}, expected [batch, height, width, channels]"
            )
    return student, jax.lax.stop_gradient(taught)


def _init_embedding(key: Array, size: int) -> PyTree:
    first, second = jax.random.split(key)
    width = max(1, size // _EMBED_FACTOR)
    hidden = init_linear(first, size, 2 * width)
    return {"hidden": hidden, "out": init_linear(second, 2 * width, width)}


def _embed(params: PyTree, features: Array, mask: Array) -> Array:
    """Return a vector of length one, [batch, width], of each example's likeness to the others."""
    size = params["hidden"]["kernel"].shape[0]
    if len(features) != size:
        raise ValueError(
            f"semantic_calibration: the batch has {len(features)} examples, but the parameters are "
            f"for {size}; micro-batches and batches of several sizes are not possible"
        )
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32)).reshape(size, -1)
    x = jnp.where(mask[:, None], x, 0)
    likeness = jnp.einsum("id,jd->ij", x, x, precision="highest")
    hidden = jax.nn.relu(linear(params["hidden"], likeness))
    return norms.normalize(linear(params["out"], hidden))


def _init_projection(key: Array, inputs: int, outputs: int) -> PyTree:
    keys, mid = jax.random.split(key, 3), 2 * outputs
    return {
        "reduce": init_linear(keys[0], inputs, mid, bias=False),
        "reduce_norm": init_norm(mid),
        "mix": init_conv(keys[1], mid, mid, 3, bias=False),
        "mix_norm": init_norm(mid),
        "expand": init_linear(keys[2], mid, outputs, bias=False),
    }


def _project(params: PyTree, x: Array, mask: Array) -> Array:
    x = jax.nn.relu(batch_norm(params["reduce_norm"], linear(params["reduce"], x), mask))
    x = jax.nn.relu(batch_norm(params["mix_norm"], conv(params["mix"], x), mask))
    return linear(params["expand"], x)
