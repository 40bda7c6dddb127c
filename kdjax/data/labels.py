"""Labels of any kind as arrays: classes by number or name, several at once, numbers, pixels."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LabelsFn = Callable[[str, Any], np.ndarray]
"""Reads and checks labels: (what has them, values) -> an array, of one axis if of classes."""
NO_LABEL = -1
"""In the place of a label, of several, or of a pixel's class that is not known."""
_NO_CLASS = 255


def class_labels(what: str, values: Any) -> np.ndarray:
    """Return labels as an array [examples] of whole numbers or of text.

    Args:
        what: has them, for messages.
        values: whole numbers, booleans, text or bytes; a last axis of one is left out.

    Raises:
        ValueError: if they are neither.

    Example:
        >>> from kdjax import data
        >>> print(data.class_labels("labels", ["cat", "dog"]))
        ['cat' 'dog']
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
    whole = labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels))
    raise ValueError(
        f"{what}: labels are {labels.dtype}, expected whole numbers or names of classes"
        + ("; give labels.astype(int)" if whole else "")
    )


def several_labels(what: str, values: Any) -> np.ndarray:
    """Return labels that are true or false by themselves, [examples, labels] of int32.

    Args:
        what: has them, for messages.
        values: booleans, 0 and 1; -1 where it is not known.

    Raises:
        ValueError: if they are anything else.

    Example:
        >>> from kdjax import data
        >>> print(data.several_labels("labels", [[True, False], [False, False]]))
        [[1 0]
         [0 0]]
    """
    labels = _numbers(what, values, "biuf")
    wrong = labels[~np.isin(labels, (NO_LABEL, 0, 1))]
    if labels.ndim != 2 or wrong.size:
        found = f"have {wrong[0]:g}" if wrong.size else f"have shape {labels.shape}"
        raise ValueError(
            f"{what}: labels {found}, expected [examples, labels] of 0 and 1, or -1 where one is "
            "not known"
        )
    return labels.astype(np.int32)


def number_labels(what: str, values: Any) -> np.ndarray:
    """Return real numbers, [examples, values] of float32; [examples] are one each.

    Raises:
        ValueError: if they are anything else, or not finite.

    Example:
        >>> from kdjax import data
        >>> data.number_labels("labels", [1.5, 2.0, 7.25]).shape
        (3, 1)
    """
    labels = in_float32(_numbers(what, values, "biuf"))
    if labels.ndim not in (1, 2) or not np.isfinite(labels).all():
        found = f"have shape {labels.shape}" if labels.ndim not in (1, 2) else "are not all finite"
        raise ValueError(f"{what}: labels {found}, expected numbers [examples], or [examples, n]")
    return labels.reshape(len(labels), -1)


def in_float32(values: np.ndarray) -> np.ndarray:
    """Return numbers of any type as float32, infinite where they are too large for it."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_labels(what: str, labels: np.ndarray) -> None:
    """Look at all labels of a set, of any kind: is there something to learn?

    Args:
        what: has them, for messages.
        labels: as they were read, by `class_labels` or others here.

    Raises:
        ValueError: if labels that are true or false are never false, numbers all the same, or the
            pixels of one class alone.
    """
    if labels.size and (wrong := _nothing_in(labels)):
        raise ValueError(f"{what}: labels are {wrong}")
    if labels.size and labels.dtype == np.int64 and labels.ndim == 1 and labels.min() > 0:
        warnings.warn(
            f"{what}: labels are from {labels.min()} to {labels.max()}, and there is no example of "
            "class 0, which counts as a class",
            stacklevel=2,
        )


def _nothing_in(labels: np.ndarray) -> str:
    """Say of labels, of which there are some, why there is nothing to learn from them."""
    rows = labels.ndim == 2
    if rows and labels.dtype == np.int32 and NO_LABEL in labels and 0 not in labels:
        return (
            "-1 and 1, and -1 stands for one that is not known: where it is meant for false, give "
            "(labels > 0)"
        )
    if rows and labels.dtype == np.float32 and len(labels) > 1 and np.all(labels == labels[0]):
        return f"all {labels[0, 0]:g} in float32: there is nothing to learn"
    if labels.ndim == 3 and labels.max() < 1:
        return (
            "of one class at most; a negative number and 255 stand for no class: number the "
            "classes of pixels 0, 1 and so on"
        )
    return ""


def pixel_labels(what: str, values: Any) -> np.ndarray:
    """Return the class of each pixel, [examples, height, width] of int32.

    Args:
        what: has them, for messages.
        values: whole numbers; a negative one and 255 stand for no class, and become -1.

    Raises:
        ValueError: if they are anything else.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> data.pixel_labels("labels", np.full((2, 4, 4), 3)).dtype
        dtype('int32')
    """
    labels = _numbers(what, values, "biu")
    if labels.ndim == 4 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.ndim != 3:
        raise ValueError(
            f"{what}: labels have shape {labels.shape}, expected a class for each pixel, "
            "[examples, height, width]"
        )
    labels = labels.astype(np.int32)
    return np.where((labels < 0) | (labels == _NO_CLASS), NO_LABEL, labels)


def embedding_labels(what: str, values: Any) -> np.ndarray:
    """Return embeddings to reach, [examples, n] of float32, or classes to keep apart.

    Where there are none, `from_arrays` takes None, which becomes embeddings of no numbers.

    Raises:
        ValueError: if they are neither.

    Example:
        >>> import numpy as np
        >>> from kdjax import data
        >>> data.embedding_labels("labels", np.ones((3, 16))).shape
        (3, 16)
    """
    axes = np.ndim(values)
    return number_labels(what, values) if axes > 1 else class_labels(what, values)


def _numbers(what: str, values: Any, kinds: str) -> np.ndarray:
    labels = np.asarray(values)
    if labels.dtype.kind not in kinds and labels.size:
        expected = "numbers" if "f" in kinds else "whole numbers"
        raise ValueError(f"{what}: labels are {labels.dtype}, expected {expected}")
    return labels


def names_of(what: str, labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the classes that labels are of, or of what else they tell.

    Args:
        what: has them, for messages.
        labels: as they were read, by `class_labels` or others here.

    Returns:
        The text that is there, sorted; of numbers all from 0 to the largest one; of labels that
        are no classes those of the columns.

    Raises:
        ValueError: if there are more classes than examples.
    """
    if labels.dtype.kind == "U":
        return tuple(str(name) for name in np.unique(labels))
    if labels.ndim == 2:
        return tuple(map(str, range(labels.shape[1])))
    count = int(labels.max(initial=-1)) + 1
    if count > labels.size:
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
        labels: as `class_labels` returns them.
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
