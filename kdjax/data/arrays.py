"""Sets of one's own in memory, in .npy files, or behind an index: arrays and other sources."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from kdjax._extras import MissingPackage, needs
from kdjax.data.crops import Size, stretch
from kdjax.data.images import as_bytes, channels_last, seen
from kdjax.data.labels import (
    LabelsFn,
    check_labels,
    class_labels,
    embedding_labels,
    in_float32,
    names_of,
)
from kdjax.data.records import Reader, reading
from kdjax.data.sets import Dataset, Options, Parts, check_options, read_own, role_of

Pair = tuple[Any, Any]
"""Images and labels."""

_IMAGES = ("images", "image", "img", "x", "data", "pixels")
_LABELS = (
    *("labels", "label", "y", "targets", "target", "classes", "class", "fine_label"),
    *("values", "embeddings", "masks"),
)
_NAMES = ("label_names", "class_names")
_KINDS = {"images": _IMAGES, "labels": _LABELS, "names": _NAMES}
_TRAIN, _VALIDATION, _TEST = "train", "validation", "test"
_NUM_PROBED = 64
_DARK = 32
"""Of 255: the brightest pixel of all images is no darker."""
LARGEST_SIDE = 64
"""Pixels a side up to which images of a folder that are of one size stay as they are."""
_USUAL_SIDE = 32


class Arrays:
    """Records of arrays: images [examples, height, width, channels] and labels [examples]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class Each:
    """Records of any source that has a length and an index, read one by one."""

    def __init__(self, source: Any, labels: Any = None):
        self._source, self.labels = source, labels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(index)]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self[index] for index in indices]


def from_arrays(
    images: Any,
    labels: Any,
    *,
    validation: Pair | None = None,
    test: Pair | None = None,
    label_names: Sequence[str] | None = None,
    name: str = "arrays",
    **options: Unpack[Options],
) -> Dataset:
    """Make a set of arrays.

    Args:
        images: to train on, [examples, height, width, channels] or without channels, or with
            channels first: uint8, or what `kdjax.data.images.as_bytes` takes, such as floats in
            [0, 1]. Or rows of numbers, [examples, n], of any kind and size.
        labels: their classes, [examples]: whole numbers from 0, or names; others with `labels_fn`.
        validation: images and labels to make choices on; by default some are set aside.
        test: images and labels to measure on; by default some are set aside.
        label_names: of the classes by number; by default the names that there are, sorted, or
            numbers up to the largest.
        name: of the set.
        **options: how the set is read and split, see `Options`.

    Returns:
        The set.

    Raises:
        ValueError: if images or labels are not what they should be, naming shape, type or example.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
        >>> images[np.arange(20), 0, 0, 0] = np.arange(20)  # twenty different ones
        >>> dataset = data.from_arrays(images, labels)
        >>> len(dataset.train.label), len(dataset.test.label), dataset.num_classes
        (14, 4, 2)
    """
    given = {_TRAIN: (images, labels), _VALIDATION: validation, _TEST: test}
    splits = {
        split: _pair(f"from_arrays: {split}", *pair, _labels_fn(options))
        for split, pair in given.items()
        if pair is not None
    }
    return _of_arrays(name, name, splits, label_names, options)


def from_source(
    train: Any,
    *,
    validation: Any = None,
    test: Any = None,
    image_key: Any = None,
    label_key: Any = None,
    label_names: Sequence[str] | None = None,
    name: str = "source",
    **options: Unpack[Options],
) -> Dataset:
    """Make a set of anything that has a length and gives an example for an index.

    That is a data set of PyTorch, a source of Grain, a list, or a `datasets.Dataset` of Hugging
    Face; a `datasets.DatasetDict` brings its own splits. Examples that do not fit in memory are
    asked for while they are used, by several threads at once.

    Args:
        train: examples to train on: mappings, or tuples of an image and a label first. An image is
            an array, an image of Pillow, encoded bytes or a path.
        validation: examples to make choices on; by default some of `train` are set aside.
        test: examples to measure on; by default some of `train` are set aside.
        image_key: where an example has its image; found out by default.
        label_key: where an example has its label; found out by default.
        label_names: of the classes by number; by default those that the source knows, or the names
            that there are, sorted, or numbers up to the largest.
        name: of the set.
        **options: how the set is read and split, see `Options`.

    Returns:
        The set. Images that differ in size are resized, as by `from_folder`.

    Raises:
        TypeError: if a source has no length or no index.
        ValueError: if images or labels are not what they should be.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> examples = [(np.full((8, 8, 3), i, np.uint8), i % 2) for i in range(20)]
        >>> data.from_source(examples, label_names=["even", "odd"]).image_shape
        (8, 8, 3)
    """
    size = options.get("image_size")
    check_options("from_source", options.get("validation_fraction", 0.1), size)
    sources = _by_split(train, validation, test)
    keys = _keys_of(sources[_TRAIN], image_key, label_key)
    opened = {split: _records(source, *keys) for split, source in sources.items()}
    names = _known_names(sources[_TRAIN], keys[1]) if label_names is None else label_names
    if names is None:
        labels = _all_labels(name, opened, keys[1], _labels_fn(options))
        check_labels(name, labels)
        names = names_of(name, labels)
    with reading(f"{name}: one of the first images", own=MissingPackage):
        wanted, channels = _shape_of(opened[_TRAIN], keys[0], size)
    reader = Reader(
        *(name, name, opened.__getitem__, dict.fromkeys(opened, 0), *keys, tuple(map(str, names))),
        *(channels, wanted, options.get("crop_fn", stretch), True, _labels_fn(options)),
    )
    said = ", ".join(f"{len(source)} for {split}" for split, source in opened.items())
    return read_own(reader, parts_of(opened), f"examples: {said}", options)


def from_file(path: Path, *, saved: bool, options: Options) -> Dataset:
    """Read what `numpy.save`, `numpy.savez` or the package `datasets` has saved.

    Args:
        path: of a file, or of a folder.
        saved: whether it was `datasets`.
        options: how the set is read and split.

    Returns:
        The set.

    Raises:
        ValueError: if it holds no images and labels.
    """
    name = path.absolute().stem
    if saved:
        with needs("datasets"):
            import datasets
        with reading(str(path), own=MissingPackage):
            source = datasets.load_from_disk(str(path))
        return from_source(source, name=name, **options)
    with reading(str(path), own=MissingPackage):
        held = _held(path)
    labels_fn = _labels_fn(options)
    keys = _keys_held(path, held, labeled=labels_fn is not embedding_labels)
    names = held.get(keys.get(_TRAIN, {}).get("names", ""))
    splits = {
        split: _pair(
            f"{path}: {split}", held[own["images"]], held.get(own.get("labels", "")), labels_fn
        )
        for split, own in keys.items()
        if "images" in own
    }
    return _of_arrays(name, str(path), splits, None if names is None else names.tolist(), options)


def _keys_held(path: Path, held: Collection[str], *, labeled: bool) -> dict[str, dict[str, str]]:
    """Return which array has the images and which the labels of each split.

    Raises:
        ValueError: if there are none to train on, two of one, or one without the other.
    """
    found: dict[str, dict[str, str]] = {}
    for key in held:
        split, kind = _meaning(key)
        own = found.setdefault(split, {})
        if kind in own and kind in _KINDS:
            raise ValueError(
                f"{path} holds {own[kind]} and {key}, both {kind} of {split}: leave one out"
            )
        own[kind] = key
    needed = {"images", "labels"} if labeled else {"images"}
    if not needed <= {*found.get(_TRAIN, {})}:
        raise ValueError(
            f"{path} holds arrays {', '.join(held)}; expected images and labels, or x_train and "
            "y_train, x_test and y_test"
        )
    for split, own in found.items():
        there = {"images", "labels"} & {*own}
        if there and not needed <= there:
            (missing,) = needed - there
            others = sorted(key for kind, key in found[_TRAIN].items() if kind not in _KINDS)
            beside = f"; {', '.join(others)} is of no known name" if others else ""
            raise ValueError(
                f"{path} holds {own[there.pop()]}, and no {missing} of {split} beside it{beside}: "
                "give them, or leave it out"
            )
    return found


def parts_of(splits: Collection[str]) -> Parts:
    """Return which split is for what; validation images stand in for test images."""
    roles = {role_of(name) or _TRAIN: name for name in splits}
    validation, test = roles.get(_VALIDATION), roles.get(_TEST)
    return Parts(roles[_TRAIN], validation if test else None, test or validation)


def size_for(sizes: Sequence[Size], largest: int | None = None) -> Size:
    """Return the size that suits images: the one that all have, or their median, 32 at most."""
    if len({*sizes}) == 1 and max(sizes[0]) <= (largest or max(sizes[0])):
        return sizes[0]
    side = min(_USUAL_SIDE, int(np.median([min(size) for size in sizes])))
    return side, side


def _of_arrays(
    name: str,
    where: str,
    splits: Mapping[str, Pair],
    label_names: Sequence[str] | None,
    options: Options,
) -> Dataset:
    """Make a set of images and labels that were looked at."""
    size, labels_fn = options.get("image_size"), _labels_fn(options)
    check_options("from_arrays", options.get("validation_fraction", 0.1), size)
    opened = {split: Arrays(*pair) for split, pair in splits.items()}
    rows = opened[_TRAIN].images.ndim == 2
    _check_whole(where, opened[_TRAIN], options)
    names, labels = label_names, np.concatenate([x.labels for x in opened.values()])
    check_labels(where, labels)
    names = names_of(name, labels) if names is None else names
    num_bytes = {split: source.images.nbytes for split, source in opened.items()}
    reader = Reader(
        *(name, where, opened.__getitem__, num_bytes, "image", "label", tuple(map(str, names))),
        *(0 if rows else opened[_TRAIN].images.shape[-1], (size, size) if size else None),
        options.get("crop_fn", stretch),
        labels_fn=labels_fn,
    )
    said = ", ".join(f"{len(source)} for {split}" for split, source in opened.items())
    what = "rows of numbers" if rows else "arrays of images"
    return read_own(reader, parts_of(opened), f"{what}: {said}", options)


def _labels_fn(options: Options) -> LabelsFn:
    return options.get("labels_fn", class_labels)


def _check_whole(where: str, examples: Arrays, options: Options) -> None:
    """Raise a ValueError if rows of numbers, or the classes of pixels, would be resized."""
    size, rows = options.get("image_size"), examples.images.ndim == 2
    if rows and (options.get("streaming") or size):
        raise ValueError(f"{where}: rows of numbers neither stream nor have a size")
    if size and examples.labels.ndim == 3:
        raise ValueError(
            f"{where}: image_size {size} would resize images, and not the classes of their pixels"
        )


def _pair(what: str, images: Any, labels: Any, labels_fn: LabelsFn) -> Pair:
    """Check images and labels of one another; return them as bytes, and as numbers or text."""
    given = np.asarray(images)
    pixels = _rows(what, given) if given.ndim == 2 else _pixels(what, given)
    if labels is None and labels_fn is embedding_labels:
        labels = np.zeros((len(pixels), 0))
    found = labels_fn(what, labels)
    if len(pixels) != len(found):
        raise ValueError(f"{what}: {len(pixels)} images, but {len(found)} labels")
    if found.ndim == 3 and found.shape[1:] != pixels.shape[1:3]:
        raise ValueError(
            f"{what}: labels are of {found.shape[1:]} pixels, and images of {pixels.shape[1:3]}"
        )
    return pixels, found


def _pixels(what: str, images: np.ndarray) -> np.ndarray:
    pixels = channels_last(f"{what}: images", images)
    if pixels.dtype == np.uint16 and pixels.max(initial=0) < 256:
        raise ValueError(
            f"{what}: images are uint16 with nothing above 255, of which the upper byte is black; "
            "give them as uint8"
        )
    found = as_bytes(what, pixels)
    if (brightest := int(found.max(initial=0))) < _DARK and pixels.max(initial=0) != brightest:
        warnings.warn(
            f"{what}: images are {pixels.dtype} up to {pixels.max():g}, which is {brightest} of "
            "255: nearly black; multiply them, where white is less than the type's",
            stacklevel=2,
        )
    return found


def _rows(what: str, numbers: np.ndarray) -> np.ndarray:
    found = in_float32(numbers) if numbers.dtype.kind in "biuf" else None
    if found is None or not np.isfinite(found).all():
        raise ValueError(f"{what}: rows of {numbers.dtype} are not all finite numbers in float32")
    return found


def _held(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file, or of the files of a folder, by name; .npy files stay on disk."""
    files = sorted(path.glob("*.np[yz]")) if path.is_dir() else [path]
    held: dict[str, np.ndarray] = {}
    for file in files:
        if file.suffix == ".npy":
            held[file.stem] = np.load(file, mmap_mode="r")
            continue
        # NumPy leaves a file open that it cannot read, where it opens it itself.
        with open(file, "rb") as stream, np.load(stream) as archive:
            held |= dict(archive)
    return held


def _meaning(key: str) -> tuple[str, str]:
    """Return the split and the kind of an array by its name, such as x_train or test_labels."""
    words = key.lower().replace("-", "_").split("_")
    roles = [role for word in words if (role := role_of(word))]
    rest = "_".join(word for word in words if not role_of(word))
    kind = next((kind for kind, names in _KINDS.items() if rest in names), key)
    return (roles or [_TRAIN])[0], kind


def _by_split(train: Any, validation: Any, test: Any) -> dict[str, Any]:
    """Return the sources that are given, by split; a mapping of them names its own."""
    given = {_TRAIN: train, _VALIDATION: validation, _TEST: test}
    if isinstance(train, Mapping):
        given |= {role: source for key, source in train.items() if (role := role_of(str(key)))}
    sources = {split: source for split, source in given.items() if source is not None}
    for split, source in sources.items():
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            kind = type(source).__name__
            raise TypeError(f"from_source: {split} is a {kind}, expected a length and an index")
    if isinstance(sources[_TRAIN], Mapping) or not len(sources[_TRAIN]):
        raise ValueError("from_source: there are no training examples")
    return sources


def _keys_of(source: Any, image_key: Any, label_key: Any) -> tuple[Any, Any]:
    """Return where an example has its image and its label."""
    first = source[0]
    if isinstance(first, Mapping):
        image = _key(source, first, "Image", _IMAGES) if image_key is None else image_key
        label = _key(source, first, "ClassLabel", _LABELS) if label_key is None else label_key
        return image, label
    if not isinstance(first, tuple | list) or len(first) < 2:
        kind = type(first).__name__
        raise ValueError(
            f"from_source: an example is a {kind}, expected a mapping, or an image and a label"
        )
    return 0 if image_key is None else image_key, 1 if label_key is None else label_key


def _key(source: Any, first: Mapping[Any, Any], kind: str, names: Sequence[str]) -> Any:
    """Return where an example has what a set of Hugging Face calls a kind, or by usual names."""
    typed = [key for key, own in _features(source).items() if type(own).__name__ == kind]
    found = typed or [name for name in names if name in first]
    if not found:
        raise ValueError(
            f"from_source: an example has {', '.join(map(str, first))}; say which is the "
            f"{names[0][:-1]} with {names[0][:-1]}_key"
        )
    return found[0]


def _records(source: Any, image_key: Any, label_key: Any) -> "Each":
    """Return records of a source, images encoded and labels at once where it can give them so."""
    features = _features(source)
    if not features:
        return Each(source)
    feature = features[image_key]
    if hasattr(feature, "decode"):
        source = source.cast_column(image_key, type(feature)(decode=False))
    return Each(source, list(source[label_key]))


def _features(source: Any) -> Mapping[str, Any]:
    """Return what a set of Hugging Face knows of its columns; nothing of any other source."""
    known = getattr(source, "features", None)
    return known if isinstance(known, Mapping) else {}


def _known_names(source: Any, label_key: Any) -> Sequence[str] | None:
    """Return the names of classes that a source knows."""
    names = getattr(_features(source).get(label_key), "names", None)
    names = names or getattr(source, "classes", None)
    return names if names and all(isinstance(name, str) for name in names) else None


def _all_labels(
    name: str, opened: Mapping[str, Each], label_key: Any, labels_fn: LabelsFn
) -> np.ndarray:
    """Read the labels of all splits; those that have to be read one by one are kept."""
    for source in opened.values():
        if source.labels is None:
            source.labels = [source[i][label_key] for i in range(len(source))]
    return np.concatenate([labels_fn(name, source.labels) for source in opened.values()])


def _shape_of(source: Each, image_key: Any, asked: int | None) -> tuple[Size, int]:
    """Return the size and the channels that suit all of some images of a source."""
    chosen = np.linspace(0, len(source) - 1, min(len(source), _NUM_PROBED)).astype(int)
    sizes, channels = zip(*(seen(source[i][image_key]) for i in chosen), strict=True)
    return (asked, asked) if asked else size_for(sizes), max(channels)
