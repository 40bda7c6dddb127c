"""Labels of any kind, numbers or names, as numbers of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def as_labels(what: str, values: Any) -> np.ndarray:
    """Return labels as an array [examples] of whole numbers or of text.

    Args:
        what: has them, for messages.
        values: whole numbers, booleans, text or bytes; a last axis of one is left out.

    Raises:
        ValueError: if they are neither.
    """
    labels = np.asarray(values)
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            f"{what}: labels have shape {labels.shape}, expected [examples]: one class each, such "
            "as labels.argmax(-1) of one-hot rows"
        )
    if labels.dtype.kind in "OSU" and all(isinstance(x, str | bytes) for x in labels):
        return np.array([x.decode() if isinstance(x, bytes) else x for x in labels], np.str_)
    if labels.dtype.kind in "biu" or not labels.size:
        return labels.astype(np.int64)
    raise ValueError(
        f"{what}: labels are {labels.dtype}, expected whole numbers or names of classes"
    )


def names_of(what: str, labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the classes that labels are of.

    Args:
        what: has them, for messages.
        labels: as `as_labels` returns them.

    Returns:
        The text that is there, sorted; of numbers all from 0 to the largest one.

    Raises:
        ValueError: if there are more classes than examples.
    """
    if labels.dtype.kind == "U":
        return tuple(str(name) for name in np.unique(labels))
    count = int(labels.max(initial=-1)) + 1
    if count > len(labels):
        raise ValueError(
            f"{what}: labels go up to {count - 1} in {len(labels)} examples; give label_names, or "
            "number the classes from 0: numpy.unique(labels, return_inverse=True)[1]"
        )
    return tuple(map(str, range(count)))


def numbered(
    where: str, labels: np.ndarray, label_names: Sequence[str], indices: np.ndarray
) -> np.ndarray:
    """Return labels as numbers of classes, [examples] of int32.

    Args:
        where: an example is, with braces for its number: "toy: example {} of split train".
        labels: as `as_labels` returns them.
        label_names: of the classes.
        indices: the numbers of the examples, [examples].

    Raises:
        ValueError: if one is no class.
    """
    if labels.dtype.kind == "U":
        places = {name: number for number, name in enumerate(label_names)}
        known = np.array([places.get(str(name), -1) for name in labels], np.int64)
    else:
        known = labels
    wrong = np.flatnonzero((known < 0) | (known >= len(label_names)))
    if wrong.size:
        i = wrong[0]
        example, names = where.replace("{}", str(indices[i])), ", ".join(label_names[:8])
        raise ValueError(
            f"{example} has label {labels[i]}, but there are {len(label_names)} classes"
            + (f": {names}" if labels.dtype.kind == "U" else "")
        )
    return known.astype(np.int32)
