"""Records of a prepared set, and columns of them that are read and decoded when they are used."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax._extras import MissingPackage
from kdjax.data.crops import CropFn, Size, stretch
from kdjax.data.images import View, decode
from kdjax.data.labels import LabelsFn, class_labels, numbered


class Reader(NamedTuple):
    """How the records of a set become arrays; worker processes get a copy.

    `open_fn` opens a split: what it returns has a length, and `__getitems__` of a list of indices
    gives records; where its labels are known unread it has them as `labels`. `where` says where
    the set lies, `num_bytes` how large the files of each split are. Images are all made `size`,
    or left as they are; without channels they are rows of numbers. `upright` says how, see
    `kdjax.data.images.View`. `labels_fn` reads the labels.
    """

    name: str
    where: str
    open_fn: Callable[[str], Any]
    num_bytes: Mapping[str, int]
    image_key: Any
    label_key: Any
    label_names: tuple[str, ...]
    channels: int
    size: Size | None
    crop_fn: CropFn = stretch
    upright: bool = False
    labels_fn: LabelsFn = class_labels

    def source(self, split: str) -> Any:
        """Open a split."""
        return self.open_fn(split)

    def has_labels(self, split: str, num_probed: int | None = None) -> bool:
        """Return whether a split has any label, by some of its records; TFDS writes -1 for none."""
        with reading(f"{self.name}: split {split} in {self.where}"):
            source = self.source(split)
            every = max(1, len(source) // (num_probed or len(source) or 1))
            chosen = range(0, len(source), every)
            return any(row[self.label_key] != -1 for row in rows_of(source, chosen))

    def checked(self, split: str, labels: Any, indices: np.ndarray) -> np.ndarray:
        """Return the labels of some examples of a split; those of classes as int32, if they are."""
        where = f"{self.name}: example {{}} of split {split}"
        found = self.labels_fn(self.name, labels)
        return found if found.ndim > 1 else numbered(where, found, self.label_names, indices)

    def decode(self, row: Any) -> np.ndarray:
        """Decode an image for evaluation, [height, width, channels] of uint8."""
        return self.decode_part(self.size, self.crop_fn, (0,), row)

    def decode_part(
        self, wanted: Size | None, crop_fn: CropFn, numbers: Sequence[int], row: Any
    ) -> np.ndarray:
        """Decode the part of an image that a function chooses, resized where a size is wanted."""
        value = row[self.image_key]
        if not self.channels:
            return np.asarray(value)
        is_path = isinstance(value, str | os.PathLike)
        what = str(value) if is_path else f"{self.name}: an image in {self.where}"
        # Not even a ValueError of Pillow's names the file.
        with reading(what, own=MissingPackage):
            return decode(value, View(self.channels, wanted, crop_fn, self.upright), numbers)

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

    @property
    def bytes_each(self) -> int:
        """How large the file of an example of the split is, on average; at least 1."""
        return max(1, self.reader.num_bytes[self.split] // max(1, len(self._source)))

    def read(self, indices: np.ndarray) -> Sequence[Any]:
        """Return the records at these indices, labels decoded, images not."""
        with reading(f"{self.reader.name}: split {self.split} in {self.reader.where}"):
            found: Sequence[Any] = self._source.__getitems__(self._indices[indices].tolist())
            return found

    def labels(self, rows: Sequence[Any], indices: np.ndarray) -> np.ndarray:
        """Return the labels of records that were read, [rows] of int32."""
        labels = [row[self.reader.label_key] for row in rows]
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


class Joined:
    """Columns of images, or of labels, one behind the other: NumPy arrays, or read when used."""

    def __init__(self, *parts: Any):
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype, self.shape = parts[0].dtype, (int(self._starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        return self.decoded((), indices, [(int(i),) for i in indices])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in self.parts]).astype(dtype or self.dtype)

    @property
    def records(self) -> "Joined":
        """Where it is read from: each part reads its own."""
        return self

    def read(self, indices: np.ndarray) -> Sequence[Any]:
        """Read nothing yet."""
        return ()

    def decoded(
        self, rows: Sequence[Any], indices: np.ndarray, numbers: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Return entries, each part's read and decoded as they are alone."""
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._starts, indices, side="right") - 1
        for place, part in enumerate(self.parts):
            at = np.flatnonzero(which == place)
            own = indices[at] - self._starts[place]
            if isinstance(part, Column):
                drawn = [numbers[int(i)] for i in at]
                found[at] = read_columns({"own": part}, own, drawn)["own"] if at.size else 0
            else:
                found[at] = part[own]
        return found

    def cropped(self, crop_fn: CropFn) -> "Joined":
        """Return the same images, seen in part; all of them must be read when they are used."""
        return Joined(*(part.cropped(crop_fn) for part in self.parts))


Column = LazyImages | LazyLabels | Joined


def is_lazy(arrays: Mapping[str, Any]) -> bool:
    """Return whether any of some arrays by name is read when it is used.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> data.is_lazy({"image": np.zeros((4, 8, 8, 1))})
        False
    """
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
def reading(what: str, *, own: type[Exception] = ValueError) -> Iterator[None]:
    """Raise a ValueError for what ArrayRecord and Pillow make of missing and damaged files.

    What is of type `own`, or says that a package is missing, is a line already.
    """
    try:
        yield
    except (MissingPackage, own):
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
