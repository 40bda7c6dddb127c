"""What both adapters share: how a network is called and how its features are named."""

import contextlib
import dataclasses
import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kdjax.types import Array, PyTree

CallFn = Callable[[Any, Any, bool], Any]
"""Calls a network in its own way: `(module, inputs, train) -> logits`."""

# Flax has no types for these two.
flatten: Callable[[PyTree], dict[tuple[str, ...], Any]] = traverse_util.flatten_dict
unflatten: Callable[[Mapping[tuple[str, ...], Any]], PyTree] = traverse_util.unflatten_dict

_TRAIN_FLAGS = ("train", "training", "is_training", "is_train", "train_mode")
_EVAL_FLAGS = ("deterministic", "use_running_average", "inference", "eval_mode", "is_eval", "eval")
_ARRAYS = (jax.Array, np.ndarray)
_NUM_LISTED = 24


class Feature(NamedTuple):
    """A feature as it was asked for: `name`, the module's path, and which of its calls."""

    name: str
    path: str
    call: int | None


def switches(train: bool) -> dict[str, bool]:
    """Return the names under which networks are told whether they train, and what they are told."""
    return dict.fromkeys(_TRAIN_FLAGS, train) | dict.fromkeys(_EVAL_FLAGS, not train)


def call_module(module: Any, inputs: Any, train: bool) -> Any:
    """Call a module, telling it to train through whichever flags its `__call__` has.

    A flag that is an attribute too has been set there: some modules refuse to be told twice.
    """
    parameters = inspect.signature(module.__call__).parameters
    told = {name for name in parameters if not isinstance(getattr(module, name, None), bool)}
    return module(inputs, **{k: v for k, v in switches(train).items() if k in told})


def check_unchanged(where: str, module: Any, state: PyTree, new: PyTree) -> None:
    """Raise a ValueError if evaluation has put other arrays in the place of a network's state."""
    old = flatten(state)
    moved = [path for path, leaf in flatten(new).items() if path in old and leaf is not old[path]]
    if not moved:
        return
    raise ValueError(
        f"{where}: evaluation of {type(module).__name__} changes its state "
        f"{'/'.join(moved[0])}: it answers in training mode; call its switch `train` or "
        f"`deterministic`, as an argument or an attribute{_own_switches(module)}"
    )


def _own_switches(module: Any) -> str:
    """Say what may switch a module to training: what is true or false by itself."""
    given = inspect.signature(module.__call__).parameters
    own = [f", {name}=train" for name, p in given.items() if isinstance(p.default, bool)]
    if own:
        return f", or pass call_fn=lambda module, inputs, train: module(inputs{''.join(own)})"
    held = [n for n, x in vars(module).items() if isinstance(x, bool) and n[0] != "_"]
    return f" (it has {', '.join(held)})" if held else ""


@contextlib.contextmanager
def one_program(where: str) -> Iterator[None]:
    """Say what to do about a network that was written for `jax.pmap`."""
    try:
        yield
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            f"{where}: the network names an axis of jax.pmap ({str(error).splitlines()[0]}); drop "
            "axis_name: a step is one program, and its batch that of all devices"
        ) from error


def logits_fn(
    where: str, call_fn: CallFn | None
) -> Callable[[Any, Any, bool], tuple[Array, dict[str, tuple[Any, ...]]]]:
    """Make what calls a network and returns its logits, and whatever else it returns by name.

    It says what to do where none of the outputs is known to be the logits.
    """

    def run(module: Any, inputs: Any, train: bool) -> tuple[Array, dict[str, tuple[Any, ...]]]:
        outputs = (call_fn or call_module)(module, inputs, train)
        hint = "pick it with call_fn=lambda module, inputs, train: ..."
        return split_outputs(where, type(module).__name__, outputs, _as_array, hint)

    return run


def split_outputs(
    where: str, name: str, outputs: Any, array_fn: Callable[[Any], Any], hint: str
) -> tuple[Array, dict[str, tuple[Any, ...]]]:
    """Return a network's logits, and all its outputs by name, such as "hidden_states/2".

    Args:
        where: the function that a message begins with.
        name: the network's.
        outputs: an array, or several in mappings, sequences and data classes, one of which is
            named `logits`.
        array_fn: makes an array of JAX of a leaf, None of what is no array.
        hint: what to do where none is.

    Raises:
        TypeError: if none is.
    """
    named = {path: (array,) for path, array in _named(outputs, array_fn)}
    # One array alone has no name.
    found = named.pop("", None) or named.get("logits")
    if found is None:
        of = f" of {', '.join(named)}" if named else ""
        raise TypeError(
            f"{where}: {name} returned a {type(outputs).__name__}{of}, expected one array of "
            f"logits, or several by name of which one is `logits`; {hint}"
        )
    return found[0], named


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, _ARRAYS) else None


def _named(
    outputs: Any, array_fn: Callable[[Any], Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a nested structure with their paths."""
    array = array_fn(outputs)
    if array is not None:
        yield prefix, array
        return
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    elif hasattr(outputs, "_asdict"):
        outputs = outputs._asdict()
    elif isinstance(outputs, tuple | list):
        outputs = dict(enumerate(outputs))
    for key, value in outputs.items() if isinstance(outputs, Mapping) else ():
        yield from _named(value, array_fn, f"{prefix}/{key}" if prefix else str(key))


def values_by_path(leaves: Iterable[tuple[Sequence[Any], Any]]) -> dict[str, tuple[Any, ...]]:
    """Return what modules have returned or sown, one entry a call, by path."""
    found: dict[str, tuple[Any, ...]] = defaultdict(tuple)
    for path, value in leaves:
        parts = path[:-1] if path[-1] == "__call__" else path
        values = value if isinstance(value, tuple) else (value,)
        found["/".join(map(str, parts)).replace(".", "/")] += values
    return found


def parse_features(where: str, names: Sequence[str]) -> list[Feature]:
    """Read names such as "stage_1/block_0", "stage_1.block_0" or "stage_1/block_0:2"."""
    if isinstance(names, str):
        raise TypeError(f"{where}: features is the string {names!r}, expected a sequence of paths")
    return [_parse(where, name) for name in names]


def check_paths(where: str, features: Sequence[Feature], known: Collection[str]) -> None:
    """Raise a ValueError that lists what there is, if a feature is not among it."""
    for feature in features:
        if feature.path not in known:
            near = difflib.get_close_matches(feature.path, known, n=5)
            listed = sorted(path for path in known if path)
            more = ", ..." if len(listed) > _NUM_LISTED else ""
            raise ValueError(
                f"{where}: features has {feature.name!r}, but no module that the network calls, no "
                "value that it sows and no other output has this name; "
                + (f"near matches: {', '.join(near)}; " if near else "")
                + f"there are: {', '.join(listed[:_NUM_LISTED])}{more}"
            )


def pick_features(
    where: str, features: Sequence[Feature], calls: Mapping[str, tuple[Any, ...]]
) -> dict[str, Array]:
    """Choose the features among the outputs of every call of every captured module."""
    return {
        feature.name: _pick(where, feature, calls.get(feature.path, ())) for feature in features
    }


def _parse(where: str, name: str) -> Feature:
    path, colon, call = name.partition(":")
    if colon and not call.isdecimal():
        raise ValueError(
            f"{where}: features has {name!r}, expected a call's number after the colon"
        )
    return Feature(name, path.replace(".", "/"), int(call) if colon else None)


def _pick(where: str, feature: Feature, outputs: tuple[Any, ...]) -> Array:
    count, call = len(outputs), feature.call
    if count == 0:
        raise ValueError(
            f"{where}: the outputs of {feature.name!r} cannot be captured: the module was not "
            "called, or was called inside a scan"
        )
    if call is None and count > 1:
        choices = ", ".join(f"'{feature.path}:{k}'" for k in range(count))
        raise ValueError(
            f"{where}: {feature.name!r} is called {count} times; choose one of {choices}"
        )
    if call is not None and call >= count:
        raise ValueError(
            f"{where}: features has {feature.name!r}, but the module is called {count} times"
        )
    output = outputs[call or 0]
    if not isinstance(output, _ARRAYS):
        raise TypeError(
            f"{where}: the module at {feature.name!r} returns a {type(output).__name__}, "
            "expected one array"
        )
    return jnp.asarray(output)
