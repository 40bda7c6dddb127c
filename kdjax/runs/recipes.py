"""Optimizers and views of images from their settings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import data, step, teachers
from kdjax.optimizers import max_norm
from kdjax.runs.resolved import default_learning_rate
from kdjax.runs.settings import Augmentation, MethodSettings, OptimizerSettings
from kdjax.types import Array, Batch, Model, OnlineTeacher, PyTree

_NOT_KERNELS = ("class_token", "distillation_token", "position")
"""Parameters of several axes that no layer multiplies with."""
_MIXERS: Mapping[str, Callable[..., step.ViewFn]] = {"mixup": data.mixup, "cutmix": data.cutmix}
_OWN_STREAMS = 1000
"""Above the numbers that `data.augment` folds into the key for its functions."""


def make_optimizer(
    settings: OptimizerSettings, *, batch_size: int, num_steps: int, norm_limit: float | None
) -> optax.GradientTransformation:
    """Make the optimizer of some settings for a training of that length."""
    peak = settings.learning_rate or default_learning_rate(settings.name, batch_size)
    schedule, nesterov = _schedule(settings, peak, num_steps), settings.nesterov is not False
    decaying = {"kernels": _kernels, "all": None}[settings.weight_decay_mask]
    if settings.name == "sgd":
        decay = optax.add_decayed_weights(settings.weight_decay, decaying)
        chain = [decay, optax.sgd(schedule, momentum=settings.momentum, nesterov=nesterov)]
    else:
        chain = [optax.adamw(schedule, weight_decay=settings.weight_decay, mask=decaying)]
    first = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optax.chain(*first, *chain, *([max_norm(norm_limit)] if norm_limit else []))


def make_average(decay: float | None, model: Model) -> OnlineTeacher | None:
    """Make a moving average that is the plain mean as long as that is shorter, if one is asked."""
    if decay is None:
        return None
    return teachers.ema(model, decay=lambda n: jnp.minimum(1 - 1 / (n + 1), decay))


def _kernels(params: PyTree) -> PyTree:
    """Mark what decays: neither biases and the scales of normalization, nor tokens."""

    def decays(path: tuple[Any, ...], x: Array) -> bool:
        return x.ndim > 1 and getattr(path[-1], "key", None) not in _NOT_KERNELS

    return jax.tree.map_with_path(decays, params)


def _schedule(settings: OptimizerSettings, peak: float, num_steps: int) -> optax.Schedule:
    warmup = settings.warmup_steps
    if settings.schedule == "cosine":
        warmup = max(1, num_steps // 50) if warmup is None else warmup
        if not warmup:
            return optax.cosine_decay_schedule(peak, num_steps)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(warmup + 1, num_steps))
    drops = {round(share * num_steps): 0.1 for share in (0.625, 0.75, 0.875)}
    steps = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return steps
    return lambda count: steps(count) * jnp.minimum(1, count / warmup)


class Mixing(NamedTuple):
    """How images are mixed where `mixup` or `cutmix` are among the augmentations."""

    num_classes: int
    mixup_alpha: float
    cutmix_alpha: float
    per_example: bool


def mixing_of(settings: MethodSettings, num_classes: int) -> Mixing:
    """Return how images are mixed by the settings."""
    alphas = settings.mixup_alpha, settings.cutmix_alpha
    return Mixing(num_classes, *alphas, settings.mix_each == "example")


def mixers_in(augment: Sequence[Augmentation]) -> list[Augmentation]:
    """Return which augmentations mix images, whose labels are distributions then."""
    return [name for name in augment if name in _MIXERS]


def changes_images(augment: Sequence[Augmentation]) -> bool:
    """Whether images look different from step to step."""
    return bool({*augment} - {"none"})


def make_views(
    augment: tuple[Augmentation, ...],
    *,
    crop_padding: int,
    jitter_pixels: int,
    mixing: Mixing | None = None,
    class_weights: np.ndarray | None = None,
) -> step.ViewFn | None:
    """Compose the augmentations of the command line, None if there are none on the device.

    Args:
        augment: by name, in their order; what mixes images comes last.
        crop_padding: pixels of padding before the crop.
        jitter_pixels: the largest shift of those that shift.
        mixing: how images are mixed, for those that do.
        class_weights: [classes], of the examples; None where all count the same.

    Returns:
        A view of a batch.
    """
    functions = {
        "crop": lambda key, images: data.pad_and_crop(key, images, padding=crop_padding),
        "flip": data.flip,
        "jitter": lambda key, images: data.jitter(key, images, max_shift=jitter_pixels),
        "translate": lambda key, images: data.translate(key, images, max_shift=jitter_pixels),
        "warp": lambda key, images: data.warp(key, images, max_shift=jitter_pixels),
        "erase": data.erase,
    }
    chosen = [functions[name] for name in augment if name in functions]
    views = [data.augment(*chosen)] if chosen else []
    if class_weights is not None:
        views.append(data.class_weighted(class_weights))
    if mixing is not None:
        alphas = {"mixup": mixing.mixup_alpha, "cutmix": mixing.cutmix_alpha}
        mixed = [
            _MIXERS[name](
                num_classes=mixing.num_classes,
                alpha=alphas[name],
                per_example=mixing.per_example,
            )
            for name in mixers_in(augment)
        ]
        views += [data.one_of(*mixed, per_example=mixing.per_example)] if mixed[1:] else mixed
    return _in_turn(views)


def _in_turn(views: list[step.ViewFn]) -> step.ViewFn | None:
    """Compose views, each but the first with a key of its own."""
    if len(views) < 2:
        return views[0] if views else None

    def view_fn(key: Array, batch: Batch) -> Batch:
        for i, view in enumerate(views):
            batch = view(jax.random.fold_in(key, _OWN_STREAMS + i) if i else key, batch)
        return batch

    return view_fn
