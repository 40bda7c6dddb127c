"""Text for language models: documents, tokens, and rows of them that batches are drawn from.

    from kdjax import data

    text = data.text.load("shakespeare.txt", length=128)
    for batch in data.train_batches(text.train.arrays, seed=0, batch_size=32):
        ...  # tokens, label and mask [32, 128]

A batch is a function of the seed and the step, as those of images are.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax._extras import needs
from kdjax.data._tokenizers import (
    Tokenizer,
    by_bytes,
    by_characters,
    by_words,
    digest,
    tokenizer_from,
)

__all__ = [
    "EMBEDDED", "Rows", "TextSet", "Tokenizer", "by_bytes", "by_characters", "by_words", "compact",
    "first", "load", "read_documents", "rows_of", "tokenizer_from",
]  # fmt: skip

_LINES = (".jsonl", ".ndjson")
EMBEDDED = "python-topics"
"""The text that needs no file: what Python's `help()` says of the language's topics."""


class Rows(NamedTuple):
    """Rows of tokens, [rows, length], in the order of the text; labels are the tokens after them.

    `arrays` holds `tokens` and `label`, int32, `mask`, false where the last row only fills up, and
    with several documents `document`, int32: which of them a token belongs to. `num_bytes` is the
    length of what the labels say, in UTF-8.
    """

    arrays: dict[str, np.ndarray]
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        """How many labels there are."""
        return int(self.arrays["mask"].sum())


class TextSet(NamedTuple):
    """A text, cut by position into what is trained on and what is validated on."""

    name: str
    tokenizer: Tokenizer
    train: Rows
    validation: Rows


def load(
    source: str | Path | None = None,
    *,
    tokenizer: Tokenizer | str | Path = "words",
    length: int = 128,
    validation_fraction: float = 0.1,
    field: str = "text",
    data_dir: str | Path | None = None,
) -> TextSet:
    """Read a text and cut it into rows.

    Args:
        source: a text file; JSON lines (`.jsonl`), a document each; or the name of a text set of
            TFDS that is prepared. None for the embedded text.
        tokenizer: "words" (the frequent ones of the training text, see `by_words`), "bytes",
            "characters" (those of the text), a file of the `tokenizers` package (`tokenizer.json`)
            or a GGUF model, or a `Tokenizer`.
        length: tokens in a row.
        validation_fraction: the share of the text, from its end, to validate on: whole documents
            where these are between half and twice as much, else from the beginning of a line.
        field: where the text of a document is, in JSON lines and sets of TFDS.
        data_dir: where sets of TFDS are prepared; by default TFDS's own place.

    Returns:
        The set.

    Raises:
        FileNotFoundError: if there is no such file or set.
        ValueError: if the text is empty or too short for a split, `length` is not positive, or the
            tokenizer does not give the text back.

    Example:
        >>> from kdjax.data import text
        >>> found = text.load(length=32, tokenizer="bytes")
        >>> found.train.arrays["tokens"].shape[1], found.tokenizer.vocab_size
        (32, 257)
    """
    if length < 1:
        raise ValueError(f"data.text: length is {length}, expected 1 or more")
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"data.text: validation_fraction is {validation_fraction}, expected in [0, 1)"
        )
    name, documents = read_documents(source, field=field, data_dir=data_dir)
    if not any(documents):
        raise ValueError(f"data.text: {name} holds no text")
    parts = _split(documents, validation_fraction)
    own = _tokenizer(tokenizer, *parts)
    several = len(documents) > 1
    train, validation = (rows_of(part, own, length=length, several=several) for part in parts)
    for what, rows in {"train": train, "validation": validation}.items():
        if not rows.num_tokens and (what == "train" or validation_fraction):
            raise ValueError(
                f"data.text: {name} is too short: nothing of {sum(map(len, documents))} "
                f"characters is left for {what}"
            )
    return TextSet(name, own, train, validation)


def read_documents(
    source: str | Path | None,
    *,
    field: str = "text",
    data_dir: str | Path | None = None,
) -> tuple[str, list[str]]:
    """Read the documents that a source holds, see `load`.

    Returns:
        What the source is called, and its documents.

    Raises:
        FileNotFoundError: if there is no such file or set.
        ValueError: if a file is no UTF-8, or a line has no text in that field.

    Example:
        >>> from kdjax.data import text
        >>> name, documents = text.read_documents(None)
        >>> name, len(documents[0]) > 100
        ('python-topics', True)
    """
    if source is None:
        # Part of every Python installation; its text is that of the version at hand.
        from pydoc_data.topics import topics

        return EMBEDDED, ["\n".join(_prose(topics[name]) for name in sorted(topics))]
    path = Path(source)
    if not path.exists():
        if isinstance(source, Path) or path.suffix in (".txt", *_LINES):
            raise FileNotFoundError(f"data.text: there is no file {path}")
        return source, _of_tfds(source, field, data_dir)
    if path.is_dir():
        raise FileNotFoundError(f"data.text: {path} is a folder, expected a file of text")
    try:
        # A mark of the order of bytes, which Windows writes first, is no text.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.text: {path} is no UTF-8 text ({error.reason} at byte {error.start}); where its "
            f"encoding is another: iconv -f latin1 -t utf-8 {shlex.quote(str(path))}"
        ) from error
    if path.suffix in _LINES:
        return path.stem, [_field_of(path, i, line, field) for i, line in _lines(text)]
    return path.stem, [text]


def rows_of(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    several: bool | None = None,
) -> Rows:
    """Turn documents into rows, one after the other without a gap.

    Where there are several, each begins and ends with the tokenizer's `end`, which belongs to the
    document behind it.

    Args:
        documents: texts.
        tokenizer: what makes tokens of them.
        length: tokens in a row.
        several: whether these are some of several; by default, whether they are more than one.

    Returns:
        The rows; the last one is filled up.

    Raises:
        ValueError: if the tokenizer does not give a document back, or there are several and it has
            no `end`.

    Example:
        >>> from kdjax.data import text
        >>> rows = text.rows_of(["to be", "or not"], text.by_bytes(), length=6)
        >>> print(rows.arrays["tokens"])
        [[256 116 111  32  98 101]
         [256 111 114  32 110 111]
         [116   0   0   0   0   0]]
    """
    documents = [text for text in documents if text]
    several = len(documents) > 1 if several is None else several
    if several:
        _check_end(tokenizer, len(documents))
    parts = [_encoded(tokenizer, text) for text in documents]
    stream, owner = _joined(parts, tokenizer.end if several else None)
    arrays = {"tokens": stream[:-1], "label": stream[1:], "mask": np.ones(len(stream[1:]), bool)}
    if several:
        arrays["document"] = owner[:-1]
    first = None if several or not len(stream) else tokenizer.decode([int(stream[0])])
    num_bytes = sum(len(text.encode()) for text in documents) - _bytes_of(first)
    return Rows({name: _cut(x, length) for name, x in arrays.items()}, num_bytes)


def _check_end(tokenizer: Tokenizer, count: int) -> None:
    if tokenizer.end is None:
        raise ValueError(
            f"data.text: there are {count} documents, and the tokenizer {tokenizer.name} has no "
            "token to end one with"
        )


def _bytes_of(first: str | None) -> int:
    """Return the bytes of a first token, which is no label; that of several documents is an end."""
    if first is None:
        return 0
    return 1 if "\ufffd" in first else len(first.encode())


def _joined(documents: Sequence[Sequence[int]], end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Join ids, an end before and behind each if it is given; tell which document each is of.

    An end belongs to the document behind it.
    """
    parts = [np.asarray(ids, np.int32) for ids in documents]
    if end is not None and parts:
        ends = np.asarray([end], np.int32)
        parts = [np.concatenate([ends, ids]) for ids in parts] + [ends]
    owners = [np.full(len(ids), number, np.int32) for number, ids in enumerate(parts)]
    nothing = np.zeros(0, np.int32)
    return np.concatenate([nothing, *parts]), np.concatenate([nothing, *owners])


def first(rows: Rows, fraction: float) -> Rows:
    """Keep the first rows: a share of them, one at least. Bytes are in proportion to the labels.

    Example:
        >>> from kdjax.data import text
        >>> rows = text.rows_of(["to be or not to be"], text.by_bytes(), length=4)
        >>> text.first(rows, 0.5).arrays["tokens"].shape
        (2, 4)
    """
    count = len(rows.arrays["tokens"])
    kept = max(1, round(fraction * count))
    arrays = {name: x[:kept] for name, x in rows.arrays.items()}
    share = arrays["mask"].sum() / max(1, rows.arrays["mask"].sum())
    return Rows(arrays, round(rows.num_bytes * share))


def compact(text: TextSet) -> tuple[TextSet, np.ndarray]:
    """Keep only the ids that a text has, numbered anew: a smaller vocabulary to learn.

    What a teacher says is then its answer among these ids alone. They are those of the whole text,
    so that every label has one.

    Returns:
        The set, and the old id of every new one, [kept], in order.

    Example:
        >>> from kdjax.data import text
        >>> rows = text.rows_of(["to be or not to be"], text.by_bytes(), length=4)
        >>> small, ids = text.compact(text.TextSet("hamlet", text.by_bytes(), rows, rows))
        >>> len(ids)
        9
    """
    own = text.tokenizer
    splits = (text.train, text.validation)
    there = [rows.arrays[name].ravel() for rows in splits for name in ("tokens", "label")]
    ends = [] if own.end is None else [np.asarray([own.end])]
    kept = np.unique(np.concatenate([*there, *ends])).astype(np.int32)
    new = {int(old): i for i, old in enumerate(kept)}

    def renumbered(rows: Rows) -> Rows:
        arrays = dict(rows.arrays)
        for name in ("tokens", "label"):
            arrays[name] = np.searchsorted(kept, arrays[name]).astype(np.int32)
        return rows._replace(arrays=arrays)

    tokenizer = Tokenizer(
        f"{own.name}, {len(kept)} ids {digest(kept.tobytes())}",
        lambda text: [new[i] for i in own.encode(text)],
        lambda ids: own.decode([int(kept[i]) for i in ids]),
        len(kept),
        None if own.end is None else new[own.end],
        own.file,
    )
    return TextSet(text.name, tokenizer, *map(renumbered, splits)), kept


def _cut(stream: np.ndarray, length: int) -> np.ndarray:
    """Cut [tokens] into [rows, length]; zeros fill up."""
    count = -(-len(stream) // length)
    return np.pad(stream, (0, count * length - len(stream))).reshape(count, length)


def _tokenizer(
    given: Tokenizer | str | Path, train: Sequence[str], validation: Sequence[str]
) -> Tokenizer:
    if isinstance(given, Tokenizer):
        return given
    if given == "bytes":
        return by_bytes()
    if given == "words":
        return by_words("\n".join(train))
    characters = given == "characters"
    return by_characters("".join([*train, *validation])) if characters else tokenizer_from(given)


def _prose(topic: str) -> str:
    """Leave out what is drawn with lines and spaces: tables."""
    lines = (line for line in topic.split("\n") if not line.lstrip().startswith(("|", "+--", "==")))
    return re.sub(" +", " ", "\n".join(lines))


def _encoded(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    """Return the ids of a text that are the text: some tokenizers leave out what they lack."""
    ids = tokenizer.encode(text)
    again = tokenizer.decode(ids)
    if again != text:
        pairs = enumerate(zip(text, again, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(text), len(again)))
        raise ValueError(
            f"data.text: the tokenizer {tokenizer.name} does not give the text back: from "
            f"character {at} on, {text[at : at + 12]!r} became {again[at : at + 12]!r}"
        )
    return ids


def _split(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Cut documents by position: what is trained on, what is validated on.

    They stay whole unless there would be twice or half as much to validate on as was asked.
    """
    if not fraction:
        return documents, []
    sizes = np.cumsum([len(text) for text in documents])
    kept = int(np.searchsorted(sizes, sizes[-1] * (1 - fraction), side="right"))
    whole = min(max(kept, 1), len(documents) - 1)
    share = 1 - sizes[whole - 1] / sizes[-1] if whole else 0
    if fraction / 2 <= share <= 2 * fraction:
        return documents[:whole], documents[whole:]
    kept = min(kept, len(documents) - 1)
    text = documents[kept]
    at = round(sizes[-1] * (1 - fraction)) - int(sizes[kept] - len(text))
    at = text.find("\n", at, min(at + 2000, len(text) - 1)) + 1 or at
    return [*documents[:kept], text[:at]], [text[at:], *documents[kept + 1 :]]


def _lines(text: str) -> list[tuple[int, str]]:
    # By "\n" alone: JSON may hold the other separators that `splitlines` knows.
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _field_of(path: Path, number: int, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"data.text: line {number} of {path} is no JSON ({error})") from error
    text = row.get(field) if isinstance(row, dict) else row
    if not isinstance(text, str):
        there = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"data.text: line {number} of {path} has no text in {field!r} ({there})")
    return text


def _of_tfds(name: str, field: str, data_dir: str | Path | None) -> list[str]:
    """Read the training documents of a set of TFDS."""
    with needs("data"):
        import tensorflow_datasets as tfds
    try:
        source = tfds.data_source(name, split="train", data_dir=data_dir, download=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise FileNotFoundError(
            f"data.text: {name} is neither a file nor a prepared set of TFDS ({reason})"
        ) from error
    texts = [row.get(field) for row in source]
    if not all(isinstance(text, bytes | str) for text in texts):
        raise ValueError(f"data.text: {name} has {', '.join(sorted(source[0]))}, no text {field!r}")
    return [text.decode() if isinstance(text, bytes) else text for text in texts]
