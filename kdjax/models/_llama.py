"""Decoders of Llama's family as Hugging Face writes them: config.json and state dicts."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models._calls import flatten, unflatten
from kdjax.models._decoder import decoder
from kdjax.models._decoder_spec import DecoderSpec, Details, LongContext, Rotary
from kdjax.models._layers import DType, Features
from kdjax.models._pytorch import Path, check_arrays
from kdjax.models._torch_files import StateDict, as_numpy
from kdjax.models._torch_names import LLAMA, torch_name
from kdjax.types import Model, Variables

OWN = "kdjax"
"""The `model_type` of decoders that Hugging Face has no form for; their tensors have our names."""
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SIZES = {
    "vocab_size": "vocab_size", "width": "hidden_size", "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_key_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size", "context": "max_position_embeddings",
}  # fmt: skip
_LONG = {
    "factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}  # fmt: skip
# What would make another network of the same tensors; a config may also say nothing of it.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "rope_type": ("default", "llama3"),
    "partial_rotary_factor": (1, None), "attention_bias": (False, None), "mlp_bias": (False, None),
    "num_experts": (0, None), "num_local_experts": (0, None), "quantization_config": (None,),
}  # fmt: skip
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def from_llama(
    config: Mapping[str, Any],
    state_dict: StateDict,
    *,
    dtype: DType = None,
    param_dtype: DType = jnp.float32,
    features: Features = (),
) -> tuple[Model, Variables]:
    """Make a decoder of a state dict under Hugging Face's names, and of its config.json.

    Llama 2 and 3, SmolLM2, Qwen 2 and 2.5, and the dense ones of Qwen 3; `load_decoder` reads their
    files. What would need another network is refused.

    Args:
        config: config.json as a dictionary, of any version of `transformers`.
        state_dict: arrays by name, NumPy's or PyTorch's: `model.embed_tokens.weight`,
            `model.layers.0.self_attn.q_proj.weight`, ..., `lm_head.weight` where it is not tied.
        dtype: as for `transformer`.
        param_dtype: what parameters are kept in; `jnp.bfloat16` halves the room of a teacher.
        features: as for `transformer`.

    Returns:
        The model, and its variables.

    Raises:
        TypeError: if the config is no dictionary.
        ValueError: if the config asks for what the decoder does not have, naming it; or if arrays
            are missing, left over, of other shapes or not finite, naming the first of them.

    Example:
        >>> import json, pathlib, tempfile
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models
        >>> network, tokens = (
        ...     models.transformer(64, width=8, depth=1, num_heads=2),
        ...     np.ones((1, 2), int),
        ... )
        >>> shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
        >>> variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        >>> folder = tempfile.mkdtemp()
        >>> models.save_decoder(folder, network, variables)
        >>> config = json.loads(pathlib.Path(folder, "config.json").read_text())
        >>> state_dict = models.read_state_dict(pathlib.Path(folder, "model.safetensors"))
        >>> model, variables = models.from_llama(config, state_dict)
        >>> model.decode.vocab_size
        64
    """
    if not isinstance(config, Mapping):
        given = type(config).__name__
        raise TypeError(f"from_llama: config is a {given}, expected a dictionary: config.to_dict()")
    return decoder_of("from_llama", config, state_dict, dtype, param_dtype, features)


def decoder_of(
    where: str,
    config: Mapping[str, Any],
    state_dict: StateDict,
    dtype: DType,
    param_dtype: DType,
    features: Features,
) -> tuple[Model, Variables]:
    """Make a decoder, its variables under Hugging Face's names or ours; see `from_llama`."""
    spec = spec_of(where, config)
    model, own = decoder(spec, dtype, features), config["model_type"] == OWN
    leaves = flatten(_shapes(model)._asdict())
    arrays = {name: as_numpy(x) for name, x in _weights(where, spec, state_dict).items()}
    check_arrays(where, arrays, _expected(leaves, own))
    filled = {
        path: jnp.asarray(_ours(path, arrays[_name(path, own)], leaf.shape, own), param_dtype)
        for path, leaf in leaves.items()
    }
    return model, Variables(**{"state": {}, **unflatten(filled)})


def state_dict_of(
    where: str, spec: DecoderSpec, model: Model, variables: Variables
) -> dict[str, np.ndarray]:
    """Return a decoder's arrays under Hugging Face's names, or ours where it has no such form."""
    own = family_of(spec) == OWN
    arrays = {
        _name(path, own): np.ascontiguousarray(_theirs(path, np.asarray(leaf), own))
        for path, leaf in flatten(variables._asdict()).items()
    }
    check_arrays(where, arrays, _expected(flatten(_shapes(model)._asdict()), own))
    return arrays


def spec_of(where: str, config: Mapping[str, Any]) -> DecoderSpec:
    """Return what a config.json describes; raise a ValueError that names what we do not have."""
    family, rope = config.get("model_type"), _rope(config)
    _check_known(where, family, {**config, **rope})
    told: dict[str, Any] = {n: x for n, x in {**config, **rope}.items() if x is not None}
    told.setdefault("num_key_value_heads", told.get("num_attention_heads"))
    long = _LONG if rope["rope_type"] == "llama3" else {}
    wanted = *_SIZES.values(), *long.values()
    wrong = [name for name in wanted if not isinstance(told.get(name), int | float)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} is {told.get(wrong[0])!r}, expected a number")
    sizes = {ours: int(told[name]) for ours, name in _SIZES.items()}
    stretched = LongContext(**{ours: told[name] for ours, name in long.items()}) if long else None
    tied, details = told.get("tie_word_embeddings", False), _details(told, stretched)
    return DecoderSpec(**sizes, tied=tied, details=details)


def _details(told: Mapping[str, Any], stretched: LongContext | None) -> Details:
    family, head_width = told["model_type"], told.get("head_dim")
    usual = (head_width or 0) * told["num_attention_heads"] == told["hidden_size"]
    return Details(
        head_width=None if usual else head_width,
        rotary=Rotary(told["rope_theta"], stretched),
        epsilon=told.get("rms_norm_eps", 1e-6),
        bias=family == "qwen2" or told.get("query_key_value_bias", False),
        query_key_norm=family == "qwen3" or told.get("query_key_norm", False),
        embedding_width=told.get("embedding_width"),
        frozen_embedding=told.get("frozen_embedding", False),
    )


def config_of(spec: DecoderSpec) -> dict[str, Any]:
    """Return the config.json that describes a decoder."""
    family, own = family_of(spec), spec.details
    stretched, scaling = own.rotary.stretched, None
    if stretched is not None:
        long = {theirs: getattr(stretched, name) for name, theirs in _LONG.items()}
        scaling = {"rope_type": "llama3", **long}
    config = {
        "model_type": family,
        "architectures": [_CLASSES.get(family, "transformer")],
        **{theirs: getattr(spec, name) for name, theirs in _SIZES.items()},
        "head_dim": spec.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": own.epsilon,
        "rope_theta": own.rotary.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": spec.tied,
        "attention_bias": False,
        "mlp_bias": False,
        # Their classes have numbers of their own for what is not there.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family == OWN:
        config |= {
            "query_key_value_bias": own.bias,
            "query_key_norm": own.query_key_norm,
            "embedding_width": own.embedding_width,
            "frozen_embedding": own.frozen_embedding,
        }
    return config


def family_of(spec: DecoderSpec) -> str:
    """Return the family that Hugging Face has for a decoder, `OWN` where it has none."""
    own = spec.details
    if own.embedding_width is not None or own.frozen_embedding or (own.bias and own.query_key_norm):
        return OWN
    if own.bias or own.query_key_norm:
        return "qwen2" if own.bias else "qwen3"
    return OWN if spec.width % spec.num_heads else "llama"


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of rotary positions, wherever the version that wrote it did."""
    told = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    # It may say so for each type of layer.
    told = {**told, **told.get("full_attention", {})}
    theta = told.get("rope_theta") or config.get("rope_theta") or 10_000.0
    kind = told.get("rope_type") or told.get("type") or "default"
    return {**told, "rope_type": kind, "rope_theta": theta}


def _check_known(where: str, family: Any, told: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the decoder has all that a config asks for."""
    if family not in (*_CLASSES, OWN):
        raise ValueError(f"{where}: model_type is {family!r}, expected {', '.join(_CLASSES)}")
    for name, accepted in _ONLY.items():
        value = told.get(name, accepted[0])
        # Qwen 2 has its biases whatever it says.
        if value not in accepted and (family, name) != ("qwen2", "attention_bias"):
            raise ValueError(
                f"{where}: {name} is {value!r}, which the decoder does not have, only "
                f"{' or '.join(map(repr, accepted))}"
            )
    classes = told.get("architectures") or ["ForCausalLM"]
    if family != OWN and not any(name.endswith("ForCausalLM") for name in classes):
        raise ValueError(f"{where}: architectures is {classes}, expected one ForCausalLM")
    _check_window(where, told)


def _check_window(where: str, told: Mapping[str, Any]) -> None:
    window, layers = told.get("sliding_window"), set(told.get("layer_types") or ())
    first, context = told.get("max_window_layers") or 0, told.get("max_position_embeddings") or 0
    slides = told.get("use_sliding_window") and first < (told.get("num_hidden_layers") or 0)
    if (slides and window and window < context) or layers - {"full_attention"}:
        raise ValueError(
            f"{where}: sliding_window is {window} (layer_types {sorted(layers)}) in a context of "
            f"{context}; in the decoder every layer sees all tokens before"
        )


def _weights(where: str, spec: DecoderSpec, state_dict: StateDict) -> StateDict:
    """Return the arrays that count: old files hold frequencies, and some a tied head too."""
    arrays = {n: x for n, x in state_dict.items() if not n.endswith("rotary_emb.inv_freq")}
    if not (spec.tied and _HEAD in arrays and _EMBEDDING in arrays):
        return arrays
    head, embedding = as_numpy(arrays.pop(_HEAD)), as_numpy(arrays[_EMBEDDING])
    if not np.array_equal(head, embedding):
        raise ValueError(
            f"{where}: tie_word_embeddings is true, but {_HEAD} {head.shape} is not "
            f"{_EMBEDDING} {embedding.shape}"
        )
    return arrays


def _shapes(model: Model) -> Variables:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes: Variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return shapes


def _name(path: Path, own: bool) -> str:
    return ".".join(path) if own else torch_name(path[1:], LLAMA)


def _expected(leaves: Mapping[Path, Any], own: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a decoder's arrays by the names that files have for them."""
    shapes = {}
    for path, leaf in leaves.items():
        turned = jax.eval_shape(functools.partial(_theirs, path, own=own), leaf)
        shapes[_name(path, own)] = turned.shape
    return shapes


def _theirs(path: Path, x: Any, own: bool) -> Any:
    """Return an array as PyTorch has it: biases without the axis of heads, kernels transposed."""
    if own or path[-1] in ("scale", "embedding") or path[-2] == "head":
        return x
    if path[-1] == "bias":
        return x.reshape(-1)
    read = 2 if path[-2] == "out" else 1
    return x.reshape(math.prod(x.shape[:read]), -1).T


def _ours(path: Path, x: np.ndarray, shape: tuple[int, ...], own: bool) -> np.ndarray:
    turned = path[-1] == "kernel" and path[-2] != "head" and not own
    return (x.T if turned else x).reshape(shape)
