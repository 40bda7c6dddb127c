"""Make a folder of photographs to try things on: `python docs/make_photos.py photos`.

504 PNG files of some 300 pixels a side in eight class folders: windows of eight upright strips of
the two photographs that scikit-learn ships. It needs no network.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

WINDOW, NUM_IMAGES = 128, 63


def make(root: Path, num_images: int = NUM_IMAGES) -> None:
    """Write images of each class into folders of a new folder."""
    rng = np.random.default_rng(0)
    for name in ("china", "flower"):
        for number, strip in enumerate(np.split(load_sample_image(f"{name}.jpg"), 4, axis=1)):
            folder = root / f"{name}-{number}"
            folder.mkdir(parents=True)
            for i in range(num_images):
                top, left = (rng.integers(0, side - WINDOW) for side in strip.shape[:2])
                window = strip[top : top + WINDOW, left : left + WINDOW]
                size = rng.integers(240, 400, 2).tolist()
                Image.fromarray(window).resize(size).save(folder / f"{i:03}.png", compress_level=1)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
