"""Knowledge review: the deep stages of the student help its shallow ones, by learned attention."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.terms._layers import conv, init_conv, init_linear, init_norm, linear, then_norm
from kdjax.terms._reading import Paths, pair_of, pair_paths, total
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def review(student_features: Paths, teacher_features: Paths, *, width: int | None = None) -> Term:
    """Follow the teacher's stages with the student's, each fused with all that come behind it.

    sum over the stages of hierarchical_context_loss(out, t)
    from the deepest stage on: x = norm(conv1x1(s)); a, b = sigmoid(conv1x1([x, carried]));
    carried = a x + b carried; out = norm(conv3x3(carried))

    Carried features are resized to the stage's size, and to the teacher's for the output, by the
    nearest position. BatchNorm is over the batch.

    Args:
        student_features: module paths of the stages from the input to the output, each
            [batch, height, width, channels]; [batch, channels] counts as one position.
        teacher_features: as many, likewise.
        width: channels of what is carried; None: those of the student's last stage, at most 512.

    Returns:
        A term with parameters for each stage: `reduce`, `expand` and, but for the last, `fuse`.

    Raises:
        ValueError: if the paths are not as many; at trace time, if a feature was not captured or
            is neither a map nor a vector.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = (
        ...     terms.review(("stage_1", "stage_2"), ("stage_1", "stage_2"), width=8),
        ...     term_inputs(),
        ... )
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044.
    """
    paths = pair_paths("review", student_features, teacher_features)

    def init(key: Array, inputs: TermInputs) -> Variables:
        pairs = _stage_maps(inputs, paths)
        mid = width or min(512, pairs[-1][0].shape[-1])
        params = {}
        for i, (s, t) in enumerate(pairs):
            own, widths = jax.random.fold_in(key, i), (s.shape[-1], mid, t.shape[-1])
            params[f"stage_{i}"] = _init_fusion(own, widths, i < len(pairs) - 1)
        return Variables(params, {})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        values, carried = [], None
        for i, (student, teacher) in reversed(list(enumerate(_stage_maps(inputs, paths)))):
            own = params[f"stage_{i}"]
            carried = _resize(_fuse(own, student, carried, inputs.mask), teacher)
            out = then_norm(conv, own["expand"], carried, inputs.mask)
            values.append(losses.hierarchical_context_loss(out, teacher))
        return total(values, inputs.mask), state

    return Term(init, apply, couples_batch=True)


def _stage_maps(inputs: TermInputs, paths: list[tuple[str, str]]) -> list[tuple[Array, Array]]:
    return [
        (_as_map(s), _as_map(t)) for s, t in (pair_of("review", inputs, *pair) for pair in paths)
    ]


def _as_map(x: Array) -> Array:
    if x.ndim == 2:
        return x[:, None, None, :]
    if x.ndim != 4:
        raise ValueError(
            f"review: a feature has shape {x.shape}, expected [batch, height, width, channels] "
            "or [batch, channels]"
        )
    return x


def _init_fusion(key: Array, widths: tuple[int, int, int], fused: bool) -> PyTree:
    first, second, third = jax.random.split(key, 3)
    inputs, mid, outputs = widths
    params = {
        "reduce": init_linear(first, inputs, mid, bias=False) | init_norm(mid),
        "expand": init_conv(second, mid, outputs, 3, bias=False) | init_norm(outputs),
    }
    return params | ({"fuse": init_linear(third, 2 * mid, 2)} if fused else {})


def _fuse(params: PyTree, student: Array, carried: Array | None, mask: Array) -> Array:
    """Mix the stage's features with the carried ones, by attention to both at every position."""
    x = then_norm(linear, params["reduce"], student, mask)
    if carried is None:
        return x
    carried = _resize(carried, x)
    shares = jax.nn.sigmoid(linear(params["fuse"], jnp.concatenate([x, carried], axis=-1)))
    return x * shares[..., :1] + carried * shares[..., 1:]


def _resize(x: Array, like: Array) -> Array:
    """Return the values at the nearest positions towards the origin, in height and width."""
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(x.shape[1:3], like.shape[1:3], strict=True)
    )
    return x[:, rows][:, :, columns]
