"""The tokenizer that a GGUF file brings along."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdjax._extras import needs
from kdjax.models._gguf import TOKENS, open_gguf

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}{_OTHERS}",
    "qwen2": rf"{_WORDS}|\p{{N}}{_OTHERS}",
}
_KNOWN = ("gpt-2", "smollm", *_SPLITS)
# Kinds of tokens in the metadata.
_CONTROL, _WHOLE = 3, 4


class GgufTokenizer(NamedTuple):
    """A tokenizer of the package `tokenizers`, and what it does not say itself.

    `special` are the ids of `bos`, `eos`, `pad` and `unk`, as far as there are such: several may be
    one. `lost` are the bytes that no token stands for: `encode` passes over them in silence.
    """

    tokenizer: Any
    special: Mapping[str, int]
    lost: frozenset[int]


def tokenizer_of_gguf(path: str | os.PathLike[str]) -> GgufTokenizer:
    """Make the tokenizer that a GGUF file describes: byte pairs, as SmolLM, Llama 3 and Qwen have.

    It puts no token before or after a text. `tokenizer.save(file)` writes it as tokenizer.json.

    Args:
        path: the file.

    Returns:
        The tokenizer, its special ids, and the bytes that it loses.

    Raises:
        FileNotFoundError: if there is no such file.
        MissingPackage: if `gguf` or `tokenizers` is not installed.
        ValueError: if the file is damaged, or its tokenizer of another kind.
    """
    where = f"tokenizer_of_gguf: {path}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: there is no such file")
    get, _ = open_gguf(where, Path(path))
    told = {name: get(f"tokenizer.ggml.{name}") for name in ("model", "pre", "tokens", "merges")}
    if told["model"] != "gpt2" or told["pre"] not in _KNOWN:
        raise ValueError(
            f"{where}: tokenizer.ggml.model is {told['model']!r} and tokenizer.ggml.pre "
            f"{told['pre']!r}, expected 'gpt2' and {', '.join(map(repr, _KNOWN))}; take the "
            "tokenizer.json of the model"
        )
    kinds = get("tokenizer.ggml.token_type") or []
    made = _byte_pairs(told["pre"], told["tokens"], told["merges"] or [], kinds)
    found = {ours: get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in TOKENS.items()}
    special = {name: int(number) for name, number in found.items() if number is not None}
    symbols = _byte_symbols().items()
    lost = frozenset(byte for byte, symbol in symbols if made.token_to_id(symbol) is None)
    return GgufTokenizer(made, special, lost)


def _byte_pairs(pre: str, tokens: list[str], merges: list[str], kinds: list[int]) -> Any:
    with needs("text"):
        import tokenizers
        from tokenizers import pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    model = tokenizers.models.BPE(vocab, pairs, ignore_merges=pre == "llama-bpe")
    made = tokenizers.Tokenizer(model)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLITS)
    first: list[Any] = []
    if pre in _SPLITS:
        first = [pre_tokenizers.Split(tokenizers.Regex(_SPLITS[pre]), "isolated")]
    elif pre == "smollm":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, plain])
    if pre == "qwen2":
        made.normalizer = tokenizers.normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    whole = {
        kind: [t for t, own in zip(tokens, kinds, strict=False) if own == kind]
        for kind in (_CONTROL, _WHOLE)
    }
    added = tokenizers.AddedToken
    made.add_special_tokens([added(t, normalized=False, special=True) for t in whole[_CONTROL]])
    made.add_tokens([added(t, normalized=False) for t in whole[_WHOLE]])
    return made


def _byte_symbols() -> dict[int, str]:
    """Return the character that stands for each byte: those one cannot see are moved up."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = {byte: 256 + i for i, byte in enumerate(b for b in range(256) if b not in seen)}
    return {byte: chr(moved.get(byte, byte)) for byte in range(256)}
