"""GGUF files, as llama.cpp has them, under Hugging Face's names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdjax._extras import needs
from kdjax.models._decoder_spec import LongContext, Rotary

_NAMES = (
    (r"^token_embd\.", "model.embed_tokens."), (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."), (r"^blk\.(\d+)\.", r"model.layers.\1."),
    (r"attn_norm", "input_layernorm"), (r"ffn_norm", "post_attention_layernorm"),
    (r"attn_(q|k)_norm", r"self_attn.\1_norm"), (r"attn_(q|k|v)\.", r"self_attn.\1_proj."),
    (r"attn_output", "self_attn.o_proj"), (r"ffn_(gate|up|down)", r"mlp.\1_proj"),
)  # fmt: skip
# The factors of Llama 3.1 and later; a file holds what they come to, not themselves.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_FREQUENCIES = "rope_freqs.weight"

Get = Callable[[str], Any]


def read_gguf(where: str, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the config.json that a GGUF file's metadata come to, and its arrays, in float32."""
    get, tensors = open_gguf(where, path)
    arrays = {tensor.name: _floating(where, tensor) for tensor in tensors}
    family = get("general.architecture")
    factors, config = arrays.pop(_FREQUENCIES, None), _config(family, get)
    config["tie_word_embeddings"] = "output.weight" not in arrays
    config["vocab_size"] = len(arrays.get("token_embd.weight", ()))
    if factors is not None and config["head_dim"]:
        config["rope_scaling"] = _stretched(where, config, factors)
    named = {_name(name): array for name, array in arrays.items()}
    if family == "llama":
        # What has not its shape is told of as it is.
        width = config["head_dim"] or 2
        for name, x in named.items():
            if re.search(r"self_attn\.(q|k)_proj\.", name) and len(x) % width == 0:
                named[name] = _halves(x, width)
    return config, named


def open_gguf(where: str, path: Path) -> tuple[Get, list[Any]]:
    """Open a GGUF file.

    Args:
        where: what a message begins with.
        path: the file.

    Returns:
        A function of a name to its metadata, None where it has none; and the tensors.

    Raises:
        MissingPackage: if the package `gguf` is not installed.
        ValueError: if it is no intact file of this kind.
    """
    with needs("text"):
        import gguf
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError, OverflowError) as error:
        raise ValueError(f"{where} is no intact .gguf file ({error})") from error

    def get(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    return get, list(reader.tensors)


def _floating(where: str, tensor: Any) -> np.ndarray:
    import gguf

    try:
        return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise ValueError(
            f"{where}: {tensor.name} is {kind}, which the package gguf does not turn into floating "
            "numbers; take a file of another quantization"
        ) from error


def _config(family: Any, get: Get) -> dict[str, Any]:
    """Return metadata under the names of config.json."""

    def own(name: str) -> Any:
        found = get(f"{family}.{name}")
        # Numbers are float32 there: 1e-05 is what was meant.
        return float(str(np.float32(found))) if isinstance(found, float) else found

    heads, width = own("attention.head_count"), own("embedding_length")
    divided = width // heads if isinstance(heads, int) and width else None
    head_width, rotated = own("attention.key_length") or divided, own("rope.dimension_count")
    return {
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": own("feed_forward_length"),
        "num_hidden_layers": own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own("attention.head_count_kv"),
        "head_dim": head_width,
        "max_position_embeddings": own("context_length"),
        "rms_norm_eps": own("attention.layer_norm_rms_epsilon"),
        "rope_theta": own("rope.freq_base"),
        "rope_scaling": {"rope_type": _scaling(own("rope.scaling.type"))},
        "partial_rotary_factor": rotated / head_width if rotated and head_width else None,
        "num_experts": own("expert_count"),
        "sliding_window": own("attention.sliding_window"),
        "use_sliding_window": own("attention.sliding_window") is not None,
        **{
            f"{ours}_token_id": get(f"tokenizer.ggml.{theirs}_token_id")
            for ours, theirs in TOKENS.items()
        },
    }


TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""Tokens with a meaning, and what metadata call them."""


def _scaling(kind: str | None) -> str:
    return "default" if kind in (None, "none") else kind


def _stretched(where: str, config: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Return the scaling that makes frequencies as many times slower as a file says."""
    factor, width = float(factors.max()), config["head_dim"]
    rotary = Rotary(config["rope_theta"] or 10_000.0)
    found = rotary._replace(stretched=LongContext(factor, _LOW, _HIGH, _ORIGINAL))
    expected = rotary.frequencies(width) / found.frequencies(width)
    if factors.shape != expected.shape or not np.allclose(expected, factors, rtol=1e-4):
        raise ValueError(
            f"{where}: {_FREQUENCIES} holds other factors, up to {factor:g}, than Llama 3 has"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def _name(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _halves(array: np.ndarray, head_width: int) -> np.ndarray:
    """Put rows of queries or keys back: llama.cpp has those that rotate together side by side."""
    pairs = array.reshape(-1, head_width // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
