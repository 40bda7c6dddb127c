"""Data: sets as arrays, batches as a function of the step, views made on the device."""

from kdjax._renamed import moved
from kdjax.data import text as text
from kdjax.data.arrays import from_arrays, from_source
from kdjax.data.batches import (
    batch_indices,
    eval_batches,
    example_order,
    train_batch,
    train_batches,
    train_rows,
)
from kdjax.data.crops import center_crop, random_crop, stretch
from kdjax.data.folders import from_folder, kind_of, with_unlabelled
from kdjax.data.labels import (
    NO_LABEL,
    class_labels,
    embedding_labels,
    number_labels,
    pixel_labels,
    several_labels,
)
from kdjax.data.mixtures import balanced_weights, class_weighted, cutmix, mixup, one_of
from kdjax.data.records import Joined, LazyImages, LazyLabels, is_lazy
from kdjax.data.sets import Dataset, Examples, Options, only_classes, take, with_all
from kdjax.data.sources import load
from kdjax.data.streaming import prefetch
from kdjax.data.views import (
    all_shifts,
    augment,
    erase,
    flip,
    jitter,
    pad_and_crop,
    translate,
    warp,
)

__all__ = [
    "NO_LABEL", "Dataset", "Examples", "Joined", "LazyImages", "LazyLabels", "Options",
    "all_shifts", "augment", "balanced_weights", "batch_indices", "center_crop", "class_labels",
    "class_weighted", "cutmix", "embedding_labels", "erase", "eval_batches", "example_order",
    "flip", "from_arrays", "from_folder", "from_source", "is_lazy", "jitter", "kind_of", "load",
    "mixup", "number_labels", "one_of", "only_classes", "pad_and_crop", "pixel_labels", "prefetch",
    "random_crop", "several_labels", "stretch", "take", "text", "train_batch", "train_batches",
    "train_rows", "translate", "warp", "with_all", "with_unlabelled",
]  # fmt: skip

_, __getattr__ = moved(__name__)
