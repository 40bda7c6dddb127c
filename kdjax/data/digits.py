"""The embedded data set: UCI digits as scikit-learn ships them, as a TFDS builder of ours."""

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdjax._extras import needs

with needs("data"):
    import tensorflow_datasets as tfds

_NUM_TEST = 450


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels: 1,347 to train on, 450 to test on.

    Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1))
        label = tfds.features.ClassLabel(names=[str(digit) for digit in range(10)])
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels (UCI, as scikit-learn ships them).",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with needs("data"):
            from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        order = np.random.default_rng(0).permutation(len(images))
        parts = {"train": order[:-_NUM_TEST], "test": order[-_NUM_TEST:]}
        return {
            split: self._generate_examples(images[part], digits.target[part])
            for split, part in parts.items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": _png(image), "label": int(label)}


def prepare(data_dir: Path) -> Path:
    """Write the set as ArrayRecord files, without TensorFlow, unless it is there already.

    It is made in a folder of its own and moved into place whole: a second process, or a kill in
    the middle, cannot leave half a set.

    Args:
        data_dir: the directory of prepared sets.

    Returns:
        The folder with the prepared set.

    Raises:
        OSError: if it cannot be written.
    """
    target = data_dir / "digits" / str(Digits.VERSION)
    if (target / "dataset_info.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=data_dir) as scratch:
        builder = Digits(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as after:
            tfds.disable_progress_bar()
            after.callback(tfds.enable_progress_bar)
            builder.download_and_prepare()
        _put(Path(builder.data_dir), target, Path(scratch))
    return target


def _put(made: Path, target: Path, scratch: Path) -> None:
    """Move the set into place, unless another process was faster."""
    while not (target / "dataset_info.json").exists():
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # A folder without a set is in the way; another process may be moving it as well.
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, tempfile.mkdtemp(dir=scratch))


def _png(image: np.ndarray) -> io.BytesIO:
    """Encode an image: TFDS needs TensorFlow for an array, and none for a file with PNG bytes."""
    with needs("data"):
        from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    file.seek(0)
    return file
