"""Optimizers and views of images from their settings."""

import optax

from kdjax import data, step
from kdjax.optimizers import max_norm
from kdjax.runs.resolved import default_learning_rate
from kdjax.runs.settings import Augmentation, OptimizerSettings


def make_optimizer(
    settings: OptimizerSettings, *, batch_size: int, num_steps: int, norm_limit: float | None
) -> optax.GradientTransformation:
    """Make the optimizer of some settings for a training of that length."""
    peak = settings.learning_rate or default_learning_rate(settings.name, batch_size)
    schedule = _schedule(settings.schedule, peak, num_steps)
    if settings.name == "sgd":
        decay = optax.add_decayed_weights(settings.weight_decay)
        chain = [decay, optax.sgd(schedule, momentum=0.9, nesterov=settings.nesterov is not False)]
    else:
        chain = [optax.adamw(schedule, weight_decay=settings.weight_decay)]
    return optax.chain(*chain, *([max_norm(norm_limit)] if norm_limit else []))


def _schedule(name: str, peak: float, num_steps: int) -> optax.Schedule:
    if name == "steps":
        drops = {round(share * num_steps): 0.1 for share in (0.625, 0.75, 0.875)}
        return optax.piecewise_constant_schedule(peak, drops)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=max(1, num_steps // 50), decay_steps=max(2, num_steps)
    )


def make_views(
    augment: tuple[Augmentation, ...], *, crop_padding: int, jitter_pixels: int
) -> step.ViewFn | None:
    """Compose the augmentations of the command line, None if there are none on the device."""
    functions = {
        "crop": lambda key, images: data.pad_and_crop(key, images, padding=crop_padding),
        "flip": data.flip,
        "jitter": lambda key, images: data.jitter(key, images, max_shift=jitter_pixels),
        "translate": lambda key, images: data.translate(key, images, max_shift=jitter_pixels),
        "warp": lambda key, images: data.warp(key, images, max_shift=jitter_pixels),
    }
    chosen = [functions[name] for name in augment if name in functions]
    return data.augment(*chosen) if chosen else None
