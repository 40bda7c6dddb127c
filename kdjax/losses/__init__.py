"""Distillation losses: arrays in, one value per example out."""

from kdjax.losses._logits import cross_entropy, hint_loss, kd_loss, soft_target_loss

__all__ = ["cross_entropy", "hint_loss", "kd_loss", "soft_target_loss"]
