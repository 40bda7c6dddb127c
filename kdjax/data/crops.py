"""Which part of an image a network sees, as fractions of its sides: pure functions of its size."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the image's width and height."""

CropFn = Callable[[Size, Size, Sequence[int]], Box]
"""(size of the image, size wanted, whole numbers to draw from) -> the part to be resized."""

_MIDDLE = 7 / 8
_AREAS = (0.08, 1.0)
_RATIOS = (3 / 4, 4 / 3)
_NUM_TRIES = 10


def stretch(size: Size, wanted: Size, numbers: Sequence[int]) -> Box:
    """Return the whole image, whatever that does to its proportions.

    Example:
        >>> from kdjax import data
        >>> [round(x, 3) for x in data.stretch((400, 300), (32, 32), (0, 0, 0))]
        [0.0, 0.0, 1.0, 1.0]
    """
    return 0.0, 0.0, 1.0, 1.0


def center_crop(size: Size, wanted: Size, numbers: Sequence[int]) -> Box:
    """Return the middle: of the largest window with the proportions wanted, 7/8 a side.

    This is the field's view in evaluation: the shorter side scaled to 256 pixels, the middle 224.

    Args:
        size: of the image.
        wanted: what the window will be resized to.
        numbers: not used: nothing is drawn.

    Returns:
        The window.

    Example:
        >>> from kdjax import data
        >>> [round(x, 3) for x in data.center_crop((400, 300), (32, 32), (0, 0, 0))]
        [0.062, 0.172, 0.938, 0.828]
    """
    return _middle(size, wanted, _MIDDLE)


def random_crop(size: Size, wanted: Size, numbers: Sequence[int]) -> Box:
    """Return a window of 8 to 100 % of the area, its sides between 3:4 and 4:3, anywhere.

    Args:
        size: of the image.
        wanted: what the window will be resized to.
        numbers: whole numbers, not negative; the same ones give the same window.

    Returns:
        The window; the largest one in the middle where ten draws are too long for the image.

    Example:
        >>> from kdjax import data
        >>> window = data.random_crop((400, 300), (32, 32), (0, 7, 1))
        >>> all(0 <= x <= 1 for x in window)
        True

    References:
        Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, "Going Deeper
        with Convolutions", 2014, arXiv:1409.4842, section 6.
    """
    rng = np.random.Generator(np.random.Philox(list(numbers)))
    (height, width), low, high = size, math.log(_RATIOS[0]), math.log(_RATIOS[1])
    for _ in range(_NUM_TRIES):
        area, ratio = rng.uniform(*_AREAS), math.exp(rng.uniform(low, high))
        # Fractions of the sides whose product is the area and whose pixels have the ratio.
        x, y = (math.sqrt(area * r) for r in (ratio * height / width, width / height / ratio))
        if x <= 1 and y <= 1:
            left, top = rng.uniform(0, 1 - x), rng.uniform(0, 1 - y)
            return left, top, left + x, top + y
    return _middle(size, wanted, 1.0)


def _middle(size: Size, wanted: Size, share: float) -> Box:
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    y, x = (share * want / (scale * have) for want, have in zip(wanted, size, strict=True))
    return (1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2
