"""One image of any kind, a file, an array, an image of Pillow, as an array of bytes."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax._extras import needs
from kdjax.data.crops import Box, CropFn, Size

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of what an image with so many channels is."""
LEAST_SIDE = 4
"""Pixels a side below which nobody sees anything."""
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_ORIENTATION = 0x0112
_ROUNDING = 1e-3


class View(NamedTuple):
    """How images become arrays: their channels, and what is resized to which size, if any.

    `upright` images are turned as the camera was held, as their file says, and refused where they
    are too small to show anything.
    """

    channels: int
    size: Size | None
    crop_fn: CropFn
    upright: bool = False


def decode(value: Any, view: View, numbers: Sequence[int]) -> np.ndarray:
    """Decode an image.

    Args:
        value: bytes, the path of a file, an image of Pillow, an array, or a mapping with `bytes` or
            `path`.
        view: what is wanted of it.
        numbers: whole numbers to draw the crop from.

    Returns:
        [height, width, channels] of uint8.
    """
    image, box, wanted = opened(value), _WHOLE, view.size
    if view.upright:
        image = _turned(image)
        if min(image.size) < LEAST_SIDE:
            width, height = image.size
            raise ValueError(f"it has {height} x {width} pixels, expected {LEAST_SIDE} or more")
    if wanted:
        box = view.crop_fn((image.height, image.width), wanted, numbers)
        # JPEG can be decoded at a half, a quarter, an eighth: much less work.
        image.draft(None, _least_size(box, wanted))
    image.load()
    image = in_mode(image, CHANNELS[view.channels])
    if wanted and (box != _WHOLE or (image.height, image.width) != wanted):
        bilinear: Any = 2
        image = image.resize(wanted[::-1], bilinear, box=_pixels(box, image))
    return np.asarray(image).reshape(image.height, image.width, view.channels)


def opened(value: Any) -> "Image":
    """Open an image, whose pixels are read later where it is a file."""
    with needs("data"):
        from PIL import Image

    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, str | os.PathLike):
        # All of it: Pillow would hold the file open until the pixels are read.
        with open(value, "rb") as file:
            return Image.open(io.BytesIO(file.read()))
    if isinstance(value, Image.Image):
        return value
    pixels = as_bytes("an image", channels_last("an image", np.asarray(value)[None]))[0]
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def seen(value: Any) -> tuple[Size, int]:
    """Return height and width of an image as it is held upright, and its channels: 1 or 3."""
    with needs("data"):
        from PIL import Image

    is_path = isinstance(value, str | os.PathLike)
    image = Image.open(value) if is_path else opened(value)
    size = (image.height, image.width)
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    # To look for it in a PNG without would decode all of it.
    turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) > 4
    if is_path:
        image.close()
    return size[::-1] if turned else size, 1 if gray else 3


def in_mode(image: "Image", mode: str) -> "Image":
    """Convert an image: 16 bits to 8, what shows through to white."""
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow cuts off what is above 255; the upper byte is the image in 8 bits.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == mode:
        return image
    if mode != "RGBA" and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        image = Image.alpha_composite(white, clear).convert("RGB")
    return image.convert(mode)


def as_bytes(what: str, images: np.ndarray) -> np.ndarray:
    """Return images of any type of numbers as uint8.

    Args:
        what: they are called.
        images: uint8, other whole numbers from 0 to 255, uint16 up to 65,535, of which the upper
            byte is taken, floats in [0, 1], or booleans.

    Raises:
        ValueError: if they are none of these.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images * np.uint8(255)
    if images.dtype.kind == "V":
        # Where bfloat16 is: NumPy does not know it.
        images = images.astype(np.float32)
    kind, low, high = images.dtype.kind, np.min(images, initial=0), np.max(images, initial=0)
    if images.dtype == np.uint16:
        return (images >> 8).astype(np.uint8)
    if kind in "iu" and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if kind == "f" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
        parts = np.array_split(images, max(1, len(images) // 256))
        return np.concatenate([np.round(255 * np.clip(x, 0, 1)).astype(np.uint8) for x in parts])
    raise ValueError(
        f"{what}: pixels are {images.dtype} from {low:g} to {high:g}, expected uint8, whole "
        "numbers from 0 to 255, uint16, or floats from 0 to 1"
    )


def channels_last(what: str, images: np.ndarray) -> np.ndarray:
    """Return images as [examples, height, width, channels]; channels that come first are moved.

    Raises:
        ValueError: if they have another shape.
    """
    shape = images.shape
    if len(shape) == 3:
        images = images[..., None]
    elif len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS:
        images = np.moveaxis(images, 1, -1)
    if images.ndim != 4 or images.shape[3] not in CHANNELS or min(images.shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"{what} of shape {shape}: expected [examples, height, width, channels] with 1, 3 or 4 "
            f"channels, or none, and {LEAST_SIDE} pixels a side or more"
        )
    return images


def raw(value: Any) -> bytes:
    """Return what tells an image from others, without decoding a file."""
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str | os.PathLike):
        with open(value, "rb") as file:
            return file.read()
    return value.tobytes() if hasattr(value, "tobytes") else np.asarray(value).tobytes()


def _turned(image: "Image") -> "Image":
    """Turn an image as the camera was held; most need nothing, and stay undecoded."""
    from PIL import ImageOps

    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned: Image = ImageOps.exif_transpose(image)
    return turned


def _least_size(box: Box, wanted: Size) -> tuple[int, int]:
    """Return the least width and height of an image of which a part has the size wanted."""
    width, height = wanted[1] / (box[2] - box[0]), wanted[0] / (box[3] - box[1])
    return int(np.ceil(width)), int(np.ceil(height))


def _pixels(box: Box, image: "Image") -> tuple[float, float, float, float]:
    """Return a part of an image in pixels; rounding must not carry an edge past the image's."""
    width, height = image.size
    left, top, right, bottom = box
    return left * width, top * height, min(right * width, width), min(bottom * height, height)
