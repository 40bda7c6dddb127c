"""Losses as terms of an objective: each sees the batch, the student and the teacher.

A term that learns (a projection) or remembers (a memory bank) keeps that in variables of its own,
which are trained and checkpointed with the student and never enter it.
"""

from kdjax.terms._base import stateless
from kdjax.terms._features import hint
from kdjax.terms._logits import cross_entropy, kd, soft_targets

__all__ = ["cross_entropy", "hint", "kd", "soft_targets", "stateless"]
