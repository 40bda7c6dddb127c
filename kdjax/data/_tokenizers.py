"""What turns text into ids and back: words, bytes, characters, and tokenizers from files."""

import collections
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax._extras import needs

_WORD = re.compile(r" ?\w+|[^\w]")


class Tokenizer(NamedTuple):
    """What turns text into ids in [0, vocab_size) and back; `end` is the one between documents.

    `file` is what `tokenizer_from` reads, where it can be kept in a file.
    """

    name: str
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    end: int | None
    file: str = ""


def by_bytes() -> Tokenizer:
    """Return the tokenizer whose ids are the bytes of UTF-8, and 256 between documents.

    Example:
        >>> from kdjax.data import text
        >>> text.by_bytes().encode("hi")
        [104, 105]
    """

    def decode(ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    file = json.dumps({"kdjax": "bytes"})
    return Tokenizer("bytes", lambda text: list(text.encode()), decode, 257, 256, file)


def by_words(text: str, *, num_words: int = 767) -> Tokenizer:
    """Return the tokenizer of a text's frequent words; what is none of them is spelled in bytes.

    A word is letters and digits with the space before them, if there is one; all else is a
    character. Every text has its ids, and they give it back.

    Args:
        text: where words are counted.
        num_words: how many of them have an id of their own, behind the 256 of the bytes and the one
            between documents; 1,024 ids in all by default.

    Returns:
        The tokenizer.

    Example:
        >>> from kdjax.data import text
        >>> tokenizer = text.by_words("to be or not to be", num_words=3)
        >>> tokenizer.decode(tokenizer.encode("to be"))
        'to be'
    """
    counts = collections.Counter(_WORD.findall(text))
    # The most frequent first, and those that are as frequent in the order of their letters.
    ranked = sorted((-count, word) for word, count in counts.items() if len(word.encode()) > 1)
    return _of_words([word for _, word in ranked[:num_words]])


def _of_words(words: list[str]) -> Tokenizer:
    """Return the tokenizer of these words, and of bytes."""
    ids = {word: 257 + i for i, word in enumerate(words)}
    pieces = [bytes([i]) for i in range(256)] + [b"", *(word.encode() for word in words)]

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for word in _WORD.findall(text):
            known = ids.get(word)
            found += word.encode() if known is None else [known]
        return found

    def decode(given: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in given).decode("utf-8", "replace")

    file = json.dumps({"kdjax": "words", "words": words})
    return Tokenizer(f"words {digest(file)}", encode, decode, len(pieces), 256, file)


def by_characters(text: str) -> Tokenizer:
    """Return the tokenizer whose ids are the characters of a text, in order, and one more.

    Example:
        >>> from kdjax.data import text
        >>> tokenizer = text.by_characters("banana")
        >>> tokenizer.decode(tokenizer.encode("nab"))
        'nab'
    """
    characters = sorted(set(text))
    ids = {character: i for i, character in enumerate(characters)}

    def encode(text: str) -> list[int]:
        unknown = set(text) - ids.keys()
        if unknown:
            raise ValueError(f"data.text: {min(unknown)!r} is no character of the tokenizer's text")
        return [ids[character] for character in text]

    def decode(given: Sequence[int]) -> str:
        return "".join(characters[i] for i in given if i < len(characters))

    size, file = len(characters), json.dumps({"kdjax": "characters", "words": characters})
    return Tokenizer(f"characters {digest(file)}", encode, decode, size + 1, size, file)


def tokenizer_from(path: str | Path) -> Tokenizer:
    """Read a tokenizer: a `tokenizer.json` of the `tokenizers` package or ours, or a GGUF model's.

    No token is added around a text. What lies between documents is the token for the end of a text,
    by the names that models give it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no tokenizer.
        MissingPackage: without the extra `text`.

    Example:
        >>> from kdjax.data import text
        >>> try:
        ...     text.tokenizer_from("tokenizer.json")
        ... except FileNotFoundError as error:
        ...     print(error)
        data.text: there is no tokenizer tokenizer.json
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data.text: there is no tokenizer {path}")
    if (ours := _ours(path)) is not None:
        return ours
    with needs("text"):
        import tokenizers
    if path.suffix == ".gguf":
        from kdjax.data._gguf import tokenizer_of_gguf

        own: Any = tokenizer_of_gguf(path).tokenizer
    else:
        try:
            own = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"data.text: {path} holds no tokenizer ({reason})") from error
    ends = (own.token_to_id(name) for name in _ENDS)
    return Tokenizer(
        f"tokenizer {digest(own.to_str())}",
        lambda text: own.encode(text, add_special_tokens=False).ids,
        lambda ids: own.decode([int(i) for i in ids], skip_special_tokens=False),
        max(own.get_vocab().values()) + 1,
        next((i for i in ends if i is not None), None),
        own.to_str(),
    )


def _ours(path: Path) -> Tokenizer | None:
    """Read a tokenizer that was written by us, None if it is another's."""
    if path.suffix != ".json":
        return None
    try:
        content = json.loads(path.read_bytes())
        kind, words = content["kdjax"], content.get("words", [])
    except (ValueError, LookupError, TypeError):
        return None
    if kind == "characters":
        return by_characters("".join(words))
    return _of_words(words) if kind == "words" else by_bytes()


_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


def digest(content: str | bytes) -> str:
    """Digest text or bytes."""
    whole = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(whole).hexdigest()[:16]
