"""Distillation losses: arrays in, one value per example out. They need jax and nothing else."""

from kdjax.losses._activations import activation_boundary_loss, batch_norm_margin, overhaul_loss
from kdjax.losses._adaptive import (
    adaptive_kl_divergence,
    taid_loss,
    taid_schedule_init,
    taid_schedule_update,
)
from kdjax.losses._attention import attention_map, attention_transfer_loss, neuron_selectivity_loss
from kdjax.losses._calibration import layer_attention, semantic_calibration_loss
from kdjax.losses._channels import affinity_loss, channel_wise_loss, inter_channel_correlation_loss
from kdjax.losses._class_attention import class_attention_loss
from kdjax.losses._context import hierarchical_context_loss
from kdjax.losses._contrastive import (
    contrastive_log_normalizer,
    contrastive_representation_loss,
    remembered_embeddings,
)
from kdjax.losses._correlations import batch_correlation_loss, class_correlation_loss, dist_loss
from kdjax.losses._curriculum import curriculum_strength, curriculum_temperature, reverse_gradient
from kdjax.losses._decoupled import dkd_loss, nkd_loss, wsld_loss
from kdjax.losses._directions import direction_relation_loss
from kdjax.losses._divergences import (
    generalized_js_divergence,
    skew_kl_divergence,
    skew_reverse_kl_divergence,
    symmetric_kl_divergence,
    total_variation,
)
from kdjax.losses._embeddings import (
    cosine_loss,
    prime_aware_loss,
    projected_feature_loss,
    softmax_regression_loss,
)
from kdjax.losses._factor import factor_transfer_loss
from kdjax.losses._features import hint_loss
from kdjax.losses._flow import flow_loss, flow_matrix
from kdjax.losses._generation import channel_mask, masked_generation_loss, position_mask
from kdjax.losses._information import (
    itrd_correlation_loss,
    itrd_mutual_loss,
    probabilistic_transfer_loss,
)
from kdjax.losses._language import marked_first, universal_logit_loss
from kdjax.losses._levels import multi_level_loss
from kdjax.losses._logits import (
    cross_entropy,
    kd_loss,
    kl_divergence,
    reverse_kl_divergence,
    soft_target_loss,
    tempered_log_softmax,
    tempered_softmax,
)
from kdjax.losses._maps import match_sizes
from kdjax.losses._matching import (
    hard_target_loss,
    logit_distance_loss,
    logit_mse_loss,
    ttm_loss,
    wttm_loss,
)
from kdjax.losses._relations import (
    angle_relation_loss,
    distance_relation_loss,
    hard_dark_rank_loss,
)
from kdjax.losses._segmentation import intra_class_variation_loss
from kdjax.losses._self import self_rank_loss, self_target_loss, virtual_teacher_loss
from kdjax.losses._similarity import (
    consecutive_correlation_loss,
    correlation_congruence_loss,
    similarity_preserving_loss,
)
from kdjax.losses._top_classes import top_k_log_probs, top_k_log_probs_with_tail
from kdjax.losses._transforms import standardize_logits
from kdjax.losses._variational import variational_information_loss

__all__ = [
    "activation_boundary_loss",
    "adaptive_kl_divergence",
    "affinity_loss",
    "angle_relation_loss",
    "attention_map",
    "attention_transfer_loss",
    "batch_correlation_loss",
    "batch_norm_margin",
    "channel_mask",
    "channel_wise_loss",
    "class_attention_loss",
    "class_correlation_loss",
    "consecutive_correlation_loss",
    "contrastive_log_normalizer",
    "contrastive_representation_loss",
    "correlation_congruence_loss",
    "cosine_loss",
    "cross_entropy",
    "curriculum_strength",
    "curriculum_temperature",
    "direction_relation_loss",
    "dist_loss",
    "distance_relation_loss",
    "dkd_loss",
    "factor_transfer_loss",
    "flow_loss",
    "flow_matrix",
    "generalized_js_divergence",
    "hard_dark_rank_loss",
    "hard_target_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "inter_channel_correlation_loss",
    "intra_class_variation_loss",
    "itrd_correlation_loss",
    "itrd_mutual_loss",
    "kd_loss",
    "kl_divergence",
    "layer_attention",
    "logit_distance_loss",
    "logit_mse_loss",
    "marked_first",
    "masked_generation_loss",
    "match_sizes",
    "multi_level_loss",
    "neuron_selectivity_loss",
    "nkd_loss",
    "overhaul_loss",
    "position_mask",
    "prime_aware_loss",
    "probabilistic_transfer_loss",
    "projected_feature_loss",
    "remembered_embeddings",
    "reverse_gradient",
    "reverse_kl_divergence",
    "self_rank_loss",
    "self_target_loss",
    "semantic_calibration_loss",
    "similarity_preserving_loss",
    "skew_kl_divergence",
    "skew_reverse_kl_divergence",
    "soft_target_loss",
    "softmax_regression_loss",
    "standardize_logits",
    "symmetric_kl_divergence",
    "taid_loss",
    "taid_schedule_init",
    "taid_schedule_update",
    "tempered_log_softmax",
    "tempered_softmax",
    "top_k_log_probs",
    "top_k_log_probs_with_tail",
    "total_variation",
    "ttm_loss",
    "universal_logit_loss",
    "variational_information_loss",
    "virtual_teacher_loss",
    "wsld_loss",
    "wttm_loss",
]
