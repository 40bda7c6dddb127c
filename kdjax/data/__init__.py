"""Data: TFDS sets as arrays, batches as a function of the step, views made on the device."""

from kdjax.data.batches import batch_indices, eval_batches, example_order, train_batches
from kdjax.data.sources import Dataset, Examples, LazyImages, load, take
from kdjax.data.views import all_shifts, augment, flip, jitter, pad_and_crop, translate, warp

__all__ = [
    "Dataset",
    "Examples",
    "LazyImages",
    "all_shifts",
    "augment",
    "batch_indices",
    "eval_batches",
    "example_order",
    "flip",
    "jitter",
    "load",
    "pad_and_crop",
    "take",
    "train_batches",
    "translate",
    "warp",
]
