"""Sets of one's own in a folder: images by class, arrays in .npz and .npy files, saved datasets."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np

from kdjax._extras import MissingPackage
from kdjax.data import arrays
from kdjax.data.crops import CropFn, Size, stretch
from kdjax.data.images import seen
from kdjax.data.labels import LabelsFn, class_labels, embedding_labels
from kdjax.data.records import Reader, reading
from kdjax.data.sets import (
    FILE_LIMIT,
    MEMORY_LIMIT,
    Dataset,
    How,
    Options,
    check_options,
    read_own,
    read_split,
    role_of,
)

Kind = Literal["images", "arrays", "saved", "tfds"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif")
_JUNK = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_MOST_FILES = 100_000
_NUM_PROBED = 1_000
_ALL, _NONE = "all images", "none"


class Files:
    """Records of image files: a path, and a label."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray):
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Path(self.paths[index]), "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class _Found(NamedTuple):
    """Files of each split, with the classes that their folders name, if there are some."""

    splits: dict[str, Files]
    label_names: tuple[str, ...]
    num_bytes: dict[str, int]

    @property
    def labels_fn(self) -> LabelsFn:
        """How the labels are read: without classes they are embeddings of no numbers."""
        return class_labels if self.label_names else embedding_labels


def from_folder(path: str | Path, **options: Unpack[Options]) -> Dataset:
    """Read a set of one's own from a folder or a file.

    It may hold a folder of images for each class, or folders `train`, `val` and `test` (or as they
    are usually spelled) of such folders: PNG, JPEG, WebP, BMP and GIF, of which the first image is
    taken. It may be an `.npz` file, or hold one, or `.npy` files: `images` and `labels`, or
    `x_train`, `y_train`, `x_test`, `y_test` and the like. Or the package `datasets` has saved it.

    Embeddings (`labels_fn`) need no classes: images may lie in the folder itself, or in those of
    the splits, without labels.

    Images are gray if all files are. What is transparent shows white, what has 16 bits keeps the
    upper 8, and photographs are turned upright. Images that differ in size, or have more than 64
    pixels a side, are resized: to the median of their shorter sides, 32 at most, as the networks
    for small images have it, or to `image_size`.

    Args:
        path: of the folder or file.
        **options: how the set is read and split, see `Options`.

    Returns:
        The set; `found` and `splits` say what was there and what became of it. Validation images
        stand in for test images where there are none.

    Raises:
        OSError: if something is not there, or may not be read.
        ValueError: if the set is of no known kind, or cannot be learned from; the message names
            the file or folder.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from kdjax import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.npz")
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
        >>> np.savez(path, images=images, labels=np.arange(20) % 2)
        >>> data.from_folder(path).image_shape
        (8, 8, 1)
    """
    path = Path(path).expanduser()
    size = options.get("image_size")
    check_options("from_folder", options.get("validation_fraction", 0.1), size)
    kind = kind_of(path)
    if kind == "tfds":
        raise ValueError(f"{path} holds sets prepared by TFDS: kdjax.data.load reads them by name")
    labels_fn = options.get("labels_fn", class_labels)
    if kind == "images" and labels_fn not in (class_labels, embedding_labels):
        raise ValueError(
            f"{path} holds folders of images, whose labels are classes; give images and other "
            "labels as arrays, in a .npz file"
        )
    if kind != "images":
        return arrays.from_file(path, saved=kind == "saved", options=options)
    found = _found(path, labels_fn)
    said = _counted(path, found)
    probed = _probed(found.splits.values())
    sizes, channels = [seen for seen, _ in probed], max(count for _, count in probed)
    wanted = (size, size) if size else arrays.size_for(sizes, arrays.LARGEST_SIDE)
    reader = Reader(
        *(_name_of(path), str(path), found.splits.__getitem__, found.num_bytes, "image", "label"),
        *(found.label_names, channels, wanted, options.get("crop_fn", stretch), True),
        labels_fn=found.labels_fn,
    )
    if {*sizes} != {wanted}:
        said += f", resized to {wanted[0]} x {wanted[1]} (image_size chooses another size)"
    count = sum(map(len, found.splits.values()))
    streaming = options.get("streaming", False) or count > _MOST_FILES
    parts = arrays.parts_of(found.splits)
    return read_own(reader, parts, said, {**options, "streaming": streaming})


def with_unlabelled(
    dataset: Dataset,
    path: str | Path,
    *,
    crop_fn: CropFn = stretch,
    memory_limit: int = MEMORY_LIMIT,
    streaming: bool = False,
) -> Dataset:
    """Add images without labels to a set: a teacher can teach on them.

    Args:
        dataset: the set; the images get its size and channels.
        path: of a folder that holds them, at any depth.
        crop_fn: which part of an image is resized.
        memory_limit: bytes above which images are decoded when they are used.
        streaming: whether they are decoded when they are used in any case.

    Returns:
        The set with `unlabelled` images.

    Raises:
        OSError: if something is not there, or may not be read.
        ValueError: if there is no image, or one that cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from kdjax import data
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "1.png")
        >>> digits = data.load("digits")
        >>> more = data.with_unlabelled(digits, folder)
        >>> more.unlabelled.shape
        (1, 8, 8, 1)
    """
    folder = Path(path).expanduser()
    found = list(_images_below(str(folder)))
    if not found:
        raise ValueError(f"{folder} holds no images")
    files = Files([p for p, _ in found], np.full(len(found), 0))
    if len(dataset.image_shape) < 3:
        raise ValueError(f"{folder} holds images, and {dataset.name} rows of numbers")
    height, width, channels = dataset.image_shape
    num_bytes = sum(size for _, size in found)
    reader = Reader(
        *(_name_of(folder), str(folder), {_NONE: files}.__getitem__, {_NONE: num_bytes}),
        *("image", "label"),
        label_names=(_NONE,),
        channels=channels,
        size=(height, width),
        crop_fn=crop_fn,
        upright=True,
    )
    streams = streaming or num_bytes > FILE_LIMIT or len(found) > _MOST_FILES
    how = How(0, None, 0 if streams else memory_limit)
    return dataset._replace(unlabelled=read_split(reader, _NONE, how).image)


def kind_of(path: Path) -> Kind:
    """Return what a folder or file holds, by the names of files in it.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is a file of another kind.

    Example:
        >>> import pathlib, tempfile
        >>> from kdjax import data
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "cats").mkdir()
        >>> _ = (folder / "cats" / "1.png").write_bytes(b"")
        >>> data.kind_of(folder)
        'images'
    """
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}")
    if path.is_file():
        if path.suffix not in (".npz", ".npy"):
            raise ValueError(f"{path} is a file, expected a folder, or a .npz file")
        return "arrays"
    names = {p.name for p in path.iterdir()}
    if names & {"dataset_dict.json", "state.json"}:
        return "saved"
    if any(name.endswith((".npz", ".npy")) for name in names):
        return "arrays"
    # A set of TFDS lies in root/name/config/version, or a part of it.
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = any(next(path.glob(f"{depth}dataset_info.json"), None) for depth in depths)
    return "tfds" if found else "images"


def _found(path: Path, labels_fn: LabelsFn) -> _Found:
    """List the files of a set; those of embeddings need no classes."""
    bare = _without_classes(path) if labels_fn is embedding_labels else {}
    return _unnamed(bare) if bare else _listed(path)


def _listed(path: Path) -> _Found:
    """List the files of a set, by split and class; nothing is opened."""
    splits = _splits_in(path)
    classes = sorted({_label(name) for folder in splits.values() for name in _folders(folder)})
    if len(classes) == 1:
        only = _folders(next(iter(splits.values())))[0]
        inner = f"; is {path / only} meant?" if _folders(path / only) else ""
        raise ValueError(f"{path} has one class, {only}, expected two folders or more{inner}")
    files, num_bytes = {}, {}
    for split, folder in splits.items():
        paths, labels, sizes = [], [], 0
        for name in _folders(folder):
            own = list(_images_below(str(folder / name)))
            if not own and role_of(split) in ("train", None):
                raise ValueError(f"{folder / name} holds no images: fill the folder or remove it")
            paths += [file for file, _ in own]
            labels += [classes.index(_label(name))] * len(own)
            sizes += sum(size for _, size in own)
        files[split], num_bytes[split] = Files(paths, np.array(labels, np.int64)), sizes
    return _Found(files, tuple(classes), num_bytes)


def _without_classes(path: Path) -> dict[str, Path]:
    """Return the folders of images where none is of a class: those of the splits, or the folder."""
    inner = _folders(path)
    splits = {name: path / name for name in inner if role_of(name)} if inner else {_ALL: path}
    is_bare = len(splits) >= len(inner) and not any(map(_folders, splits.values()))
    return splits if is_bare else {}


def _unnamed(splits: dict[str, Path]) -> _Found:
    """List the files of splits without classes."""
    files, num_bytes = {}, {}
    for split, folder in splits.items():
        own = list(_images_below(str(folder)))
        if not own:
            raise ValueError(f"{folder} holds no images: fill the folder or remove it")
        files[split] = Files([file for file, _ in own], np.zeros((len(own), 0)))
        num_bytes[split] = sum(size for _, size in own)
    return _Found(files, (), num_bytes)


def _splits_in(path: Path) -> dict[str, Path]:
    """Return the folders of classes: those of the splits, or the folder itself.

    A class may be called train; a split of that name has folders in it.
    """
    folders = _folders(path)
    named = [name for name in folders if role_of(name)]
    nested = {name: path / name for name in named if _folders(path / name)}
    if any(role_of(name) == "train" for name in nested):
        splits = nested
    elif folders and named == folders:
        raise ValueError(
            f"{path} has {', '.join(folders)}, of which none is a folder train (or training) that "
            "holds a folder of images for each class"
        )
    else:
        splits = {_ALL: path}
    for folder in splits.values():
        _check_class_folders(folder)
    return splits


def _check_class_folders(folder: Path) -> None:
    """Raise a ValueError if there is no folder of a class, or an image beside them."""
    stray = next((name for name in sorted(os.listdir(folder)) if _is_image(name)), None)
    if stray or not _folders(folder):
        what = (
            f"{folder / stray} is in no class folder" if stray else f"{folder} has no class folders"
        )
        raise ValueError(f"{what}: expected a folder of images for each class")


def _counted(path: Path, found: _Found) -> str:
    """Say what was found."""
    count, names = sum(map(len, found.splits.values())), ", ".join(found.label_names[:8])
    more = ", ..." if len(found.label_names) > 8 else ""
    what = f"{count} images in {len(found.label_names)} class folders ({names}{more})"
    what = what if names else f"{count} images without classes"
    if _ALL in found.splits:
        return what
    others = [name for name in _folders(path) if name not in found.splits]
    passed = f"; passed over: {', '.join(others[:4])}" if others else ""
    return f"{what} of {', '.join(found.splits)}{passed}"


def _probed(splits: Iterable[Files]) -> list[tuple[Size, int]]:
    """Return sizes and channels of images, evenly spaced over all, by their first bytes."""
    paths = [path for files in splits for path in files.paths]
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), _NUM_PROBED)).astype(np.int64)
    probed = []
    for i in chosen:
        with reading(paths[i], own=MissingPackage):
            probed.append(seen(Path(paths[i])))
    return probed


def _images_below(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the files of a folder, at any depth, and their bytes, by name."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if _is_junk(entry.name):
            continue
        if entry.is_dir():
            yield from _images_below(entry.path)
        elif _is_image(entry.name):
            yield entry.path, entry.stat().st_size
        else:
            raise ValueError(
                f"{entry.path} is no image by its name ({', '.join(_ENDINGS)}): move it out of the "
                "class folders"
            )


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not _is_junk(e.name))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _is_image(name: str) -> bool:
    return not _is_junk(name) and name.lower().endswith(_ENDINGS)


def _label(folder: str) -> str:
    """Return the name of a class: the same however a file system writes accents."""
    return unicodedata.normalize("NFC", os.fsencode(folder).decode(errors="replace"))


def _name_of(path: Path) -> str:
    return _label(path.absolute().stem)
