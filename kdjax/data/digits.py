"""The embedded data set: UCI digits as scikit-learn ships them, in memory, like a set of TFDS."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kdjax._extras import needs

_NUM_TEST = 450


class Digits:
    """1,797 handwritten digits of 8x8 pixels: 1,347 to train on, 450 to test on.

    It stands in for a builder of TFDS, and needs no folder to be prepared in.

    Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.
    """

    data_dir = "scikit-learn"

    @property
    def info(self) -> Any:
        """What TFDS knows of a set, as far as it is asked."""
        return _info()

    def as_data_source(self, split: str, decoders: object = None) -> "Rows":
        """Open a split; images stay undecoded."""
        return Rows(*_parts()[split])


class Rows(Sequence[dict[str, Any]]):
    """Records: an image file, which takes no time to make, and a label."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        height, width = self._images.shape[1:]
        image = b"P5 %d %d 255 " % (width, height) + self._images[index].tobytes()
        return {"image": image, "label": int(self._labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


@functools.cache
def _parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read images [examples, 8, 8] of uint8 and labels of both splits."""
    with needs("data"):
        spec = importlib.util.find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name="sklearn")
    # What `sklearn.datasets.load_digits` reads, without the seconds that its import takes.
    table = np.loadtxt(Path(spec.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = {"train": order[:-_NUM_TEST], "test": order[-_NUM_TEST:]}
    return {split: (images[part], labels[part]) for split, part in chosen.items()}


@functools.cache
def _info() -> SimpleNamespace:
    with needs("data"):
        from tensorflow_datasets import features

    image = features.Image(shape=(8, 8, 1))
    label = features.ClassLabel(names=[str(digit) for digit in range(10)])
    splits = {
        split: SimpleNamespace(num_bytes=x.nbytes, num_examples=len(x))
        for split, (x, _) in _parts().items()
    }
    return SimpleNamespace(
        features={"image": image, "label": label},
        supervised_keys=("image", "label"),
        splits=splits,
        version="1.0.0",
    )
