"""Losses as terms of an objective: each sees the batch, the student and the teacher.

A term that learns (a projection) or remembers (a memory bank) keeps that in variables of its own,
which are trained and checkpointed with the student and never enter it.
"""

from kdjax.terms._base import stateless
from kdjax.terms._calibration import semantic_calibration
from kdjax.terms._channels import (
    affinity,
    channel_wise,
    class_attention,
    cosine,
    intra_class_variation,
    simkd,
)
from kdjax.terms._classification import (
    batch_correlation,
    class_correlation,
    direction_relation,
    dist,
    dkd,
    hard_targets,
    logit_distance,
    logit_mse,
    multi_level,
    nkd,
    standardized,
    ttm,
    virtual_teacher,
    wsld,
    wttm,
)
from kdjax.terms._connectors import activation_boundary, overhaul
from kdjax.terms._contrastive import crd
from kdjax.terms._curriculum import curriculum_temperature
from kdjax.terms._divergences import (
    adaptive_kl,
    generalized_js,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    symmetric_kl,
    taid,
    top_k_js,
    total_variation,
    universal_logits,
)
from kdjax.terms._factor import factor_transfer, paraphrase
from kdjax.terms._features import hint
from kdjax.terms._generation import masked_generation
from kdjax.terms._logits import cross_entropy, kd, soft_targets
from kdjax.terms._maps import attention, flow, neuron_selectivity
from kdjax.terms._projected import inter_channel_correlation, prime_aware, softmax_regression
from kdjax.terms._relations import (
    angle_relation,
    consecutive_correlation,
    correlation_congruence,
    distance_relation,
    hard_dark_rank,
    itrd,
    probabilistic_transfer,
    similarity_preserving,
)
from kdjax.terms._review import review
from kdjax.terms._self import uskd
from kdjax.terms._variational import vid

__all__ = [
    "activation_boundary",
    "adaptive_kl",
    "affinity",
    "angle_relation",
    "attention",
    "batch_correlation",
    "channel_wise",
    "class_attention",
    "class_correlation",
    "consecutive_correlation",
    "correlation_congruence",
    "cosine",
    "crd",
    "cross_entropy",
    "curriculum_temperature",
    "direction_relation",
    "dist",
    "distance_relation",
    "dkd",
    "factor_transfer",
    "flow",
    "generalized_js",
    "hard_dark_rank",
    "hard_targets",
    "hint",
    "inter_channel_correlation",
    "intra_class_variation",
    "itrd",
    "kd",
    "logit_distance",
    "logit_mse",
    "masked_generation",
    "multi_level",
    "neuron_selectivity",
    "nkd",
    "overhaul",
    "paraphrase",
    "prime_aware",
    "probabilistic_transfer",
    "reverse_kl",
    "review",
    "semantic_calibration",
    "similarity_preserving",
    "simkd",
    "skew_kl",
    "skew_reverse_kl",
    "soft_targets",
    "softmax_regression",
    "standardized",
    "stateless",
    "symmetric_kl",
    "taid",
    "top_k_js",
    "total_variation",
    "ttm",
    "universal_logits",
    "uskd",
    "vid",
    "virtual_teacher",
    "wsld",
    "wttm",
]
