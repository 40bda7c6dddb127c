"""Image-classification sets as arrays, read through TFDS without TensorFlow.

Everything about a set comes from its own files: the keys of image and label, the shape, the number
of classes, the splits. A prepared set needs no code of TFDS for it, and no network.
"""

import difflib
import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdjax._extras import needs
from kdjax.data.crops import CropFn, stretch
from kdjax.data.images import CHANNELS
from kdjax.data.labels import class_labels, names_of
from kdjax.data.records import Reader, first_line, reading, rows_of
from kdjax.data.sets import (
    FILE_LIMIT,
    MEMORY_LIMIT,
    TEST_FRACTION,
    Dataset,
    How,
    Parts,
    check_options,
    read_set,
)

# Folders with this file hold a prepared set.
_INFO = "dataset_info.json"
_TEST_SPLITS = ("test", "testing", "validation", "valid", "val", "dev")
# To tell whether a split has labels, where reading all would take long.
_NUM_PROBED = 64


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    validation_fraction: float = 0.1,
    split_seed: int | None = None,
    image_size: int | None = None,
    crop_fn: CropFn = stretch,
    memory_limit: int = MEMORY_LIMIT,
    streaming: bool = False,
) -> Dataset:
    """Read a set of labeled images.

    The test examples are those of the split `test`, where it has labels, otherwise of the
    validation split, otherwise a fifth of the training split. The validation examples are always
    cut from the training split, by a permutation that depends on its size alone unless there is a
    seed.

    Args:
        name: `name`, `name/config`, either with `:version` behind; `digits` is embedded.
        data_dir: the directory of prepared sets; by default that of TFDS (`TFDS_DATA_DIR`,
            `~/tensorflow_datasets`).
        validation_fraction: share of the training examples to set aside, in [0, 1).
        split_seed: by which what is cut is drawn, from every class in proportion.
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

    Example:
        >>> from kdjax import data
        >>> digits = data.load("digits")
        >>> len(digits.train.label), digits.image_shape, digits.num_classes
        (1212, (8, 8, 1), 10)
    """
    check_options("load", validation_fraction, image_size)
    builder = _find(name, data_dir)
    splits = builder.info.splits
    reader = _reader(name, builder, image_size, crop_fn)
    streaming = streaming or max(s.num_bytes for s in splits.values()) > FILE_LIMIT
    has_labels = functools.partial(reader.has_labels, num_probed=_NUM_PROBED if streaming else None)
    train_split, test_split = _choose_splits(name, builder.info, has_labels)
    how = How(validation_fraction, split_seed, memory_limit, streaming)
    dataset = read_set(reader, Parts(train_split, None, test_split), how)
    source = f"split {test_split}" if test_split else f"{TEST_FRACTION:.0%} of split {train_split}"
    said = f"training and validation from split {train_split}, test from {source}"
    return dataset._replace(splits=said, version=str(builder.info.version))


def _reader(name: str, builder: Any, image_size: int | None, crop_fn: CropFn = stretch) -> Reader:
    """Return how the records of a builder's set become arrays."""
    info, size = builder.info, (image_size, image_size) if image_size else None
    image_key, label_key = _keys(name, info)
    feature = info.features[image_key]
    channels = feature.shape[-1] or 3
    if channels not in CHANNELS or feature.np_dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{name}: only images of 8 or 16 bits and 1, 3 or 4 channels are supported"
        )
    open_fn = functools.partial(_source, builder, label_key)
    label, num_bytes = info.features[label_key], {k: s.num_bytes for k, s in info.splits.items()}
    if hasattr(label, "int2str"):
        label_names = tuple(map(label.int2str, range(label.num_classes)))
    else:
        label_names = _names_in(name, open_fn, label_key, info)
    of_set = name, str(builder.data_dir), open_fn, num_bytes, image_key, label_key
    return Reader(*of_set, label_names, channels, size, crop_fn)


def _source(builder: Any, label_key: str, split: str) -> Any:
    """Open a split; images, and whatever else there is, stay undecoded."""
    with needs("data"):
        import tensorflow_datasets as tfds

    others = [key for key in builder.info.features if key != label_key]
    decoders = {key: tfds.decode.SkipDecoding() for key in others}
    return builder.as_data_source(split, decoders=decoders)


def _names_in(name: str, open_fn: Any, label_key: str, info: Any) -> tuple[str, ...]:
    """Read what classes there are from the training examples, whose labels are numbers or text."""
    split, _ = _choose_splits(name, info, lambda split: False)
    with reading(f"{name}: split {split}"):
        source = open_fn(split)
        labels = [row[label_key] for row in rows_of(source, range(len(source)))]
    return names_of(name, class_labels(name, labels))


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
    looked += "" if root.is_dir() else ", which is no folder"
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


def _is_plain(feature: Any) -> bool:
    """Return whether a feature is a text or a whole number."""
    with needs("data"):
        from tensorflow_datasets import features

    is_number = isinstance(feature, features.Tensor) and feature.shape == ()
    return type(feature) is features.Text or (is_number and feature.np_dtype.kind in "iu")


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Return the features that hold image and label: a class, or without one what is plain."""
    with needs("data"):
        from tensorflow_datasets import features

    def named(fits: Callable[[Any], bool]) -> list[str]:
        return [key for key, feature in info.features.items() if fits(feature)]

    images = named(lambda feature: type(feature) is features.Image)
    labels = named(lambda feature: type(feature) is features.ClassLabel) or named(_is_plain)
    keys = info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys[0], keys[1]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{name} is no set of labeled images: its image features are {images}, its class "
            f"labels {labels}, and its supervised keys {keys} do not choose one of each; all "
            f"features: {', '.join(f'{k} ({type(x).__name__})' for k, x in info.features.items())}"
            "; a label is a ClassLabel(names=[...]), a Text or a whole number"
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


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))
