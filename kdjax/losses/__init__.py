"""Distillation losses: arrays in, one value per example out. They need jax and nothing else."""

from kdjax.losses._features import hint_loss
from kdjax.losses._logits import (
    cross_entropy,
    kd_loss,
    kl_divergence,
    reverse_kl_divergence,
    soft_target_loss,
    tempered_log_softmax,
    tempered_softmax,
)

__all__ = [
    "cross_entropy",
    "hint_loss",
    "kd_loss",
    "kl_divergence",
    "reverse_kl_divergence",
    "soft_target_loss",
    "tempered_log_softmax",
    "tempered_softmax",
]
