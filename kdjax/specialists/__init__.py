"""Specialists for classes that a generalist confuses, section 5 of Hinton, Vinyals & Dean (2015).

`confusable_classes` finds their classes; `specialist_labels`, `specialist_indices` and
`specialist_head` make their labels, batches and initial values; `dustbin_shift` corrects what they
were trained on; `active_specialists` and `combine` ask them. `match_class_prior` corrects a student
that has not seen all classes, section 3.
"""

# fmt: off
# isort: off
from kdjax.specialists._clusters import (
    confusable_classes, nearest_centroids, online_kmeans, prediction_covariance,
)
from kdjax.specialists._inference import (
    active_specialists, combine, default_optimizer, disagreement,
)
from kdjax.specialists._priors import dustbin_shift, match_class_prior, shift_dustbin
from kdjax.specialists._training import (
    collapse, membership, specialist_head, specialist_indices, specialist_labels,
)

__all__ = [
    "active_specialists", "collapse", "combine", "confusable_classes", "default_optimizer",
    "disagreement", "dustbin_shift", "match_class_prior", "membership", "nearest_centroids",
    "online_kmeans", "prediction_covariance", "shift_dustbin", "specialist_head",
    "specialist_indices", "specialist_labels",
]
