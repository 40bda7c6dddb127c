"""Sets of labeled images: what they are, how they are read and split."""

import difflib
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from kdjax.data.crops import CropFn
from kdjax.data.labels import NO_LABEL, LabelsFn
from kdjax.data.records import Joined, LazyImages, LazyLabels, Reader, Records, reading, rows_of

TEST_FRACTION = 0.2
MEMORY_LIMIT = 4 * 2**30
FILE_LIMIT = 4 * 2**30
# To normalize, where reading all would take long.
_NUM_STREAMED, _NUM_STREAMED_OWN, _NUM_IN_STATISTICS = 2_000, 256, 10_000


_ROLES = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}


class Examples(NamedTuple):
    """Images [examples, height, width, channels] of uint8 and labels [examples] of int32.

    Labels that are no classes have more axes: several for an example, numbers, a class of each
    pixel; see `Options`.

    The images are a NumPy array, or `LazyImages` where they would not fit in memory; the labels of
    a set that streams are `LazyLabels`. Both are `Joined` where some examples have no label, which
    is -1 then.
    """

    image: Any
    label: Any


class Dataset(NamedTuple):
    """A set, split in three. `mean` and `std` are per channel, of the training images in [0, 1].

    Rows of numbers may stand for images, of which each number is a channel.

    `splits` says what the parts are made of and `found`, for a set of one's own, what was there.
    `unlabelled` holds further training images, which have no labels, or is None.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    image_shape: tuple[int, ...]
    num_classes: int
    label_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    splits: str
    version: str = ""
    found: str = ""
    unlabelled: Any = None


class Parts(NamedTuple):
    """Which splits the parts of a set come from; None where one is cut from the training split."""

    train: str
    validation: str | None = None
    test: str | None = None


class How(NamedTuple):
    """How a set is read and split.

    What is cut from the training split is drawn from every class in proportion by `split_seed`, or
    by a permutation that depends on the size alone where that is None. Beyond the limit images are
    decoded when they are used; labels are read with them where the set streams.
    """

    validation_fraction: float
    split_seed: int | None
    memory_limit: int
    streaming: bool = False

    @property
    def num_in_statistics(self) -> int:
        """How many images are looked at to normalize."""
        if self.streaming:
            return _NUM_STREAMED
        return _NUM_IN_STATISTICS if self.memory_limit > 0 else _NUM_STREAMED_OWN


class Options(TypedDict, total=False):
    """What `from_folder`, `from_arrays` and `from_source` take besides, all of it optional.

    `validation_fraction`: share of the training examples to set aside where none are given for
    validation, in [0, 1), by default 0.1; a fifth of all is set aside before where none are given
    for testing. `split_seed`: by which they are drawn, from every class in proportion; 0 where it
    is None or not given. `image_size`: pixels a side that all images are resized to. `crop_fn`:
    which part of an image is resized, `stretch` (all of it, the default) or `center_crop`.
    `streaming`: whether images are decoded when they are used, not at once, as they always are
    beyond `memory_limit` bytes, by default 4 GiB. `labels_fn`: what labels are, by default classes;
    `several_labels`, `number_labels`, `pixel_labels` or `embedding_labels` of `kdjax.data` for
    others, with which `num_classes` is how many an example has, or its pixels can have.
    """

    validation_fraction: float
    split_seed: int | None
    image_size: int | None
    crop_fn: CropFn
    memory_limit: int
    streaming: bool
    labels_fn: LabelsFn


def role_of(name: str) -> str | None:
    """Return what a split of this name is usually for: train, validation, test, or not known."""
    return next((role for role, names in _ROLES.items() if name.lower() in names), None)


def check_options(function: str, validation_fraction: float, image_size: int | None) -> None:
    """Raise a ValueError that names the argument that is out of its range."""
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"{function}: validation_fraction is {validation_fraction}, expected [0, 1)"
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"{function}: image_size is {image_size}, expected 1 or more")


def read_set(reader: Reader, parts: Parts, how: How) -> Dataset:
    """Read a set that was found, whatever it lies in.

    Args:
        reader: of its records.
        parts: which splits are for what.
        how: it is read and split.

    Returns:
        The set; what there is to say of its origin is left open.

    Raises:
        ValueError: if it holds no labeled images of two or more classes.
    """
    whole = read_split(reader, parts.train, how)
    fraction = 0 if parts.validation else how.validation_fraction
    cut = _cut(reader.name, whole, fraction, 0 if parts.test else TEST_FRACTION, how.split_seed)
    train, validation, test = cut
    validation = read_split(reader, parts.validation, how) if parts.validation else validation
    test = read_split(reader, parts.test, how) if parts.test else test
    _check_classes(reader.name, len(reader.label_names), train.label)
    shape = train.image.shape[1:]
    for part in (validation, test):
        reader.of_shape(np.empty(part.image.shape[1:], np.uint8), shape)
    of_data = shape, len(reader.label_names), reader.label_names
    statistics = _statistics(train.image, how.num_in_statistics)
    return Dataset(reader.name, train, validation, test, *of_data, *statistics, "")


def read_own(reader: Reader, parts: Parts, found: str, options: Options) -> Dataset:
    """Read a set of one's own: split in proportion, and looked through for what spoils a test.

    Args:
        reader: of its records.
        parts: which splits are for what.
        found: what there is, in words.
        options: as the user gave them.

    Returns:
        The set. What is measured on test images that are training images too flatters: a warning
        counts them, where the images are in memory.

    Raises:
        ValueError: as `read_set`, and if a class has no training examples.
    """
    streams = options.get("streaming", False) or max(reader.num_bytes.values()) > FILE_LIMIT
    limit = 0 if streams else options.get("memory_limit", MEMORY_LIMIT)
    seed, fraction = options.get("split_seed") or 0, options.get("validation_fraction", 0.1)
    dataset = read_set(reader, parts, How(fraction, seed, limit))
    _check_taught(reader.where, dataset)
    _warn_of_duplicates(dataset)
    rest = parts.train if parts.test else "the rest"
    validation = parts.validation or f"{fraction:.0%} of {rest}"
    test = parts.test or f"{TEST_FRACTION:.0%} of {parts.train}"
    drawn = "" if parts.validation and parts.test else f", every class in proportion, seed {seed}"
    splits = f"training from {parts.train}, validation from {validation}, test from {test}{drawn}"
    return dataset._replace(splits=splits, found=found)


def read_split(reader: Reader, split: str, how: How) -> Examples:
    """Open a split that streams, or read it in one pass, its images too where they fit."""
    with reading(f"{reader.name}: split {split} in {reader.where}"):
        source = reader.source(split)
        if not len(source):
            raise ValueError(f"{reader.name}: split {split} has no examples")
        num_examples, first = len(source), reader.decode(source[0])
        shape = first.shape
        records = Records(reader, split, np.arange(num_examples))
        if how.streaming:
            return Examples(LazyImages(records, shape), LazyLabels(records))
        in_memory = num_examples * int(np.prod(shape)) <= how.memory_limit
        labels = getattr(source, "labels", None)
        images = np.empty((num_examples if in_memory else 0, *shape), first.dtype)
        if in_memory or labels is None:
            labels = []
            for i, row in enumerate(rows_of(source, range(num_examples))):
                labels.append(row[reader.label_key])
                if in_memory:
                    images[i] = reader.of_shape(reader.decode(row), shape)
        labels = reader.checked(split, labels, np.arange(num_examples))
        return Examples(images if in_memory else LazyImages(records, shape), labels)


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """Return examples by index, without reading what is not read yet.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> examples = data.Examples(np.zeros((10, 8, 8, 1)), np.arange(10))
        >>> print(data.take(examples, np.array([1, 3])).label)
        [1 3]
    """
    image, label = examples
    if not isinstance(image, LazyImages):
        return Examples(image[indices], label[indices])
    # Of a set that streams both stay columns of the same records, so that each is read once.
    records = image.records.take(indices)
    lazy = isinstance(label, LazyLabels)
    return Examples(image.of(records), label.of(records) if lazy else label[indices])


def only_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return a set of some of the classes alone, numbered as they are named.

    Args:
        dataset: a class for each example, whose labels are in memory.
        names: some of its `label_names`, two at least.

    Returns:
        The set, with the mean and deviation of its own training images.

    Raises:
        ValueError: if there is no such class, one is named twice, there are fewer than two, or
            examples have other labels.

    Example:
        >>> from kdjax import data
        >>> found = data.only_classes(data.load("digits"), ["8", "3"])
        >>> found.num_classes, found.label_names
        (2, ('8', '3'))
    """
    known = dataset.label_names
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            hint = (
                f"did you mean {' or '.join(near)}"
                if near
                else f"there are {', '.join(known[:10])}"
            )
            raise ValueError(f"only_classes: there is no class {name!r}; {hint}")
    if len(names) < 2 or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise ValueError(f"only_classes: expected two classes or more, each once, got {found}")
    number = np.full(len(known), -1, np.int32)
    number[[known.index(name) for name in names]] = np.arange(len(names))

    def kept(examples: Examples) -> Examples:
        label = examples.label
        if not isinstance(label, np.ndarray) or label.ndim != 1 or label.dtype.kind not in "iu":
            raise ValueError("only_classes: expected a class for each example, read beforehand")
        rows = np.flatnonzero(number[label] >= 0)
        return take(examples, rows)._replace(label=number[label[rows]])

    train = kept(dataset.train)
    mean, std = _statistics(train.image, _NUM_IN_STATISTICS)
    return dataset._replace(
        train=train,
        validation=kept(dataset.validation),
        test=kept(dataset.test),
        num_classes=len(names),
        label_names=tuple(names),
        mean=mean,
        std=std,
    )


def with_all(examples: Examples, unlabelled: Any) -> Examples:
    """Return examples and behind them images without labels: theirs is -1.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> examples = data.Examples(np.zeros((4, 8, 8, 1), np.float32), np.arange(4))
        >>> print(data.with_all(examples, np.ones((2, 8, 8, 1), np.float32)).label)
        [ 0  1  2  3 -1 -1]
    """
    missing = np.full(len(unlabelled), NO_LABEL, np.int32)
    parts = (examples.image, unlabelled), (examples.label, missing)
    held = all(isinstance(x, np.ndarray) for both in parts for x in both)
    return Examples(*(np.concatenate(x) if held else Joined(*x) for x in parts))


def _cut(
    name: str,
    whole: Examples,
    validation_fraction: float,
    test_fraction: float,
    seed: int | None,
) -> list[Examples]:
    """Split training examples into those to train, to validate and, where asked, to test on."""
    num_examples = len(whole.label)
    num_test = max(1, round(test_fraction * num_examples)) if test_fraction else 0
    num_validation = round(validation_fraction * (num_examples - num_test))
    num_kept = num_examples - num_test - num_validation
    if num_kept < 1:
        raise ValueError(f"{name}: {num_examples} training examples leave none to train on")
    if seed is None:
        order = np.random.default_rng(num_examples).permutation(num_examples)
    else:
        classes = np.asarray(whole.label)
        # What is no class has no proportion either.
        order = _in_proportion(classes if classes.ndim == 1 else np.zeros(num_examples), seed)
    parts = np.split(order, [num_kept, num_kept + num_validation])
    return [take(whole, np.sort(part)) for part in parts]


def _in_proportion(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return an order of examples, [examples], any stretch of which has of every class its share.

    Those of a class are drawn, and spread evenly from the beginning to the end.
    """
    drawn = np.random.default_rng([len(labels), seed]).permutation(len(labels))
    grouped = drawn[np.argsort(labels[drawn], kind="stable")]
    _, starts, counts = np.unique(labels[grouped], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    return grouped[np.argsort((place + 0.5) / np.repeat(counts, counts), kind="stable")]


def _check_classes(name: str, num_classes: int, labels: Any) -> None:
    """Raise a ValueError if there is nothing to tell apart."""
    if len(labels.shape) > 1:
        return
    if num_classes < 2:
        raise ValueError(
            f"{name} has {num_classes} class, expected two or more: add examples of another one"
        )
    if isinstance(labels, np.ndarray) and np.all(labels == labels[0]):
        raise ValueError(f"{name}: all training examples have label {labels[0]}, expected two")


def _check_taught(where: str, dataset: Dataset) -> None:
    """Raise a ValueError if a class is met after the training alone."""
    if len(dataset.train.label.shape) > 1:
        return
    for part in ("validation", "test"):
        missing = np.setdiff1d(getattr(dataset, part).label, dataset.train.label)
        if missing.size:
            names = ", ".join(dataset.label_names[i] for i in missing[:8])
            raise ValueError(
                f"{where}: no training example is of class {names}, which {part} examples are; add "
                "some, or leave those out"
            )


def _warn_of_duplicates(dataset: Dataset) -> None:
    """Count the test images that are training images too."""
    train, test = dataset.train.image, dataset.test.image
    if not isinstance(train, np.ndarray) or not isinstance(test, np.ndarray):
        return
    known = set(map(_digest, train))
    count = sum(_digest(image) in known for image in test)
    if count:
        warnings.warn(
            f"{dataset.name}: {count} of {len(test)} test images are training images too, pixel "
            "for pixel; what is measured on them flatters",
            stacklevel=4,
        )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _statistics(images: Any, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel, of some of the images, in [0, 1]."""
    if len(images.shape) == 2:
        # Rows of numbers, in a unit of which networks take white to be 255.
        mean, std = images.mean(0), images.std(0)
        return mean / 255, np.where(std > 0, std, 1) / 255
    num_images = min(len(images), num_images)
    chosen = np.linspace(0, len(images) - 1, num_images).astype(np.int64)
    count, total, squares = 0, np.uint64(0), np.uint64(0)
    # Whole numbers, a few images at a time: exact, and large images need little memory.
    for start in range(0, num_images, 256):
        pixels = images[chosen[start : start + 256]].astype(np.uint32)
        count += pixels[..., 0].size
        total = total + pixels.sum((0, 1, 2), dtype=np.uint64)
        squares = squares + (pixels**2).sum((0, 1, 2), dtype=np.uint64)
    mean = np.asarray(total / count)
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    # A channel that never changes is left as it is.
    return (mean / 255).astype(np.float32), np.where(std > 1e-3, std, 1).astype(np.float32)
