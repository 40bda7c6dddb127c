"""Records of a prepared set, and columns of them that are read and decoded when they are used."""

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax._extras import needs
from kdjax.data.crops import Box, CropFn, Size, stretch

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Reader(NamedTuple):
    """How the records of a set become arrays; worker processes get a copy."""

    name: str
    builder: Any
    image_key: str
    label_key: str
    size: int | None
    crop_fn: CropFn = stretch

    @property
    def label(self) -> Any:
        """The feature that holds the label."""
        return self.builder.info.features[self.label_key]

    def source(self, split: str) -> Any:
        """Open a split; images, and whatever else there is, stay undecoded."""
        with needs("data"):
            import tensorflow_datasets as tfds

        others = [key for key in self.builder.info.features if key != self.label_key]
        decoders = {key: tfds.decode.SkipDecoding() for key in others}
        return self.builder.as_data_source(split, decoders=decoders)

    def has_labels(self, split: str, num_probed: int | None = None) -> bool:
        """Return whether a split has any label, by some of its records; TFDS writes -1 for none."""
        with reading(f"{self.name}: split {split} in {self.builder.data_dir}"):
            source = self.source(split)
            every = max(1, len(source) // (num_probed or len(source) or 1))
            chosen = range(0, len(source), every)
            return any(row[self.label_key] != -1 for row in rows_of(source, chosen))

    def checked(self, split: str, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return the labels of some examples of a split as int32 if they are those of classes."""
        num_classes = self.label.num_classes
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if wrong.size:
            i = wrong[0]
            raise ValueError(
                f"{self.name}: example {indices[i]} of split {split} has label {labels[i]}, "
                f"but there are {num_classes} classes"
            )
        return labels.astype(np.int32)

    def decode(self, row: Any) -> np.ndarray:
        """Decode an image for evaluation, [height, width, channels] of uint8."""
        wanted = None if self.size is None else (self.size, self.size)
        return self.decode_part(wanted, self.crop_fn, (0,), row)

    def decode_part(
        self, wanted: Size | None, crop_fn: CropFn, numbers: Sequence[int], row: Any
    ) -> np.ndarray:
        """Decode the part of an image that a function chooses, resized where a size is wanted."""
        with needs("data"):
            from PIL import Image

        feature = self.builder.info.features[self.image_key]
        channels = feature.shape[-1] or 3
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if mode is None or feature.np_dtype != np.uint8:
            raise ValueError(f"{self.name}: only 8-bit images of 1, 3 or 4 channels are supported")
        box = _WHOLE
        with reading(f"{self.name}: an image in {self.builder.data_dir}"):
            image: Image.Image = Image.open(io.BytesIO(row[self.image_key]))
            if wanted:
                box = crop_fn((image.height, image.width), wanted, numbers)
                # JPEG can be decoded at a half, a quarter, an eighth: much less work.
                image.draft(None, _least_size(box, wanted))
            image.load()
        if image.mode.startswith("I"):
            # Pillow cuts off what is above 255; the upper byte is the image in 8 bits.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image if image.mode == mode else image.convert(mode)
        if wanted and (box != _WHOLE or (image.height, image.width) != wanted):
            image = image.resize(wanted[::-1], Image.Resampling.BILINEAR, box=_pixels(box, image))
        return np.asarray(image).reshape(image.height, image.width, channels)

    def of_shape(self, image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the image if it has this shape."""
        if image.shape != shape:
            raise ValueError(
                f"{self.name}: images differ in size ({shape} and {image.shape}); "
                "resize them with image_size"
            )
        return image


class Records:
    """Some records of a split, read when they are asked for by an array of indices."""

    def __init__(self, reader: Reader, split: str, indices: np.ndarray):
        self.reader, self.split, self._indices = reader, split, indices
        self._source = reader.source(split)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> Sequence[Any]:
        """Return the records at these indices, labels decoded, images not."""
        with reading(f"{self.reader.name}: split {self.split} in {self.reader.builder.data_dir}"):
            found: Sequence[Any] = self._source.__getitems__(self._indices[indices].tolist())
            return found

    def labels(self, rows: Sequence[Any], indices: np.ndarray) -> np.ndarray:
        """Return the labels of records that were read, [rows] of int32."""
        labels = np.array([row[self.reader.label_key] for row in rows], np.int64)
        return self.reader.checked(self.split, labels, self._indices[indices])

    def take(self, indices: np.ndarray) -> "Records":
        """Return the records at these indices, unread."""
        return Records(self.reader, self.split, self._indices[indices])


class LazyImages:
    """Images that are read and decoded when they are asked for, by an array of indices.

    They stand in for a NumPy array of shape [examples, height, width, channels] where that would
    not fit in memory. With `crop_fn` it depends on the numbers of `decoded` what part of an image
    is seen.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, records: Records, shape: tuple[int, ...], crop_fn: CropFn | None = None
    ) -> None:
        self.records, self.crop_fn = records, crop_fn
        self.shape = (len(records), *shape)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        return self.decoded(self.records.read(indices), indices, [(int(i),) for i in indices])

    def decoded(
        self, rows: Sequence[Any], indices: np.ndarray, numbers: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Decode records that were read, each with whole numbers to draw its crop from."""
        reader, (height, width, channels) = self.records.reader, self.shape[1:]
        if self.crop_fn is None:
            images = map(reader.decode, rows)
        else:
            part = functools.partial(reader.decode_part, (height, width), self.crop_fn)
            images = map(part, numbers, rows)
        return np.stack([reader.of_shape(x, (height, width, channels)) for x in images])

    def cropped(self, crop_fn: CropFn) -> "LazyImages":
        """Return the same images, seen in part, such as by `random_crop`; of the same shape."""
        return LazyImages(self.records, self.shape[1:], crop_fn)

    def of(self, records: Records) -> "LazyImages":
        """Return images of other records of the set, with the same crops."""
        return LazyImages(records, self.shape[1:], self.crop_fn)


class LazyLabels:
    """Labels that are read with their images; `numpy.asarray` reads all of them."""

    dtype = np.dtype(np.int32)

    def __init__(self, records: Records):
        self.records = records
        self.shape = (len(records),)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        return self.decoded(self.records.read(indices), indices, ())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        chunks = np.split(np.arange(len(self)), range(1024, len(self), 1024))
        return np.concatenate([self[chunk] for chunk in chunks]).astype(dtype or self.dtype)

    def decoded(
        self, rows: Sequence[Any], indices: np.ndarray, numbers: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Return the labels of records that were read."""
        return self.records.labels(rows, indices)

    def of(self, records: Records) -> "LazyLabels":
        """Return the labels of other records of the set."""
        return LazyLabels(records)


Column = LazyImages | LazyLabels


def is_lazy(arrays: Mapping[str, Any]) -> bool:
    """Return whether any of some arrays by name is read when it is used."""
    return any(isinstance(array, Column) for array in arrays.values())


def read_columns(
    columns: Mapping[str, Column], indices: np.ndarray, numbers: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """Read columns of the same examples, each record once.

    Args:
        columns: by name.
        indices: the examples, [rows].
        numbers: for each of them whole numbers to draw its crop from.

    Returns:
        The columns' rows.
    """
    records = {id(column.records): column.records for column in columns.values()}
    rows = {key: found.read(indices) for key, found in records.items()}
    return {
        name: column.decoded(rows[id(column.records)], indices, numbers)
        for name, column in columns.items()
    }


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise a ValueError for what ArrayRecord and Pillow make of missing and damaged files."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{what} cannot be read: {first_line(error)}") from error


def rows_of(source: Any, indices: Sequence[int]) -> Iterator[Any]:
    """Read records, a thousand at a time."""
    for start in range(0, len(indices), 1024):
        yield from source.__getitems__(list(indices[start : start + 1024]))


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def _least_size(box: Box, wanted: Size) -> tuple[int, int]:
    """Return the least width and height of an image of which a part has the size wanted."""
    width, height = wanted[1] / (box[2] - box[0]), wanted[0] / (box[3] - box[1])
    return int(np.ceil(width)), int(np.ceil(height))


def _pixels(box: Box, image: Any) -> tuple[float, float, float, float]:
    """Return a part of an image in pixels; rounding must not carry an edge past the image's."""
    width, height = image.size
    left, top, right, bottom = box
    return left * width, top * height, min(right * width, width), min(bottom * height, height)
