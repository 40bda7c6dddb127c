"""PyTorch state dicts as variables of our networks, without PyTorch."""

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models._calls import flatten, unflatten
from kdjax.models._torch_files import StateDict, by_number
from kdjax.models._torch_names import (
    HEADS,
    LEAVES,
    NUM_CUSTOMS,
    SECOND_HEADS,
    Rule,
    rules_of,
    torch_name,
    usual_names,
)
from kdjax.types import Array, Variables

Path = tuple[str, ...]

_WRAPPERS = ("module.", "model.", "state_dict.", "_orig_mod.")
# What training scripts keep beside the weights.
_BESIDE = re.compile(r"(\w*optim\w*|\w*sched\w*|scaler|amp|args|config|hyper_parameters|loops)\.")
_NORMALIZATION = ("normalisation.mean", "normalisation.std")
# Of our own parameters, which PyTorch never calls so.
_KERNEL, _OWN_HEAD = re.compile(r"(^|[./])kernel$"), re.compile(r"(^|[./])head[./]kernel$")
_NUM_LISTED = 3


def from_pytorch(
    state_dict: StateDict, like: Variables, *, image_shape: Sequence[int] | None = None
) -> Variables:
    """Return the variables that a PyTorch state dict has for a network of ours.

    ResNets go by torchvision's names: `conv1`, `bn1`, `layer1.0.conv1`, ...,
    `layer2.0.downsample.0` (or `shortcut.0`), `fc`; vision transformers by those of timm, Hugging
    Face or torchvision; other networks for small images by those of RepDistiller. Multilayer
    perceptrons go by order: the first weight is the first layer's, whatever its name. A model that
    `from_torch` makes goes by the names of its own module.

    Arrays by our own names, such as "stage_1/block_0/conv_1/kernel", are taken as they are, with
    "params/" and "state/" before them or without. What is around the names is found out: "module.",
    "backbone.", "net.", ...; the classifier may have any of its usual names. `num_batches_tracked`
    and the normalization are left out; what is no weight of the network (`epoch`, an optimizer's
    arrays, a moving average beside the network) is passed over, and a warning names it. Learned
    positions of a transformer for images of another size are interpolated.

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
            first of them, what the state dict holds and what was looked for.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from kdjax import models
        >>> network = models.mlp(2, widths=(3,))
        >>> like = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 4), np.float32))
        >>> state_dict = {
        ...     "0.weight": np.ones((3, 4), np.float32),
        ...     "0.bias": np.zeros(3, np.float32),
        ...     "2.weight": np.ones((2, 3), np.float32),
        ...     "2.bias": np.zeros(2, np.float32),
        ... }
        >>> variables = models.from_pytorch(state_dict, like)
        >>> models.num_params(variables.params)
        23
    """
    if any(_KERNEL.search(name) for name in state_dict):
        return _of_own_names(state_dict, like)
    arrays = _weights_in(state_dict)
    params, stats = flatten(like.params), flatten(like.state)
    leaves = params | stats
    if {len(path) for path in leaves} == {1}:
        return _of_module(arrays, like)
    names, arrays = _matched({path: path[path in stats :] for path in leaves}, arrays, image_shape)
    shapes = {names[path]: _torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    arrays = {name: _resized(name, x, shapes.get(name, x.shape)) for name, x in arrays.items()}
    check_arrays("from_pytorch", arrays, shapes)
    filled = {path: _ours(arrays[name], leaves[path]) for path, name in names.items()}
    parts = [{path: filled[path] for path in part} for part in (params, stats)]
    return Variables(*map(unflatten, parts))


def classes_of(state_dict: StateDict) -> int | None:
    """Return how many classes a state dict's classifier has, None where none has a usual name.

    Example:
        >>> import numpy as np
        >>> from kdjax import models
        >>> models.classes_of({"fc.weight": np.zeros((100, 64)), "fc.bias": np.zeros(100)})
        100
    """
    if own := [x for name, x in state_dict.items() if _OWN_HEAD.search(name)]:
        return int(own[-1].shape[-1])
    ends = tuple(f".{head}.weight" for head in HEADS)
    found = [x for name, x in state_dict.items() if f".{name}".endswith(ends) and x.ndim == 2]
    return found[-1].shape[0] if found else None


def normalization_of(state_dict: StateDict) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the normalization that a state dict brings along, for `normalized`.

    Args:
        state_dict: arrays by name; `normalisation.mean` and `normalisation.std` are looked for.

    Returns:
        (mean, std), float32 [channels] each, in units where white is 1; None where there is none.

    Raises:
        ValueError: if only one of the two is there, or their shapes are not [channels].

    Example:
        >>> import numpy as np
        >>> from kdjax import models
        >>> names = "normalisation.mean", "normalisation.std"
        >>> mean, std = models.normalization_of(dict.fromkeys(names, np.full(3, 0.5)))
        >>> print(mean, std)
        [0.5 0.5 0.5] [0.5 0.5 0.5]
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


def _unwrapped(state_dict: StateDict) -> dict[str, np.ndarray]:
    wrappers = re.compile(rf"^({'|'.join(map(re.escape, _WRAPPERS))})+")
    arrays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        short = wrappers.sub("", name)
        if short in arrays:
            raise ValueError(f"from_pytorch: the state dict has {short!r} twice, as {name!r} too")
        arrays[short] = array
    return arrays


def _weights_in(state_dict: StateDict) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(array)
        for name, array in _unwrapped(state_dict).items()
        if name not in _NORMALIZATION and not name.endswith("num_batches_tracked")
    }


def _of_own_names(arrays: StateDict, like: Variables) -> Variables:
    """Return variables from arrays by our own names, whatever comes before these."""
    parts = flatten(like.params), flatten(like.state)
    names = {"/".join(map(str, path)) for part in parts for path in part}

    def own_name(name: str) -> str:
        steps = name.replace(".", "/").split("/")
        ends = ("/".join(steps[i:]) for i in range(len(steps)))
        return next((end for end in ends if end in names), name)

    own = {own_name(name): np.asarray(x) for name, x in arrays.items() if np.ndim(x)}
    shapes = {"/".join(map(str, p)): tuple(x.shape) for part in parts for p, x in part.items()}
    check_arrays("from_pytorch", own, shapes)
    filled = [{p: jnp.asarray(own["/".join(map(str, p))], x.dtype) for p, x in part.items()}
              for part in parts]  # fmt: skip
    return Variables(*map(unflatten, filled))


def _of_module(arrays: dict[str, np.ndarray], like: Variables) -> Variables:
    """Return the variables of a PyTorch module, by its own names."""
    wanted = {name: leaf for part in like for name, leaf in part.items() if leaf.shape}
    own, passed, _ = _found(arrays, wanted)
    if passed:
        _warn(passed)
    shapes = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    check_arrays("from_pytorch", own, shapes)
    # What is one number counts batches.
    blank = {n: jnp.zeros(x.shape, x.dtype) for part in like for n, x in part.items()}
    filled = blank | {name: jnp.asarray(own[name], leaf.dtype) for name, leaf in wanted.items()}
    return Variables(*({name: filled[name] for name in part} for part in like))


def _warn(passed: Sequence[str]) -> None:
    text = "from_pytorch: passed over what is no weight of the network: " + _listed(passed)
    warnings.warn(text, stacklevel=4)


def _matched(
    places: Mapping[Path, Path], arrays: dict[str, np.ndarray], image_shape: Sequence[int] | None
) -> tuple[dict[Path, str], dict[str, np.ndarray]]:
    """Return PyTorch's names of our arrays, and its arrays by these names.

    Args:
        places: by the path of each array, that of its layer's entry.
        arrays: by name.
        image_shape: as for `from_pytorch`.
    """
    layers = {"/".join(path[:-1]) for path in places.values()}
    schemes = [rules for custom in range(NUM_CUSTOMS) if (rules := rules_of(layers, custom))]
    if schemes:
        names, own, passed = _by_name(schemes, places, usual_names(arrays))
    else:
        names, own, passed = _by_order(places, arrays, image_shape)
    if passed:
        _warn(passed)
    return names, own


def _by_name(
    schemes: Sequence[Sequence[Rule]], places: Mapping[Path, Path], arrays: dict[str, np.ndarray]
) -> tuple[dict[Path, str], dict[str, np.ndarray], list[str]]:
    """Return names, arrays and what is passed over, by the custom that finds most of them."""
    named = [{p: torch_name(at, rules) for p, at in places.items()} for rules in schemes]
    found = [(names, *_found(arrays, names.values())) for names in named]
    names, own, passed, _ = max(found, key=lambda each: each[-1])
    return names, own, passed


def _by_order(
    places: Mapping[Path, Path], arrays: dict[str, np.ndarray], image_shape: Sequence[int] | None
) -> tuple[dict[Path, str], dict[str, np.ndarray], list[str]]:
    """Return names, arrays and what is passed over for a perceptron."""
    own = {name: array for name, array in arrays.items() if not _is_beside(name, array)}
    theirs = _perceptron_layers(places.values(), own)
    names = {path: _perceptron_name(at, theirs) for path, at in places.items()}
    passed = [name for name in arrays if name not in own]
    return names, _channels_last(own, theirs, image_shape), passed


def _found(
    arrays: StateDict, wanted: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str], int]:
    """Return a network's arrays by its own names, what is passed over, and how many were found."""
    names = set(wanted)
    start, others = _starts(arrays, names)
    own = {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}
    rest = {name: x for name, x in arrays.items() if not name.startswith(start)}
    _take_head(own, rest, names, start)
    own |= {name: rest.pop(name) for name in rest.keys() & names if name.startswith(SECOND_HEADS)}
    passed = [n for n, x in own.items() if _is_beside(n, x) or f"{start}{n}".startswith(others)]
    for name in passed:
        del own[name]
    return own, [*rest, *map(start.__add__, passed)], len(names & own.keys())


def _starts(arrays: StateDict, names: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return what the names of a network begin with, and those of its copies."""
    places = Counter(start for name in arrays for start in _before(name, names))
    ranked = sorted(places, key=lambda at: (-places[at], len(at))) or [""]
    first, second = ranked[0], "".join(ranked[1:2])
    most = places[first]
    if first and places[second] == most and 2 * most > len(names):
        raise ValueError(
            f"from_pytorch: the state dict has the network 2 times, under {first} and {second}: "
            "give the entries of one of them"
        )
    # A layer inside may have the names of a few others: a copy has most of them.
    return first, tuple(at for at in ranked[1:] if at and 2 * places[at] > most)


def _before(name: str, names: set[str]) -> list[str]:
    """Return what may come before the name that is looked for."""
    parts = name.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    return [name.removesuffix(end) for end in ends if end in names]


def _is_beside(name: str, array: np.ndarray) -> bool:
    return array.ndim == 0 or _BESIDE.match(name) is not None


def _take_head(
    own: dict[str, np.ndarray], rest: dict[str, np.ndarray], names: set[str], start: str
) -> None:
    """Give a classifier the name that is looked for, whichever usual one it has, and where.

    It may lie beside the network: under a part of what the network's names begin with.
    """
    wanted = next((head for head in HEADS if f"{head}.weight" in names), None)
    if wanted is None or f"{wanted}.weight" in own:
        return
    outside = _parents(start)
    taken = names - {f"{wanted}.weight"}
    for held, where in [(own, ""), *((rest, at) for at in reversed(outside))]:
        for alias in HEADS:
            if f"{where}{alias}.weight" in held.keys() - taken:
                for leaf in held.keys() & {f"{where}{alias}.{x}" for x in ("weight", "bias")}:
                    own[f"{wanted}.{leaf.rpartition('.')[2]}"] = held.pop(leaf)
                return


def _parents(start: str) -> list[str]:
    """Return what is around what names begin with, from the outside."""
    parts = start.split(".")
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) - 1)]


def _listed(names: Sequence[str]) -> str:
    """List the first of some names, and how many more there are."""
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(names[:_NUM_LISTED]) + more


def _perceptron_layers(places: Collection[Path], arrays: StateDict) -> dict[str, str]:
    """Pair our layers with PyTorch's, in order of appearance."""
    ours = sorted({path[0] for path in places}, key=lambda name: (name == "head", by_number(name)))
    if not all(re.fullmatch(r"hidden_\d+|head", name) for name in ours):
        there = ", ".join(list(arrays)[:_NUM_LISTED])
        raise ValueError(
            f"from_pytorch: the layers of the network have no known names in PyTorch: "
            f"{', '.join(ours[:_NUM_LISTED])}, ...; the state dict holds {there}, ..."
        )
    theirs = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays))
    if len(ours) != len(theirs):
        raise ValueError(
            f"from_pytorch: the state dict has {len(theirs)} layers ({_listed(theirs)}), "
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


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that PyTorch has for an array of ours."""
    if path[0] == "tokens":
        return tuple(shape)
    if "attention" in path:
        # Ours has the heads on an axis of their own: behind what is read, or before in `out`.
        read = shape[:-1] if path[-2] == "out" else shape[:1]
        shape = (math.prod(read), math.prod(shape[len(read) :]))
        shape = (math.prod(shape),) if path[-1] == "bias" else shape
    return (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _ours(array: np.ndarray, leaf: Array) -> Array:
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    if array.ndim == 2:
        array = array.T
    return jnp.asarray(array, leaf.dtype).reshape(leaf.shape)


def _resized(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return learned positions [1, tokens + height * width, channels] for other square grids."""
    if array.shape == shape or array.ndim != 3 or len(shape) != 3 or "pos" not in name:
        return array
    counts = array.shape[1], shape[1]
    # A class token comes first, and perhaps a distillation token.
    for lead in (1, 2):
        old, new = (math.isqrt(max(count - lead, 0)) for count in counts)
        if counts == (old**2 + lead, new**2 + lead):
            grid = array[:, lead:].reshape(old, old, array.shape[-1])
            moved = np.asarray(jax.image.resize(grid, (new, new, array.shape[-1]), "cubic"))
            return np.concatenate([array[:, :lead], moved.reshape(1, new * new, -1)], axis=1)
    return array


def check_arrays(where: str, arrays: StateDict, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError that begins with `where`, unless arrays have these names and shapes."""
    heads = tuple(f"{head}." for head in HEADS)
    problems: list[str] = []
    extra = [name for name in arrays if name not in expected]
    for name in sorted(expected, key=lambda name: (name.startswith(heads), by_number(name))):
        shape = expected[name]
        if name not in arrays:
            # To look takes time, and the first few are told.
            near = _nearest(name, arrays, extra) if len(problems) < _NUM_LISTED else ""
            problems.append(f"{name} {shape} is missing{near}")
        elif arrays[name].shape != shape:
            problems.append(f"{name} has shape {arrays[name].shape}, expected {shape}")
        elif not np.all(np.isfinite(arrays[name].astype(np.float32))):
            problems.append(f"{name} is not finite")
    unexpected = [f"{name} {arrays[name].shape} is unexpected" for name in extra]
    # What was looked for and what is there, side by side.
    problems = problems[:2] + unexpected[:1] + problems[2:] + unexpected[1:]
    if problems:
        more = f"; and {len(problems) - _NUM_LISTED} more" if len(problems) > _NUM_LISTED else ""
        raise ValueError(
            f"{where}: {'; '.join(problems[:_NUM_LISTED])}{more}; the state dict holds "
            f"{_listed([*arrays])}; looked for are {_listed([*expected])}"
        )


def _nearest(name: str, arrays: StateDict, extra: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, extra, n=1)
    return f" (nearest: {near[0]} {arrays[near[0]].shape})" if near else ""
