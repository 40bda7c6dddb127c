"""A teacher that is not there: what it said of the images is in a file."""

import zipfile
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import Dataset
from kdjax.models import Network, NetworkSpec
from kdjax.types import Array, Batch, Model, Outputs, PyTree, Variables

Logits = Mapping[str, np.ndarray]
"""By split: `train`, `validation`, `test`."""
_NAME = "stored logits"
_SPLITS = "train", "validation", "test"


def read(path: Path, dataset: Dataset, num_outputs: int | None) -> Logits:
    """Read a teacher's logits for all splits of a set.

    Args:
        path: of a `.npz` file with an array for each split, in the order of its examples.
        dataset: the examples.
        num_outputs: the logits of an image, or of a pixel; None for any number.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    try:
        with open(path, "rb") as stream, np.load(stream) as archive:
            held = dict(archive)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--stored-logits {path} is no .npz file of arrays") from error
    found = {}
    for split in _SPLITS:
        label = getattr(dataset, split).label
        if split not in held and len(label):
            raise ValueError(
                f"--stored-logits {path} holds {', '.join(held) or 'nothing'}, expected arrays "
                f"{', '.join(_SPLITS)}: logits of each image, in the order of the data's splits"
            )
        logits = held.get(split, np.zeros((0, num_outputs or 1)))
        pixels = label.shape[1:] if len(label.shape) == 3 else ()
        expected = len(label), *pixels, num_outputs or logits.shape[-1]
        if logits.dtype.kind != "f" or logits.shape != expected or np.isnan(logits).any():
            raise ValueError(
                f"--stored-logits {path}: {split} is {logits.dtype} of shape {logits.shape}, "
                f"expected floats of shape {expected}, none of them nan"
            )
        found[split] = logits.astype(np.float32)
    return found


def network(like: NetworkSpec) -> Network:
    """Return what stands for the teacher: it answers with the logits that it is fed."""
    spec = NetworkSpec(_NAME, (), like.num_classes, like.image_shape, like.mean, like.std)
    return Network(spec, Model(_nothing, _as_it_is), Variables({}, {}))


def is_stored(network: Network) -> bool:
    """Whether a network is what stands for a teacher that is not there."""
    return network.spec.name == _NAME


def inputs_fn(network: Network) -> Callable[[Batch], Any]:
    """Return what a network is fed of a batch: images, or what it answered before."""
    return itemgetter("teacher_logits" if is_stored(network) else "image")


def _nothing(key: Array, inputs: Array) -> Variables:
    return Variables({}, {})


def _as_it_is(
    params: PyTree, state: PyTree, inputs: Array, *, train: bool, key: Array | None = None
) -> tuple[Outputs, PyTree]:
    return Outputs(inputs), state
