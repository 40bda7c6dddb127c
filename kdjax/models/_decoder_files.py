"""Files of decoders: folders as Hugging Face has them, read and written, and GGUF files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax._extras import needs
from kdjax.distributed import gathered, is_leader
from kdjax.models._decoder_spec import DecoderSpec
from kdjax.models._gguf import read_gguf
from kdjax.models._layers import DType, Features
from kdjax.models._llama import config_of, decoder_of, state_dict_of
from kdjax.models._torch_files import read_state_dict
from kdjax.types import Model, Variables

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class Pretrained(NamedTuple):
    """A decoder that was read from files.

    `config` is what its config.json says, `eos_token_id` and the like among it; a GGUF file's
    metadata under the same names.
    """

    model: Model
    variables: Variables
    config: Mapping[str, Any]


def load_decoder(
    path: str | os.PathLike[str],
    *,
    dtype: DType = None,
    param_dtype: DType = jnp.float32,
    features: Features = (),
) -> Pretrained:
    """Read a decoder: Llama 2 and 3, SmolLM2, Qwen 2 and 2.5, the dense ones of Qwen 3, or ours.

    Args:
        path: a folder of config.json and .safetensors files, as `save_decoder` and Hugging Face
            write it; or a .gguf file, whose quantized weights become floating ones.
        dtype: as for `transformer`.
        param_dtype: what parameters are kept in; `jnp.bfloat16` halves the room of a teacher.
        features: as for `transformer`.

    Returns:
        The model, its variables and its config.

    Raises:
        FileNotFoundError: if there is no such folder or file, or the folder lacks a file.
        MissingPackage: if the package that reads the file is not installed.
        ValueError: if a file is damaged, or describes what is not in the list; see `from_llama`.

    Example:
        >>> import tempfile
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
        >>> model, variables, config = models.load_decoder(folder, features=("norm",))
        >>> model.decode.vocab_size
        64
    """
    path = Path(path)
    where = f"load_decoder: {path}"
    if not path.exists():
        raise FileNotFoundError(f"{where}: there is no such folder or .gguf file")
    if path.is_file() and path.suffix != ".gguf":
        raise ValueError(f"{where} is no folder and no .gguf file; give the folder of config.json")
    config, arrays = read_gguf(where, path) if path.is_file() else _read_folder(where, path)
    return Pretrained(*decoder_of(where, config, arrays, dtype, param_dtype, features), config)


def save_decoder(
    path: str | os.PathLike[str],
    model: Model,
    variables: Variables,
    *,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write a decoder as a folder that `load_decoder` reads, and Hugging Face's `transformers`.

    The folder holds config.json and model.safetensors, in the type that the variables have. What
    Hugging Face has no form for is written under our own names, for `load_decoder` alone: a decoder
    whose `details` say `embedding_width`, `frozen_embedding`, both `bias` and `query_key_norm`, or
    a `head_width` in a width that the heads do not divide, without either.

    Args:
        path: the folder, made where there is none.
        model: what `transformer`, `from_llama` or `load_decoder` made.
        variables: its variables.
        config: entries of config.json to add, such as `{"eos_token_id": 2}`.

    Raises:
        MissingPackage: if safetensors is not installed.
        ValueError: if the model is no `transformer`, or the variables are another's.

    Example:
        >>> import tempfile
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
        >>> models.load_decoder(folder).config["vocab_size"]
        64
    """
    path = Path(path)
    with needs("train"):
        import safetensors.numpy
    spec = model.decode.spec if model.decode else None
    if not isinstance(spec, DecoderSpec):
        raise ValueError("save_decoder: model was not made by transformer, which knows its sizes")
    arrays = state_dict_of("save_decoder", spec, model, gathered(variables))
    kind = str(next(iter(arrays.values())).dtype)
    told = {**config_of(spec), "torch_dtype": kind, **(config or {})}
    if is_leader():
        path.mkdir(parents=True, exist_ok=True)
        # What is there stays whole until what replaces it is.
        unfinished = path / f"{_WEIGHTS}.unfinished"
        safetensors.numpy.save_file(arrays, unfinished, metadata={"format": "pt"})
        unfinished.replace(path / _WEIGHTS)
        (path / _CONFIG).write_text(json.dumps(told, indent=2) + "\n")


def _read_folder(where: str, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the config of a folder, and its arrays by name, of all its shards."""
    config, files = _read_json(where, path / _CONFIG), [path / _WEIGHTS]
    if not files[0].exists():
        index = path / f"{_WEIGHTS}.index.json"
        named = _read_json(where, index)["weight_map"].values() if index.exists() else ()
        files = [path / name for name in sorted(set(named))] or sorted(path.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pth"))
        hint = "; from_llama(config, read_state_dict(file)) takes " + others[0] if others else ""
        raise FileNotFoundError(f"{where}: there is no {_WEIGHTS}{hint}")
    return config, {name: x for file in files for name, x in read_state_dict(file).items()}


def _read_json(where: str, path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{where}: there is no {path.name}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{where}: {path.name} is no intact JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {path.name} holds a {type(found).__name__}, no dictionary")
    return found
