"""Terms that bring the student's features to the teacher's width by a layer they learn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import batch_norm, init_linear, init_norm, linear
from kdjax.terms._stages import Paths, pair_paths, stages, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


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

    def loss(student: Array, teacher: Array, _: PyTree) -> Array:
        return losses.activation_boundary_loss(student, teacher, margin=margin)

    paths = pair_paths("activation_boundary", student_features, teacher_features)
    return _connected("activation_boundary", loss, paths, {})


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
    paths = pair_paths("overhaul", student_features, teacher_features)
    constants = [margins] if isinstance(student_features, str) else list(margins)
    if len(constants) != len(paths):
        raise ValueError(
            f"overhaul: margins are {len(constants)}, expected {len(paths)} like paths"
        )
    state = {f"stage_{i}": margin for i, margin in enumerate(constants)}
    return _connected("overhaul", losses.overhaul_loss, paths, state)


def _connected(
    term: str,
    loss: Callable[[Array, Array, Any], Array],
    paths: Sequence[tuple[str, str]],
    constants: Mapping[str, PyTree],
) -> Term:
    """A loss summed over the stages, each through its connector; constants travel as state."""
    names = [f"stage_{i}" for i in range(len(paths))]

    def init(key: Array, inputs: TermInputs) -> Variables:
        params = {}
        for i, (student, teacher) in enumerate(stages(term, inputs, paths)):
            widths = student.shape[-1], teacher.shape[-1]
            kernel = init_linear(jax.random.fold_in(key, i), *widths, bias=False)
            params[names[i]] = kernel | init_norm(widths[1])
        return Variables(params, jax.tree.map(jnp.asarray, dict(constants)))

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values = []
        for i, (student, teacher) in enumerate(stages(term, inputs, paths)):
            connected = _connect(params[names[i]], student, inputs.mask)
            weight = 0.5 ** (len(paths) - 1 - i)
            values.append(weight * loss(connected, teacher, state.get(names[i])))
        return total(values), state

    return Term(init, apply, couples_batch=True)


def _connect(params: PyTree, x: Array, mask: Array) -> Array:
    return batch_norm(params, linear({"kernel": params["kernel"]}, x), mask)
