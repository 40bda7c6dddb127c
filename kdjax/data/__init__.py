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
from kdjax.data.mixtures import balanced_weights, class_weighted, cutmix, mixup, one_of
from kdjax.data.records import Joined, LazyImages, LazyLabels, is_lazy
from kdjax.data.sets import Dataset, Examples, Options, take, with_all
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
    "Dataset", "Examples", "Joined", "LazyImages", "LazyLabels", "Options", "all_shifts", "augment",
    "balanced_weights", "batch_indices", "center_crop", "class_weighted", "cutmix", "erase",
    "eval_batches", "example_order", "flip", "from_arrays", "from_folder", "from_source", "is_lazy",
    "jitter", "kind_of", "load", "mixup", "one_of", "pad_and_crop", "prefetch", "random_crop",
    "stretch", "take", "text", "train_batch", "train_batches", "train_rows", "translate", "warp",
    "with_all", "with_unlabelled",
]  # fmt: skip

_, __getattr__ = moved(__name__)
