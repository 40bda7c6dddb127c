"""The term of variational information distillation."""

import math

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import init_linear, linear
from kdjax.terms._stages import Paths, pair_paths, stages, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables

_LAYERS = ("first", "second", "third")


def vid(
    student_features: Paths,
    teacher_features: Paths,
    *,
    initial_variance: float = 5.0,
    min_variance: float = 1e-5,
) -> Term:
    """Keep the information about the teacher's features that a learned network can read off.

    sum over the stages of variational_information_loss(mean(s), t, variance)

    The mean is predicted by three 1x1 convolutions of the teacher's width, without biases, with
    ReLU between; the variance of each channel is softplus(log_scale) + min_variance. All of it is
    learned and checkpointed with the student.

    Args:
        student_features: module path of a feature, or one for each stage.
        teacher_features: as many. Along each axis the larger map is averaged to the size of the
            smaller.
        initial_variance: of every channel.
        min_variance: the least it can become, less than the initial one.

    Returns:
        A term with parameters for each stage: `first`, `second` and `third`, each with `kernel`,
        and `log_scale` [teacher_width].

    Raises:
        ValueError: if the paths are not as many, or the variances not positive and in order; at
            trace time, if a feature was not captured.

    References:
        Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge
        Transfer", 2019, arXiv:1904.05835.
    """
    if not 0 < min_variance < initial_variance < math.inf:
        raise ValueError(
            f"vid: initial_variance is {initial_variance}, expected more than min_variance, "
            f"{min_variance}, which is more than 0"
        )
    paths = pair_paths("vid", student_features, teacher_features)
    log_scale = math.log(math.expm1(initial_variance - min_variance))

    def init(key: Array, inputs: TermInputs) -> Variables:
        params = {}
        for i, (student, teacher) in enumerate(stages("vid", inputs, paths)):
            widths = [student.shape[-1]] + [teacher.shape[-1]] * 3
            keys = jax.random.split(jax.random.fold_in(key, i), 3)
            params[f"stage_{i}"] = {
                **{
                    layer: init_linear(k, *widths[j : j + 2], bias=False)
                    for j, (layer, k) in enumerate(zip(_LAYERS, keys, strict=True))
                },
                "log_scale": jnp.full(widths[-1], log_scale, jnp.float32),
            }
        return Variables(params, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = []
        for i, pair in enumerate(stages("vid", inputs, paths)):
            own = params[f"stage_{i}"]
            student, teacher = losses.match_sizes(*pair)
            variance = jax.nn.softplus(own["log_scale"]) + min_variance
            values.append(
                losses.variational_information_loss(_mean(own, student), teacher, variance)
            )
        return total(values), state

    return Term(init, apply)


def _mean(params: PyTree, x: Array) -> Array:
    """Predict the teacher's features: three layers, ReLU between."""
    x = jax.nn.relu(linear(params["first"], x))
    x = jax.nn.relu(linear(params["second"], x))
    return linear(params["third"], x)
