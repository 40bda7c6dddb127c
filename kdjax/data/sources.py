"""Image-classification sets as arrays, read through TFDS without TensorFlow.

Everything about a set comes from its own files: the keys of image and label, the shape, the number
of classes, the splits. A prepared set needs no code of TFDS for it, and no network.
"""

import difflib
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax._extras import needs
from kdjax.data.crops import CropFn, stretch
from kdjax.data.records import LazyImages, LazyLabels, Reader, Records, first_line, reading, rows_of

# Folders with this file hold a prepared set.
_INFO = "dataset_info.json"
_TEST_SPLITS = ("test", "testing", "validation", "valid", "val", "dev")
_TEST_FRACTION = 0.2
_MEMORY_LIMIT = 4 * 2**30
_FILE_LIMIT = 4 * 2**30
# To tell whether a split has labels, and to normalize, where reading all would take long.
_NUM_PROBED = 64
_NUM_STREAMED, _NUM_IN_STATISTICS = 2_000, 10_000


class Examples(NamedTuple):
    """Images [examples, height, width, channels] of uint8 and labels [examples] of int32.

    The images are a NumPy array, or `LazyImages` where they would not fit in memory; the labels of
    a set that streams are `LazyLabels`.
    """

    image: Any
    label: Any


class Dataset(NamedTuple):
    """A set, split in three. `mean` and `std` are per channel, of the training images in [0, 1]."""

    name: str
    train: Examples
    validation: Examples
    test: Examples
    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    splits: str
    version: str = ""


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    validation_fraction: float = 0.1,
    image_size: int | None = None,
    crop_fn: CropFn = stretch,
    memory_limit: int = _MEMORY_LIMIT,
    streaming: bool = False,
) -> Dataset:
    """Read a set of labeled images.

    The test examples are those of the split `test`, where it has labels, otherwise of the
    validation split, otherwise a fifth of the training split. The validation examples are always
    cut from the training split, by a permutation that depends on its size alone.

    Args:
        name: `name`, `name/config`, either with `:version` behind; `digits` is embedded.
        data_dir: the directory of prepared sets; by default that of TFDS (`TFDS_DATA_DIR`,
            `~/tensorflow_datasets`).
        validation_fraction: share of the training examples to set aside, in [0, 1).
        image_size: pixels a side that all images are resized to; needed where their sizes differ.
        crop_fn: which part of an image is resized, `stretch` (all of it) or `center_crop`.
        memory_limit: bytes above which images are decoded when they are used, not at once.
        streaming: whether labels are read with the images too, and nothing before; always so for
            sets with a split whose files have more than 4 GiB.

    Returns:
        The set; its validation part may be empty.

    Raises:
        FileNotFoundError: if the set is not there and cannot be prepared here.
        ValueError: if it is unknown, no set of labeled 8-bit images, or of a single class.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"load: validation_fraction is {validation_fraction}, expected [0, 1)")
    if image_size is not None and image_size < 1:
        raise ValueError(f"load: image_size is {image_size}, expected 1 or more")
    builder = _find(name, data_dir)
    info = builder.info
    reader = Reader(name, builder, *_keys(name, info), image_size, crop_fn)
    streaming = streaming or max(s.num_bytes for s in info.splits.values()) > _FILE_LIMIT
    has_labels = functools.partial(reader.has_labels, num_probed=_NUM_PROBED if streaming else None)
    train_split, test_split = _choose_splits(name, info, has_labels)
    read = functools.partial(_read, reader, memory_limit=memory_limit, streaming=streaming)
    train, validation, rest = _cut(
        name, read(train_split), validation_fraction, 0 if test_split else _TEST_FRACTION
    )
    test = read(test_split) if test_split else rest
    _check_classes(name, reader.label.num_classes, train.label)
    shape = train.image.shape[1:]
    reader.of_shape(np.empty(test.image.shape[1:], np.uint8), shape)
    mean, std = _statistics(train.image, _NUM_STREAMED if streaming else _NUM_IN_STATISTICS)
    num_classes = reader.label.num_classes
    label_names = tuple(map(reader.label.int2str, range(num_classes)))
    source = f"split {test_split}" if test_split else f"{_TEST_FRACTION:.0%} of split {train_split}"
    splits = f"training and validation from split {train_split}, test from {source}"
    of_data = shape, num_classes, label_names, mean, std, splits
    return Dataset(name, train, validation, test, *of_data, str(info.version))


def _cut(
    name: str, whole: Examples, validation_fraction: float, test_fraction: float
) -> list[Examples]:
    """Split training examples into those to train, to validate and, where asked, to test on."""
    num_examples = len(whole.label)
    num_test = max(1, round(test_fraction * num_examples)) if test_fraction else 0
    num_validation = round(validation_fraction * (num_examples - num_test))
    num_kept = num_examples - num_test - num_validation
    if num_kept < 1:
        raise ValueError(f"{name}: {num_examples} training examples leave none to train on")
    order = np.random.default_rng(num_examples).permutation(num_examples)
    parts = np.split(order, [num_kept, num_kept + num_validation])
    return [take(whole, np.sort(part)) for part in parts]


def _check_classes(name: str, num_classes: int, labels: Any) -> None:
    """Raise a ValueError if there is nothing to tell apart."""
    if num_classes < 2:
        raise ValueError(f"{name} has {num_classes} class, expected two or more")
    if isinstance(labels, np.ndarray) and np.all(labels == labels[0]):
        raise ValueError(f"{name}: all training examples have label {labels[0]}, expected two")


def _find(name: str, data_dir: str | Path | None) -> Any:
    """Return a builder of a prepared set, preparing it where that can be done."""
    with needs("data"):
        import tensorflow_datasets as tfds

    root = _root(data_dir)
    if name == "digits" and _prepared(name, root) is None:
        from kdjax.data.digits import Digits

        return Digits()
    folder = _prepared(name, root) or _prepare(name, root)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:
        # TFDS fails in many ways on files that are not what they should be.
        raise ValueError(f"{folder} holds no readable TFDS set: {first_line(error)}") from error
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"{folder} holds {file_format} files, which need TensorFlow; "
            f"prepare it as ArrayRecord in another directory: {_command(name, 'NEW_DIR')}"
        )
    return builder


def _root(data_dir: str | Path | None) -> Path:
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def _prepared(name: str, root: Path) -> Path | None:
    """Find the folder of a prepared set: root[/name][/config][/version], newest version first."""
    path, _, version = name.partition(":")
    if (root / _INFO).exists() and _is_of(root, path, version):
        return root
    for base in _bases(path, root):
        if versions := _sets_in(base, version):
            return max(versions, key=lambda p: _version_key(p.name))
        configs = [p.name for p in _folders(base) if _sets_in(p)]
        if len(configs) == 1:
            return _prepared(f"{configs[0]}:{version}", base)
        if configs:
            choices = ", ".join(f"{path}/{config}" for config in configs)
            raise ValueError(f"{name} has several configurations in {root}: name one of {choices}")
    return None


def _sets_in(base: Path, version: str = "") -> list[Path]:
    """Return the folders that hold a prepared set, of one version or of all."""
    return [p for p in _folders(base) if (p / _INFO).exists() and version in ("", p.name)]


def _bases(path: str, root: Path) -> list[Path]:
    """Return where versions may be: root/name/config, or less where root ends in a part of it."""
    parts = tuple(path.split("/"))
    shared = [k for k in range(len(parts) + 1) if root.parts[len(root.parts) - k :] == parts[:k]]
    return [root.joinpath(*parts[k:]) for k in shared]


def _is_of(folder: Path, path: str, version: str) -> bool:
    """Return whether a version folder that was named itself holds the set that is asked for."""
    own = {folder.name, folder.parent.name, folder.parent.parent.name}
    return set(path.split("/")) <= own and version in ("", folder.name)


def _prepare(name: str, root: Path) -> Path:
    """Download and prepare a set that TFDS knows, where TensorFlow is installed."""
    with needs("data"):
        import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    short = name.partition(":")[0].split("/")[0]
    sets = [p.name for p in _folders(root) if not p.name.startswith(".") and p.name != "downloads"]
    there = ", ".join(sets[:8])
    looked = f"{name} is not in {root} (there: {there or 'nothing'})"
    if short not in known:
        near = difflib.get_close_matches(short, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(f"{looked}, and TFDS knows no such set{hint}")
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(
            f"{looked}; to download and prepare it: "
            f"pip install 'kdjax[tensorflow]' && {_command(name, str(root))}"
        )
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        # Whatever went wrong, network, disk or the set's own code, the user needs this line.
        raise FileNotFoundError(
            f"{looked}, and preparing it failed ({first_line(error)}); "
            f"on a machine with network: {_command(name, str(root))}"
        ) from error
    return Path(builder.data_dir)


def _command(name: str, root: str) -> str:
    call = f"tfds.builder({name!r}, data_dir={root!r}, file_format='array_record')"
    return f'python -c "import tensorflow_datasets as tfds; {call}.download_and_prepare()"'


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Return the features that hold image and label."""
    with needs("data"):
        from tensorflow_datasets import features

    def named(kind: type) -> list[str]:
        return [key for key, feature in info.features.items() if type(feature) is kind]

    images, labels = named(features.Image), named(features.ClassLabel)
    keys = info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{name} is no set of labeled images: its image features are {images}, its class "
            f"labels {labels}, and its supervised keys {keys} do not choose one of each; all "
            f"features: {', '.join(f'{k} ({type(x).__name__})' for k, x in info.features.items())}"
            "; a label is a ClassLabel(names=[...])"
        )
    return images[0], labels[0]


def _choose_splits(name: str, info: Any, has_labels: Any) -> tuple[str, str | None]:
    """Return the training split, and the test split or None if one must be cut off."""
    names = list(info.splits)
    train = "train" if "train" in names else next((s for s in names if "train" in s), None)
    if train is None and len(names) == 1:
        train = names[0]
    if train is None:
        raise ValueError(f"{name} has the splits {names}, none of which is for training")
    candidates = [s for s in _TEST_SPLITS if s in names and s != train]
    return train, next((s for s in candidates if has_labels(s)), None)


def _read(reader: Reader, split: str, *, memory_limit: int, streaming: bool) -> Examples:
    """Open a split that streams, or read it in one pass, its images too where they fit."""
    with reading(f"{reader.name}: split {split} in {reader.builder.data_dir}"):
        source = reader.source(split)
        if not len(source):
            raise ValueError(f"{reader.name}: split {split} has no examples")
        num_examples, shape = len(source), reader.decode(source[0]).shape
        records = Records(reader, split, np.arange(num_examples))
        if streaming:
            return Examples(LazyImages(records, shape), LazyLabels(records))
        in_memory = num_examples * int(np.prod(shape)) <= memory_limit
        labels = np.empty(num_examples, np.int64)
        images = np.empty((num_examples if in_memory else 0, *shape), np.uint8)
        for i, row in enumerate(rows_of(source, range(num_examples))):
            labels[i] = row[reader.label_key]
            if in_memory:
                images[i] = reader.of_shape(reader.decode(row), shape)
        labels = reader.checked(split, labels, np.arange(num_examples))
        return Examples(images if in_memory else LazyImages(records, shape), labels)


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """Return examples by index, without reading what is not read yet."""
    image, label = examples
    if not isinstance(image, LazyImages):
        return Examples(image[indices], label[indices])
    # Of a set that streams both stay columns of the same records, so that each is read once.
    records = image.records.take(indices)
    lazy = isinstance(label, LazyLabels)
    return Examples(image.of(records), label.of(records) if lazy else label[indices])


def _statistics(images: Any, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel, of some of the images, in [0, 1]."""
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


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))
