"""Made-up photographs in the format of ImageNet: JPEG files of 500 x 375 pixels, some 100 kB."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

HEIGHT, WIDTH, NUM_CLASSES = 375, 500, 1000


class Photographs(tfds.core.GeneratorBasedBuilder):
    """Noise on all scales, which JPEG cannot make much smaller than it makes photographs."""

    VERSION = tfds.core.Version("1.0.0")
    num_examples = 512

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        sizes = {"train": self.num_examples, "validation": max(1, self.num_examples // 8)}
        return {split: self._generate_examples(size) for split, size in sizes.items()}

    def _generate_examples(self, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng(size)
        for i in range(size):
            yield i, {"image": _photograph(rng), "label": i % NUM_CLASSES}


def prepare(root: Path, num_examples: int) -> None:
    """Write the set as ArrayRecord files.

    Args:
        root: the directory of prepared sets.
        num_examples: photographs to train on.
    """
    Photographs.num_examples = num_examples
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        Photographs(data_dir=root, file_format="array_record").download_and_prepare()


def _photograph(rng: np.random.Generator) -> io.BytesIO:
    from PIL import Image

    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for scale, strength in ((64, 60.0), (16, 30.0), (4, 20.0), (1, 16.0)):
        shape = (-(-HEIGHT // scale), -(-WIDTH // scale), 3)
        coarse = strength * rng.standard_normal(shape, np.float32)
        pixels += np.kron(coarse, np.ones((scale, scale, 1), np.float32))[:HEIGHT, :WIDTH]
    file = io.BytesIO()
    Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    file.seek(0)
    return file
