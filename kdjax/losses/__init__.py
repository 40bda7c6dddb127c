"""Distillation losses: arrays in, one value per example out. They need jax alone.

Inputs of any floating type are widened to float32 or more, labels may be of any integer type. What
is known before the program runs is checked: labels that are no classes, rows of probabilities that
do not sum to 1, hyper-parameters out of their range, as numbers or in arrays. Where it is traced,
the value is nan. Examples without a class are named by `ignore_label`: their value is 0. A softmax
of one class says nothing: of a sigmoid's logit take `sigmoid_kd_loss` and `binary_cross_entropy`.
Under explicit axes of a mesh the values are split over the devices as the examples are.

The methods by the names that their papers gave them, with their functions and the room of each:

    KD                   soft_target_loss, kd_loss                                  _classification
    logit-std            standardize_logits                                         _classification
    DeiT                 hard_target_loss                                           _logits
    logit MSE            logit_mse_loss, logit_distance_loss                        _logits
    TTM                  ttm_loss                                                   _logits
    WTTM                 wttm_loss                                                  _logits
    DKD                  dkd_loss                                                   _decoupled
    NKD                  nkd_loss                                                   _decoupled
    WSLD                 wsld_loss                                                  _decoupled
    Tf-KD                virtual_teacher_loss                                       _self
    USKD                 self_target_loss, self_rank_loss                           _self
    DIST                 dist_loss                                                  _correlations
    MLKD                 multi_level_loss                                           _correlations
    KL                   kl_divergence                                              _divergences
    MiniLLM, reverse KL  reverse_kl_divergence                                      _divergences
    GKD, JSD             generalized_js_divergence                                  _divergences
    DistiLLM, skew KL    skew_kl_divergence, skew_reverse_kl_divergence             _divergences
    Jeffreys             symmetric_kl_divergence                                    _divergences
    TV                   total_variation                                            _divergences
    AKL                  adaptive_kl_divergence                                     _adaptive
    TAID                 taid_loss                                                  _adaptive
    CTKD                 curriculum_temperature                                     _adaptive
    ULD                  universal_logit_loss                                       _language
    top-k                top_k_log_probs, top_k_log_probs_with_tail                 _language
    RKD                  distance_relation_loss, angle_relation_loss                _relations
    DarkRank             hard_dark_rank_loss                                        _relations
    SKD                  direction_relation_loss                                    _relations
    SP                   similarity_preserving_loss                                 _similarities
    CC                   correlation_congruence_loss, consecutive_correlation_loss  _similarities
    Jasper               similarity_score_loss                                      _similarities
    SEED                 similarity_distribution_loss                               _similarities
    PKT                  probabilistic_transfer_loss                                _information
    ITRD                 itrd_correlation_loss, itrd_mutual_loss                    _information
    VID                  variational_information_loss                               _information
    CRD                  contrastive_representation_loss                            _contrastive
    FitNets, hint        hint_loss                                                  _maps
    FT                   factor_transfer_loss                                       _maps
    AB                   activation_boundary_loss                                   _maps
    OFD                  overhaul_loss                                              _maps
    AT                   attention_transfer_loss                                    _attention
    NST                  neuron_selectivity_loss                                    _attention
    CAT                  class_attention_loss                                       _attention
    CWD                  channel_wise_loss                                          _channels
    ICKD                 inter_channel_correlation_loss                             _channels
    affinity             affinity_loss                                              _channels
    IFVD                 intra_class_variation_loss                                 _channels
    FSP                  flow_loss                                                  _stages
    ReviewKD             hierarchical_context_loss                                  _stages
    SemCKD               semantic_calibration_loss                                  _stages
    MGD                  masked_generation_loss                                     _generation
    DistilBERT           cosine_loss                                                _embeddings
    SimKD                projected_feature_loss                                     _embeddings
    PAD                  prime_aware_loss                                           _embeddings
    SRRL                 softmax_regression_loss                                    _embeddings
    sigmoid KD, MLD      sigmoid_kd_loss                                            _tasks
    BCE                  binary_cross_entropy                                       _tasks
    MSE                  squared_error                                              _tasks
    bounded regression   bounded_regression_loss                                    _tasks
    margin MSE           margin_mse_loss                                            _tasks

Parts of these: tempered_softmax, tempered_log_softmax, cross_entropy (KD); batch_correlation_loss,
class_correlation_loss (MLKD); reverse_gradient, curriculum_strength (CTKD); taid_schedule_init,
taid_schedule_update (TAID); marked_first (ULD); contrastive_log_normalizer, remembered_embeddings
(CRD); match_sizes (FitNets); batch_norm_margin (OFD); attention_map (AT); flow_matrix (FSP);
layer_attention (SemCKD); channel_mask, position_mask (MGD).
"""

# What each room holds is in the table above: these lists take as few lines as they can.
# fmt: off
# isort: off
from kdjax.losses._adaptive import (
    adaptive_kl_divergence, curriculum_strength, curriculum_temperature, reverse_gradient,
    taid_loss, taid_schedule_init, taid_schedule_update,
)
from kdjax.losses._attention import (
    attention_map, attention_transfer_loss, class_attention_loss, neuron_selectivity_loss,
)
from kdjax.losses._channels import (
    affinity_loss, channel_wise_loss, inter_channel_correlation_loss, intra_class_variation_loss,
)
from kdjax.losses._classification import (
    cross_entropy, kd_loss, soft_target_loss, standardize_logits, tempered_log_softmax,
    tempered_softmax,
)
from kdjax.losses._contrastive import (
    contrastive_log_normalizer, contrastive_representation_loss, remembered_embeddings,
)
from kdjax.losses._correlations import (
    batch_correlation_loss, class_correlation_loss, dist_loss, multi_level_loss,
)
from kdjax.losses._decoupled import dkd_loss, nkd_loss, wsld_loss
from kdjax.losses._divergences import (
    generalized_js_divergence, kl_divergence, reverse_kl_divergence, skew_kl_divergence,
    skew_reverse_kl_divergence, symmetric_kl_divergence, total_variation,
)
from kdjax.losses._embeddings import (
    cosine_loss, prime_aware_loss, projected_feature_loss, softmax_regression_loss,
)
from kdjax.losses._generation import channel_mask, masked_generation_loss, position_mask
from kdjax.losses._information import (
    itrd_correlation_loss, itrd_mutual_loss, probabilistic_transfer_loss,
    variational_information_loss,
)
from kdjax.losses._language import (
    marked_first, top_k_log_probs, top_k_log_probs_with_tail, universal_logit_loss,
)
from kdjax.losses._logits import (
    hard_target_loss, logit_distance_loss, logit_mse_loss, ttm_loss, wttm_loss,
)
from kdjax.losses._maps import (
    activation_boundary_loss, batch_norm_margin, factor_transfer_loss, hint_loss, match_sizes,
    overhaul_loss,
)
from kdjax.losses._relations import (
    angle_relation_loss, direction_relation_loss, distance_relation_loss, hard_dark_rank_loss,
)
from kdjax.losses._self import self_rank_loss, self_target_loss, virtual_teacher_loss
from kdjax.losses._similarities import (
    consecutive_correlation_loss, correlation_congruence_loss, similarity_distribution_loss,
    similarity_preserving_loss, similarity_score_loss,
)
from kdjax.losses._stages import (
    flow_loss, flow_matrix, hierarchical_context_loss, layer_attention, semantic_calibration_loss,
)
from kdjax.losses._tasks import (
    binary_cross_entropy, bounded_regression_loss, margin_mse_loss, sigmoid_kd_loss, squared_error,
)

__all__ = [
    "activation_boundary_loss", "adaptive_kl_divergence", "affinity_loss", "angle_relation_loss",
    "attention_map", "attention_transfer_loss", "batch_correlation_loss", "batch_norm_margin",
    "binary_cross_entropy", "bounded_regression_loss", "channel_mask", "channel_wise_loss",
    "class_attention_loss", "class_correlation_loss", "consecutive_correlation_loss",
    "contrastive_log_normalizer", "contrastive_representation_loss", "correlation_congruence_loss",
    "cosine_loss", "cross_entropy", "curriculum_strength", "curriculum_temperature",
    "direction_relation_loss", "dist_loss", "distance_relation_loss", "dkd_loss",
    "factor_transfer_loss", "flow_loss", "flow_matrix", "generalized_js_divergence",
    "hard_dark_rank_loss", "hard_target_loss", "hierarchical_context_loss", "hint_loss",
    "inter_channel_correlation_loss", "intra_class_variation_loss", "itrd_correlation_loss",
    "itrd_mutual_loss", "kd_loss", "kl_divergence", "layer_attention", "logit_distance_loss",
    "logit_mse_loss", "margin_mse_loss", "marked_first", "masked_generation_loss", "match_sizes",
    "multi_level_loss", "neuron_selectivity_loss", "nkd_loss", "overhaul_loss", "position_mask",
    "prime_aware_loss", "probabilistic_transfer_loss", "projected_feature_loss",
    "remembered_embeddings", "reverse_gradient", "reverse_kl_divergence", "self_rank_loss",
    "self_target_loss", "semantic_calibration_loss", "sigmoid_kd_loss",
    "similarity_distribution_loss", "similarity_preserving_loss", "similarity_score_loss",
    "skew_kl_divergence", "skew_reverse_kl_divergence", "soft_target_loss",
    "softmax_regression_loss", "squared_error", "standardize_logits", "symmetric_kl_divergence",
    "taid_loss", "taid_schedule_init", "taid_schedule_update", "tempered_log_softmax",
    "tempered_softmax", "top_k_log_probs", "top_k_log_probs_with_tail", "total_variation",
    "ttm_loss", "universal_logit_loss", "variational_information_loss", "virtual_teacher_loss",
    "wsld_loss", "wttm_loss",
]
