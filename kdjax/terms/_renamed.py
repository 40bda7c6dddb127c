"""The names of terms that `of` takes the place of: they work for one more release."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdjax import losses
from kdjax.terms._of import of
from kdjax.terms._wrapped import normalized
from kdjax.types import Array, Term


class _Old(NamedTuple):
    """A loss, the old parameters that named its features' paths, and defaults that it lacks."""

    loss: Callable[..., Array]
    paths: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}


_STAGES = ("student_features", "teacher_features")
_ONE = ("student_feature", "teacher_feature")
_MAPS = {"student_feature": "class_maps", "teacher_feature": "class_maps"}


def _channel_wise_loss(
    student_features: Array, teacher_features: Array, *, temperature: float | Array = 4.0
) -> Array:
    pair = losses.match_sizes(student_features, teacher_features)
    return losses.channel_wise_loss(*pair, temperature=temperature)


def _top_k_js(
    student_log_probs: Array, teacher_log_probs: Array, *, num_kept: int, beta: float | Array = 0.5
) -> Array:
    pair = losses.top_k_log_probs_with_tail(student_log_probs, teacher_log_probs, num_kept=num_kept)
    return losses.generalized_js_divergence(*pair, beta=beta)


_TABLE: Mapping[str, _Old] = {
    "adaptive_kl": _Old(losses.adaptive_kl_divergence),
    "affinity": _Old(losses.affinity_loss, _STAGES),
    "angle_relation": _Old(losses.angle_relation_loss, _STAGES),
    "attention": _Old(losses.attention_transfer_loss, _STAGES),
    "batch_correlation": _Old(losses.batch_correlation_loss),
    "channel_wise": _Old(_channel_wise_loss, _STAGES),
    "class_attention": _Old(losses.class_attention_loss, _ONE, _MAPS),
    "class_correlation": _Old(losses.class_correlation_loss),
    "correlation_congruence": _Old(losses.correlation_congruence_loss, _STAGES),
    "cosine": _Old(losses.cosine_loss, _STAGES),
    "direction_relation": _Old(losses.direction_relation_loss),
    "dist": _Old(losses.dist_loss),
    "distance_relation": _Old(losses.distance_relation_loss, _STAGES),
    "dkd": _Old(losses.dkd_loss),
    "flow": _Old(losses.flow_loss, _STAGES),
    "generalized_js": _Old(losses.generalized_js_divergence),
    "hard_dark_rank": _Old(losses.hard_dark_rank_loss, _STAGES),
    "hard_targets": _Old(losses.hard_target_loss),
    "intra_class_variation": _Old(losses.intra_class_variation_loss, _ONE),
    "logit_distance": _Old(losses.logit_distance_loss),
    "logit_mse": _Old(losses.logit_mse_loss),
    "multi_level": _Old(losses.multi_level_loss),
    "neuron_selectivity": _Old(losses.neuron_selectivity_loss, _STAGES),
    "nkd": _Old(losses.nkd_loss),
    "probabilistic_transfer": _Old(losses.probabilistic_transfer_loss, _STAGES),
    "reverse_kl": _Old(losses.reverse_kl_divergence),
    "similarity_preserving": _Old(losses.similarity_preserving_loss, _STAGES),
    "simkd": _Old(
        losses.projected_feature_loss,
        ("teacher_feature", "student_feature"),
        {"student_feature": "projected"},
    ),
    "skew_kl": _Old(losses.skew_kl_divergence),
    "skew_reverse_kl": _Old(losses.skew_reverse_kl_divergence),
    "symmetric_kl": _Old(losses.symmetric_kl_divergence),
    "top_k_js": _Old(_top_k_js),
    "total_variation": _Old(losses.total_variation),
    "ttm": _Old(losses.ttm_loss),
    "universal_logits": _Old(losses.universal_logit_loss),
    "virtual_teacher": _Old(losses.virtual_teacher_loss),
    "wsld": _Old(losses.wsld_loss),
    "wttm": _Old(losses.wttm_loss),
}
_NEW = {
    "channel_wise": "terms.of(losses.channel_wise_loss, ...), of maps of one size",
    "top_k_js": "terms.of(your own loss), of losses.top_k_log_probs_with_tail",
}


def renamed(name: str) -> Callable[..., Term]:
    """Return what makes the term of an old name, with its old arguments, and warn.

    Raises:
        AttributeError: if there never was a term of that name.
    """
    if name not in _TABLE:
        raise AttributeError(f"module 'kdjax.terms' has no attribute {name!r}")
    old = _TABLE[name]
    new = _NEW.get(name, f"terms.of(losses.{old.loss.__name__}, ...)")
    words = f"kdjax.terms.{name} goes with the next release: use {new}"
    warnings.warn(words, DeprecationWarning, stacklevel=3)

    def make(*paths: Any, **hyper_parameters: Any) -> Term:
        given = {**old.defaults, **dict(zip(old.paths, paths, strict=False)), **hyper_parameters}
        unit = name == "hard_dark_rank" and given.pop("normalize", False)
        sides = {path.split("_")[0]: given.pop(path) for path in old.paths if path in given}
        term = of(old.loss, **sides, **given)
        return normalized(term) if unit else term

    return make
