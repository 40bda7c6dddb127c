"""Terms that bring each of the student's stages to the teacher's width by layers they learn."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import connect, init_connector, init_linear, init_norm, linear, then_norm
from kdjax.terms._learned import learned, staged
from kdjax.terms._reading import Paths, at_positions, pair_paths, summed
from kdjax.types import Array, PyTree, Term, TermInputs

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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.activation_boundary("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons", 2018, arXiv:1811.03233.
    """

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        connected = then_norm(linear, params, student, x.mask)
        each = functools.partial(losses.activation_boundary_loss, margin=margin)
        pair = {"student_features": connected, "teacher_features": teacher}
        return summed(at_positions(each, x.mask, **pair))

    paths = pair_paths("activation_boundary", student_features, teacher_features)
    stages = [learned("activation_boundary", pair, _init_connection, loss) for pair in paths]
    return staged(stages, decay=0.5)


def overhaul(
    student_features: Paths, teacher_features: Paths, *, margins: Array | Sequence[Array]
) -> Term:
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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = (
        ...     terms.overhaul("stage_1", "stage_1", margins=jax.numpy.zeros(6)),
        ...     term_inputs(),
        ... )
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", 2019,
        arXiv:1904.01866.
    """

    def loss(
        params: PyTree, margin: PyTree, student: Array, teacher: Array, x: TermInputs
    ) -> Array:
        connected = then_norm(linear, params, student, x.mask)
        each = functools.partial(losses.overhaul_loss, margin=margin)
        pair = {"student_features": connected, "teacher_features": teacher}
        return summed(at_positions(each, x.mask, **pair))

    paths = pair_paths("overhaul", student_features, teacher_features)
    constants = [margins] if isinstance(student_features, str) else list(margins)
    if len(constants) != len(paths):
        raise ValueError(
            f"overhaul: margins are {len(constants)}, expected {len(paths)} like paths"
        )
    stages = [
        learned("overhaul", pair, _init_connection, loss, constants=margin)
        for pair, margin in zip(paths, constants, strict=True)
    ]
    return staged(stages, decay=0.5)


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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.inter_channel_correlation("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for
        Diversity-preserved Knowledge Distillation", 2022, arXiv:2202.03680.
    """

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        return losses.inter_channel_correlation_loss(connect(params, student, x.mask), teacher)

    paths = pair_paths("inter_channel_correlation", student_features, teacher_features)
    name = "inter_channel_correlation"
    return staged([learned(name, pair, init_connector, loss) for pair in paths])


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

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.vid("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

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
        keys = zip(_LAYERS, jax.random.split(key, 3), (inputs, width, width), strict=True)
        layers = {layer: init_linear(k, inner, width, bias=False) for layer, k, inner in keys}
        return {**layers, "log_scale": jnp.full(width, log_scale, jnp.float32)}

    def loss(params: PyTree, _: PyTree, student: Array, teacher: Array, x: TermInputs) -> Array:
        student, teacher = losses.match_sizes(student, teacher)
        variance = jax.nn.softplus(params["log_scale"]) + min_variance
        each = functools.partial(losses.variational_information_loss, variance=variance)
        pair = {"student_mean": _mean(params, student), "teacher_features": teacher}
        return at_positions(each, x.mask, **pair)

    paths = pair_paths("vid", student_features, teacher_features)
    return staged([learned("vid", pair, init, loss, couples_batch=False) for pair in paths])


def _mean(params: PyTree, x: Array) -> Array:
    """Predict the teacher's features: three layers, ReLU between."""
    x = jax.nn.relu(linear(params["first"], x))
    x = jax.nn.relu(linear(params["second"], x))
    return linear(params["third"], x)


def _init_connection(key: Array, inputs: int, outputs: int) -> PyTree:
    return init_linear(key, inputs, outputs, bias=False) | init_norm(outputs)
