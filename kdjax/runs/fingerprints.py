"""Fingerprints: what a run learned from and who taught it, by content and not by path."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import data

# Enough to tell sets apart, read in a fraction of a second.
_MOST_BYTES, _MOST_RECORDS = 2**24, 4096


def of_data(dataset: data.Dataset) -> dict[str, Any]:
    """Fingerprint a set: all labels that are in memory, and images evenly spaced over each split.

    Args:
        dataset: the examples.

    Returns:
        Name, version and classes; for each split its size and digests of labels and images.
    """
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {
        "name": dataset.name,
        "version": dataset.version,
        "classes": _digest(map(str.encode, dataset.label_names)),
        **{name: _of_split(examples) for name, examples in splits.items()},
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


def _of_split(examples: data.Examples) -> dict[str, Any]:
    image, label = examples
    count = len(image)
    if not isinstance(image, data.LazyImages):
        size = max(1, int(np.prod(image.shape[1:])) * image.dtype.itemsize)
        chosen = _spaced(count, _MOST_BYTES // size)
        return _described(count, np.asarray(label), (np.ascontiguousarray(image[chosen]),))
    records, reader = image.records, image.records.reader
    split = reader.builder.info.splits[records.split]
    size = max(1, split.num_bytes // max(1, split.num_examples))
    chosen = _spaced(count, min(_MOST_BYTES // size, _MOST_RECORDS))
    rows, key = records.read(chosen) if count else (), reader.image_key
    labels = label[chosen] if data.is_lazy({"label": label}) else np.asarray(label)
    return _described(count, labels, (row[key] for row in rows))


def _described(count: int, labels: np.ndarray, images: Any) -> dict[str, Any]:
    whole = np.ascontiguousarray(labels, np.int64)
    return {"examples": count, "labels": _digest([whole]), "images": _digest(images)}


def _spaced(count: int, most: int) -> np.ndarray:
    return np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.int64)


def _digest(parts: Any) -> str:
    """Digest some bytes, in their order; half of the digits tell contents apart as well."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:32]
