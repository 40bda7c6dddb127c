"""Terms that bring each of the student's stages to the teacher's width by layers they learn."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import batch_norm, connect, init_connector, init_linear, init_norm, linear
from kdjax.terms._reading import Paths, pair_paths, stages, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables

_LAYERS = ("first", "second", "third")


def activation_boundary(
    student_features: Paths, teacher_features: Paths, *, margin: float | Array = 1.0
) -> Term:
    """Have the neurons fire that fire in the teacher, through a learned connector.

    sum over the stages of 2^-(stages behind it) * activation_boundary_loss(connector(s), t)

    The connector is a 1x1 convolution and BatchNorm over the batch. The values are sums over all
    neurons: the authors weigh them by 3 / 1000, and train with this loss alone before they train
    with labels.

    Args:
        student_features: module path of a feature before its ReLU, or one for each stage from the
            input to the output.
        teacher_features: as many.
        margin: how far from zero the student is pushed.

    Returns:
        A term with parameters for each stage: `kernel` [student_width, teacher_width], and `scale`
        and `bias` of the BatchNorm.

    Raises:
        ValueError: if the paths are not as many; at trace time, if a feature was not captured.

    References:
        Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons", 2018, arXiv:1811.03233.
    """

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, mask: Array) -> Array:
        connected = _connect(params, student, mask)
        return losses.activation_boundary_loss(connected, teacher, margin=margin)

    paths = pair_paths("activation_boundary", student_features, teacher_features)
    return _staged("activation_boundary", paths, _init_connection, loss, decay=0.5)


def overhaul(student_features: Paths, teacher_features: Paths, *, margins: Any) -> Term:
    """Follow what the teacher's ReLU lets through, through a learned connector.

    sum over the stages of 2^-(stages behind it) * overhaul_loss(connector(s), t, margin)

    The connector is a 1x1 convolution and BatchNorm over the batch. The values are sums over all
    features: the authors weigh them by 1 / 1000 and less.

    Args:
        student_features: module path of a feature, or one for each stage from the input to the
            output.
        teacher_features: as many, of features before their ReLU.
        margins: for a path, what `kdjax.losses.batch_norm_margin` returns for the teacher's last
            BatchNorm before it, [teacher_width]; for several, a sequence of them. Kept in the
            term's state.

    Returns:
        A term with parameters for each stage: `kernel` [student_width, teacher_width], and `scale`
        and `bias` of the BatchNorm.

    Raises:
        ValueError: if paths or margins are not as many; at trace time, if a feature was not
            captured.

    References:
        Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", 2019,
        arXiv:1904.01866.
    """

    def loss(params: PyTree, margin: Array, student: Array, teacher: Array, mask: Array) -> Array:
        return losses.overhaul_loss(_connect(params, student, mask), teacher, margin)

    paths = pair_paths("overhaul", student_features, teacher_features)
    constants = [margins] if isinstance(student_features, str) else list(margins)
    if len(constants) != len(paths):
        raise ValueError(
            f"overhaul: margins are {len(constants)}, expected {len(paths)} like paths"
        )
    state = {f"stage_{i}": margin for i, margin in enumerate(constants)}
    return _staged("overhaul", paths, _init_connection, loss, decay=0.5, constants=state)


def inter_channel_correlation(student_features: Paths, teacher_features: Paths) -> Term:
    """Keep how channels relate: ICKD, through a learned connector for each stage.

    See `kdjax.losses.inter_channel_correlation_loss`. The connector is a 1x1 convolution and
    BatchNorm over the batch, as in the authors' code.

    Args:
        student_features: module path of a feature map, or one for each stage; the losses add up.
        teacher_features: as many; heights and widths may differ.

    Returns:
        A term with parameters `connect` and `norm` for each stage.

    Raises:
        ValueError: if the paths are not as many; at trace time, if a feature was not captured.

    References:
        Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for
        Diversity-preserved Knowledge Distillation", 2022, arXiv:2202.03680.
    """

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, mask: Array) -> Array:
        return losses.inter_channel_correlation_loss(connect(params, student, mask), teacher)

    paths = pair_paths("inter_channel_correlation", student_features, teacher_features)
    return _staged("inter_channel_correlation", paths, init_connector, loss)


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
    log_scale = math.log(math.expm1(initial_variance - min_variance))

    def init(key: Array, inputs: int, width: int) -> PyTree:
        widths = [inputs, width, width, width]
        layers = {
            layer: init_linear(k, *widths[j : j + 2], bias=False)
            for j, (layer, k) in enumerate(zip(_LAYERS, jax.random.split(key, 3), strict=True))
        }
        return {**layers, "log_scale": jnp.full(width, log_scale, jnp.float32)}

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, mask: Array) -> Array:
        student, teacher = losses.match_sizes(student, teacher)
        variance = jax.nn.softplus(params["log_scale"]) + min_variance
        return losses.variational_information_loss(_mean(params, student), teacher, variance)

    paths = pair_paths("vid", student_features, teacher_features)
    return _staged("vid", paths, init, loss, couples_batch=False)


def _mean(params: PyTree, x: Array) -> Array:
    """Predict the teacher's features: three layers, ReLU between."""
    x = jax.nn.relu(linear(params["first"], x))
    x = jax.nn.relu(linear(params["second"], x))
    return linear(params["third"], x)


def _init_connection(key: Array, inputs: int, outputs: int) -> PyTree:
    return init_linear(key, inputs, outputs, bias=False) | init_norm(outputs)


def _connect(params: PyTree, x: Array, mask: Array) -> Array:
    return batch_norm(params, linear({"kernel": params["kernel"]}, x), mask)


def _staged(
    term: str,
    paths: Sequence[tuple[str, str]],
    init: Callable[[Array, int, int], PyTree],
    loss: Callable[[PyTree, PyTree, Array, Array, Array], Array],
    *,
    constants: Mapping[str, PyTree] | None = None,
    decay: float = 1.0,
    couples_batch: bool = True,
) -> Term:
    """Sum a loss over stages, each with parameters of its own, `stage_<i>`.

    Args:
        term: its name, for messages.
        paths: of the student's feature and the teacher's, for each stage.
        init: makes a stage's parameters from a key and both widths.
        loss: of a stage's parameters, its constant, both features and the mask.
        constants: by stage; they travel as state.
        decay: what the weight of a stage is multiplied by for each stage behind it.
        couples_batch: whether an example's value depends on the others.
    """

    def init_all(key: Array, inputs: TermInputs) -> Variables:
        params = {}
        for i, pair in enumerate(stages(term, inputs, paths)):
            widths = [x.shape[-1] for x in pair]
            params[f"stage_{i}"] = init(jax.random.fold_in(key, i), *widths)
        return Variables(params, jax.tree.map(jnp.asarray, dict(constants or {})))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = []
        for i, pair in enumerate(stages(term, inputs, paths)):
            own = params[f"stage_{i}"], state.get(f"stage_{i}")
            weight = decay ** (len(paths) - 1 - i)
            values.append(weight * loss(*own, *pair, inputs.mask))
        return total(values), state

    return Term(init_all, apply, couples_batch)
