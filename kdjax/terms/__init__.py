"""Losses as terms of an objective: each sees the batch, the student and the teacher.

`of` lifts any loss of `kdjax.losses`, or your own, by the names of its parameters. What has a name
of its own here learns (a projection) or remembers (a memory bank): it keeps that in variables of
its own, which are trained and checkpointed with the student and never enter it.
"""

from collections.abc import Callable

from kdjax.terms._connectors import activation_boundary, inter_channel_correlation, overhaul, vid
from kdjax.terms._contrastive import crd
from kdjax.terms._curriculum import curriculum_temperature, taid
from kdjax.terms._factor import factor_transfer, paraphrase
from kdjax.terms._generation import masked_generation
from kdjax.terms._of import cross_entropy, kd, of, soft_targets, stateless
from kdjax.terms._projected import hint, prime_aware, softmax_regression
from kdjax.terms._relations import consecutive_correlation, itrd
from kdjax.terms._renamed import renamed
from kdjax.terms._review import review
from kdjax.terms._self import uskd
from kdjax.terms._semantic import semantic_calibration
from kdjax.terms._wrapped import normalized, standardized, with_logits_of
from kdjax.types import Term

__all__ = [
    "activation_boundary", "consecutive_correlation", "crd", "cross_entropy",
    "curriculum_temperature", "factor_transfer", "hint", "inter_channel_correlation", "itrd", "kd",
    "masked_generation", "normalized", "of", "overhaul", "paraphrase", "prime_aware", "review",
    "semantic_calibration", "soft_targets", "softmax_regression", "standardized", "stateless",
    "taid", "uskd", "vid", "with_logits_of",
]  # fmt: skip


def __getattr__(name: str) -> Callable[..., Term]:
    return renamed(name)
