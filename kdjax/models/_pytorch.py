"""PyTorch state dicts as variables of our networks, without PyTorch."""

import functools
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kdjax._extras import needs
from kdjax.models._calls import flatten, unflatten
from kdjax.models._torch_names import LEAVES, rules_of, torch_name, usual_name
from kdjax.types import Array, Variables

Path = tuple[str, ...]
StateDict = Mapping[str, np.ndarray]

_WRAPPERS = ("module.", "model.", "state_dict.", "_orig_mod.")
_NORMALIZATION = ("normalisation.mean", "normalisation.std")
_NUM_LISTED = 3


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a PyTorch state dict that was saved as `.npz` or `.safetensors`.

    Args:
        path: the file, as `numpy.savez(file, **{k: v.numpy() for k, v in state_dict.items()})` or
            `safetensors.torch.save_file(state_dict, file)` write it.

    Returns:
        The arrays by name, in the file's order (safetensors keeps none: by name, numbers in it by
        value).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, truncated or corrupt.
    """
    file = os.fspath(path)
    reader = _READERS.get(os.path.splitext(file)[1])
    if not os.path.exists(file):
        raise FileNotFoundError(f"read_state_dict: there is no file {file}")
    if reader is None or not os.path.isfile(file):
        raise ValueError(f"read_state_dict: {file} is not a .npz or .safetensors file")
    arrays = reader(file)
    odd = [name for name, array in arrays.items() if not _is_numeric(array)]
    if odd:
        raise ValueError(f"read_state_dict: {file} holds {odd[0]!r}, which is no array of numbers")
    return arrays


def from_pytorch(
    state_dict: StateDict, like: Variables, *, image_shape: Sequence[int] | None = None
) -> Variables:
    """Return the variables that a PyTorch state dict has for a network of convolutions or an `mlp`.

    ResNets go by the usual names: `conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.downsample.0`
    (or `shortcut.0`), `fc` (or `linear`, `classifier`). Wide ResNets, VGGs, MobileNetV2 and the
    ShuffleNets go by those of RepDistiller. Multilayer perceptrons go by order: the first weight is
    the first layer's, whatever its name. Wrappers around the names ("module.", "model.",
    "state_dict.") are taken off; `num_batches_tracked` and the normalization left out.

    Args:
        state_dict: arrays by name: convolutions OIHW, linear layers (out, in).
        like: variables of the network to fill, or their shapes, as
            `jax.eval_shape(model.init, key, inputs)` gives them.
        image_shape: (height, width, channels) of the images that a perceptron was trained on. It
            matters where there is more than one channel: PyTorch flattens channels first, we last.
            None: the first layer's inputs are in our order already.

    Returns:
        Variables with the shapes and types of `like`.

    Raises:
        ValueError: if arrays are missing, left over, of other shapes or not finite, naming the
            first of them.
    """
    arrays = {
        name: np.asarray(array)
        for name, array in _unwrapped(state_dict).items()
        if name not in _NORMALIZATION and not name.endswith("num_batches_tracked")
    }
    params, stats = flatten(like.params), flatten(like.state)
    name_fn, arrays = _matched(params, arrays, image_shape)
    names = {path: name_fn(path) for path in params} | {path: name_fn(path[1:]) for path in stats}
    leaves = params | stats
    _check(arrays, {names[path]: _torch_shape(leaf.shape) for path, leaf in leaves.items()})
    filled = {path: _ours(arrays[name], leaves[path].dtype) for path, name in names.items()}
    parts = [{path: filled[path] for path in part} for part in (params, stats)]
    return Variables(*map(unflatten, parts))


def normalization_of(state_dict: StateDict) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the normalization that a state dict brings along, for `normalized`.

    Args:
        state_dict: arrays by name; `normalisation.mean` and `normalisation.std` are looked for.

    Returns:
        (mean, std), float32 [channels] each, in units where white is 1; None where there is none.

    Raises:
        ValueError: if only one of the two is there, or their shapes are not [channels].
    """
    arrays = _unwrapped(state_dict)
    found = [name for name in _NORMALIZATION if name in arrays]
    if not found:
        return None
    if len(found) == 1:
        raise ValueError(f"normalization_of: the state dict has {found[0]} without its counterpart")
    mean, std = (np.asarray(arrays[name], np.float32) for name in _NORMALIZATION)
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(
            f"normalization_of: mean has shape {mean.shape} and std {std.shape}, "
            "expected [channels] for both"
        )
    return mean, std


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
    return {name: arrays[name] for name in sorted(arrays, key=_by_number)}


_READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}


def _is_numeric(array: object) -> bool:
    return isinstance(array, np.ndarray) and (
        array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, jnp.floating)
    )


def _by_number(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _unwrapped(state_dict: StateDict) -> dict[str, np.ndarray]:
    wrappers = re.compile(rf"^({'|'.join(map(re.escape, _WRAPPERS))})+")
    arrays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        short = wrappers.sub("", name)
        if short in arrays:
            raise ValueError(f"from_pytorch: the state dict has {short!r} twice, as {name!r} too")
        arrays[short] = array
    return arrays


def _matched(
    params: Collection[Path], arrays: dict[str, np.ndarray], image_shape: Sequence[int] | None
) -> tuple[Callable[[Path], str], dict[str, np.ndarray]]:
    """Return what names our arrays as PyTorch does, and PyTorch's arrays by these names."""
    rules = rules_of({"/".join(path[:-1]) for path in params})
    if rules is not None:
        usual = {usual_name(name): array for name, array in arrays.items()}
        return functools.partial(torch_name, rules=rules), usual
    layers = _perceptron_layers(params, arrays)
    name_fn = functools.partial(_perceptron_name, layers=layers)
    return name_fn, _channels_last(arrays, layers, image_shape)


def _perceptron_layers(params: Collection[Path], arrays: StateDict) -> dict[str, str]:
    """Pair our layers with PyTorch's, in order of appearance."""
    ours = sorted({path[0] for path in params}, key=lambda name: (name == "head", _by_number(name)))
    if not all(re.fullmatch(r"hidden_\d+|head", name) for name in ours):
        there = ", ".join(list(arrays)[:_NUM_LISTED])
        raise ValueError(
            f"from_pytorch: the layers of the network have no known names in PyTorch: "
            f"{', '.join(ours[:_NUM_LISTED])}, ...; the state dict holds {there}, ..."
        )
    theirs = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays))
    if len(ours) != len(theirs):
        raise ValueError(
            f"from_pytorch: the state dict has {len(theirs)} layers ({', '.join(theirs)}), "
            f"like has {len(ours)} ({', '.join(ours)})"
        )
    return dict(zip(ours, theirs, strict=True))


def _perceptron_name(path: Path, layers: Mapping[str, str]) -> str:
    return ".".join(part for part in (layers[path[0]], LEAVES[path[-1]]) if part)


def _channels_last(
    arrays: dict[str, np.ndarray], layers: Mapping[str, str], image_shape: Sequence[int] | None
) -> dict[str, np.ndarray]:
    """Reorder the first layer's inputs from channels, height, width to height, width, channels."""
    first = _perceptron_name((next(iter(layers)), "kernel"), layers)
    if image_shape is None or first not in arrays:
        return arrays
    height, width, channels = image_shape
    weight = arrays[first]
    if weight.shape[1:] != (height * width * channels,):
        raise ValueError(
            f"from_pytorch: {first} has shape {weight.shape}, expected "
            f"{height * width * channels} inputs for image_shape {tuple(image_shape)}"
        )
    planes = weight.reshape(-1, channels, height, width)
    return arrays | {first: planes.transpose(0, 2, 3, 1).reshape(weight.shape)}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _ours(array: np.ndarray, dtype: DTypeLike) -> Array:
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    return jnp.asarray(array.T if array.ndim == 2 else array, dtype)


def _check(arrays: StateDict, expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    for name in sorted(expected, key=lambda name: (name.startswith("fc."), _by_number(name))):
        shape = expected[name]
        if name not in arrays:
            problems.append(f"{name} {shape} is missing")
        elif arrays[name].shape != shape:
            problems.append(f"{name} has shape {arrays[name].shape}, expected {shape}")
        elif not np.all(np.isfinite(arrays[name].astype(np.float32))):
            problems.append(f"{name} is not finite")
    extra = [name for name in arrays if name not in expected]
    unexpected = [f"{name} {arrays[name].shape} is unexpected" for name in extra]
    # What was looked for and what is there, side by side.
    problems = problems[:2] + unexpected[:1] + problems[2:] + unexpected[1:]
    if problems:
        more = f"; and {len(problems) - _NUM_LISTED} more" if len(problems) > _NUM_LISTED else ""
        raise ValueError(f"from_pytorch: {'; '.join(problems[:_NUM_LISTED])}{more}")
