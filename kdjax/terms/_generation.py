"""Masked generation: a term that learns to make the teacher's features from a part of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.terms._layers import init_conv, init_linear, linear
from kdjax.terms._learned import one_size
from kdjax.types import Array, PyTree, Term, TermInputs, Variables


def masked_generation(
    student_feature: str,
    teacher_feature: str,
    *,
    mask_ratio: float | Array = 0.5,
    mask_fn: Callable[..., Array] = losses.channel_mask,
) -> Term:
    """Generate the teacher's features from what a random mask leaves of the student's.

    See `kdjax.losses.masked_generation_loss`; the values are sums over all features: the authors
    weigh them by 7e-5 on ImageNet, 1.2e-3 on CIFAR-100 and 2e-5 in detection. Where the widths
    differ, a learned 1x1 convolution projects the student's features before they are masked. Of
    maps of different sizes the larger is averaged first, see `kdjax.losses.match_sizes`.

    The masks are a function of the key in the state and of the number of batches seen, and so come
    back after a restart.

    Args:
        student_feature: module path of a student feature, [batch, height, width, student_width].
        teacher_feature: module path of a teacher feature, likewise.
        mask_ratio: the expected share that is hidden.
        mask_fn: `(key, features, *, mask_ratio) -> keep`: `kdjax.losses.channel_mask` hides
            channels (classification), `kdjax.losses.position_mask` positions (detection).

    Returns:
        A term with parameters `generator` (see the loss), and where the widths differ `project`
        (`kernel` [student_width, teacher_width], `bias` [teacher_width]); its state has `key` and
        `num_batches`.

    Raises:
        ValueError: at trace time, if a feature was not captured or is no map.

    Example:
        >>> import jax
        >>> from kdjax import terms
        >>> from kdjax.testing import term_inputs
        >>> term, inputs = terms.masked_generation("stage_1", "stage_1"), term_inputs()
        >>> variables = jax.eval_shape(term.init, jax.random.key(0), inputs)
        >>> jax.eval_shape(term.apply, *variables, inputs)[0].shape
        (8,)

    References:
        Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", 2022, arXiv:2205.01529.
    """

    def features(inputs: TermInputs) -> tuple[Array, Array]:
        return one_size("masked_generation", inputs, student_feature, teacher_feature)

    def init(key: Array, inputs: TermInputs) -> Variables:
        student, teacher = features(inputs)
        keys = jax.random.split(key, 4)
        width = teacher.shape[-1]
        params = {"generator": _init_generator(keys[0], keys[1], width)}
        if student.shape[-1] != width:
            params["project"] = init_linear(keys[2], student.shape[-1], width)
        return Variables(params, {"key": keys[3], "num_batches": jnp.zeros((), jnp.int32)})

    def apply(params: PyTree, state: PyTree, inputs: TermInputs) -> tuple[Array, PyTree]:
        student, teacher = features(inputs)
        if "project" in params:
            student = linear(params["project"], student)
        key = jax.random.fold_in(state["key"], state["num_batches"])
        keep = mask_fn(key, student, mask_ratio=mask_ratio)
        values = losses.masked_generation_loss(student, teacher, keep, params["generator"])
        return values, {**state, "num_batches": state["num_batches"] + 1}

    return Term(init, apply)


def _init_generator(first: Array, second: Array, width: int) -> PyTree:
    layers = [init_conv(key, width, width, 3) for key in (first, second)]
    return {f"{name}_{i}": x for i, layer in enumerate(layers, 1) for name, x in layer.items()}
