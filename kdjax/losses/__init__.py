"""Distillation losses: arrays in, one value per example out."""

from kdjax.losses._logits import kd_loss

__all__ = ["kd_loss"]
