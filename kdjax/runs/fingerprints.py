"""Fingerprints: what a run learned from and who taught it, by content and not by path."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import data
from kdjax.data.images import raw

# Enough to tell sets apart, read in a fraction of a second.
_MOST_BYTES, _MOST_RECORDS = 2**24, 4096


def of_data(dataset: data.Dataset) -> dict[str, Any]:
    """Fingerprint a set: all labels that are in memory, and images evenly spaced over each split.

    Of a set of one's own, which has no version, all images that are in memory; its name, that of a
    folder, may change.

    Args:
        dataset: the examples.

    Returns:
        Name, version and classes; for each split its size and digests of labels and images.
    """
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    if dataset.unlabelled is not None:
        none = np.full(len(dataset.unlabelled), -1)
        splits["unlabelled"] = data.Examples(dataset.unlabelled, none)
    most = _MOST_BYTES if dataset.version else None
    return {
        "name": dataset.name if dataset.version else "",
        "version": dataset.version,
        "classes": _digest(map(str.encode, dataset.label_names)),
        **{name: _of_split(examples, most) for name, examples in splits.items()},
    }


def of_path(path: Path | None) -> str | None:
    """Fingerprint a file, or all files of a folder, by their bytes; None for no path."""
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    # A lock is no content, and comes and goes.
    return _digest(p.read_bytes() for p in files if p.name != ".lock")


def of_code() -> str:
    """Fingerprint the package itself, as it lies in its folder."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return _digest(path.read_bytes() for path in files)


def _of_split(examples: data.Examples, most: int | None) -> dict[str, Any]:
    """Fingerprint a split; of images in memory as many bytes as are asked for, or all of them."""
    image, label = examples
    count = len(image)
    if not isinstance(image, data.LazyImages):
        size = max(1, int(np.prod(image.shape[1:])) * image.dtype.itemsize)
        chosen = _spaced(count, most // size) if most else np.arange(count)
        return _described(
            count, np.asarray(label), (np.ascontiguousarray(image[i]) for i in chosen)
        )
    records, reader = image.records, image.records.reader
    chosen = _spaced(count, min(_MOST_BYTES // records.bytes_each, _MOST_RECORDS))
    rows, key = records.read(chosen) if count else (), reader.image_key
    labels = label[chosen] if data.is_lazy({"label": label}) else np.asarray(label)
    return _described(count, labels, (raw(row[key]) for row in rows))


def _described(count: int, labels: np.ndarray, images: Any) -> dict[str, Any]:
    whole = np.ascontiguousarray(labels, np.int64 if labels.dtype.kind in "biu" else None)
    return {"examples": count, "labels": _digest([whole]), "images": _digest(images)}


def _spaced(count: int, most: int) -> np.ndarray:
    return np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.int64)


def _digest(parts: Any) -> str:
    """Digest some bytes, in their order; half of the digits tell contents apart as well."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:32]
