"""Files of PyTorch state dicts."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax._extras import MissingPackage, needs

StateDict = Mapping[str, np.ndarray]

_TORCH = (".pth", ".pt", ".bin", ".tar", ".ckpt")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a PyTorch state dict, saved by PyTorch or as `.npz` or `.safetensors`.

    Args:
        path: the file, as `torch.save(state_dict, file)` writes it (`.pth`, `.pt`, `.bin`,
            `.pth.tar`, `.ckpt`; reading it takes PyTorch and runs no code of the file),
            `numpy.savez(file, **{k: v.numpy() for k, v in state_dict.items()})`, or
            `safetensors.torch.save_file(state_dict, file)`.

    Returns:
        The arrays by name, in the file's order (safetensors keeps none: by name, numbers in it by
        value). What lies deeper is named by the way there, as in "state_dict.conv1.weight".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, truncated or corrupt, or PyTorch's own where PyTorch
            is not installed; the message has the line that converts it.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from kdjax import models
        >>> path = pathlib.Path(tempfile.mkdtemp(), "weights.npz")
        >>> np.savez(path, **{"fc.weight": np.zeros((10, 4))})
        >>> models.read_state_dict(path)["fc.weight"].shape
        (10, 4)
    """
    file = os.fspath(path)
    reader = _READERS.get(os.path.splitext(file)[1])
    if not os.path.exists(file):
        raise FileNotFoundError(f"read_state_dict: there is no file {file}")
    if reader is None or not os.path.isfile(file):
        raise ValueError(
            f"read_state_dict: {file} is not a .npz, .safetensors or "
            "PyTorch (.pth, .pt, .bin, .pth.tar, .ckpt) file"
        )
    arrays = reader(file)
    odd = [name for name, array in arrays.items() if not _is_numeric(array)]
    if odd:
        raise ValueError(f"read_state_dict: {file} holds {odd[0]!r}, which is no array of numbers")
    return arrays


# What readers make of damage, of sizes that nothing can hold, and of types that NumPy lacks.
_DAMAGE = (ValueError, KeyError, OSError, AttributeError, TypeError, MemoryError)


def _read_npz(file: str) -> dict[str, np.ndarray]:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return dict(archive.items())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, *_DAMAGE) as error:
        raise ValueError(f"read_state_dict: {file} is no intact .npz file ({error})") from error


def _read_safetensors(file: str) -> dict[str, np.ndarray]:
    with needs("train"):
        import safetensors.numpy

    try:
        arrays = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        raise ValueError(
            f"read_state_dict: {file} is no intact .safetensors file ({error})"
        ) from error
    return {name: arrays[name] for name in sorted(arrays, key=by_number)}


def _read_torch(file: str) -> dict[str, np.ndarray]:
    try:
        with needs("torch"):
            import torch
    except MissingPackage as error:
        target = os.path.splitext(file)[0] + ".npz"
        line = (
            f"import torch, numpy; s = torch.load('{file}', 'cpu', weights_only=True); "
            "s = s.get('state_dict', s); "
            f"numpy.savez('{target}', **{{k: v.float().numpy() for k, v in s.items()}})"
        )
        raise ValueError(
            f"read_state_dict: {file} is PyTorch's own ({error}); or convert it where PyTorch is: "
            f'python -c "{line}"'
        ) from None
    try:
        whole = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"read_state_dict: {file} holds no intact weights alone ({type(error).__name__}: "
            f"{reason}); save model.state_dict(), without the objects beside it"
        ) from error
    return {name: as_numpy(leaf) for name, leaf in _leaves(whole)}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield tensors and numbers with the way to each."""
    if isinstance(tree, Mapping | list | tuple):
        pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in pairs:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif hasattr(tree, "detach") or isinstance(tree, int | float):
        yield prefix, tree


def as_numpy(leaf: Any) -> np.ndarray:
    """Return an array, which may be PyTorch's."""
    if not hasattr(leaf, "detach"):
        return np.asarray(leaf)
    # NumPy has no bfloat16 that PyTorch knows.
    wide = leaf.detach().float() if leaf.is_floating_point() else leaf.detach()
    return np.asarray(wide.numpy())


_READERS = {".npz": _read_npz, ".safetensors": _read_safetensors} | dict.fromkeys(
    _TORCH, _read_torch
)


def _is_numeric(array: object) -> bool:
    return isinstance(array, np.ndarray) and (
        array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, jnp.floating)
    )


def by_number(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
