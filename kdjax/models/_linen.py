"""Flax Linen modules as pairs of pure functions."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from flax import errors
from flax import linen as nn
from flax.core import DenyList

from kdjax.models import _calls
from kdjax.models._calls import CallFn, flatten
from kdjax.types import Array, FeaturePaths, Model, Outputs, PyTree, Variables

_INTERMEDIATES = "intermediates"


def from_linen(
    module: nn.Module,
    *,
    features: Sequence[str] = (),
    call_fn: CallFn | None = None,
    paths: FeaturePaths | None = None,
) -> Model:
    """Turn a Linen module into a model.

    The module is called with the inputs and with whichever of `train`, `training`, `is_training`,
    `is_train`, `train_mode` (true in training) and `deterministic`, `use_running_average`,
    `inference`, `eval_mode`, `is_eval`, `eval` (true in evaluation) its `__call__` takes; its
    attributes of these names, and those of modules among them, are set likewise where they are
    true or false. In training, `key` seeds the "dropout" stream as it is, and every other stream
    that the module asks for; evaluation has no random numbers and must leave the state alone.

    The state holds every collection but "params" and those of values that modules sow.

    Args:
        module: a module that returns logits [batch..., num_classes], or several outputs by name
            (a dictionary, a named tuple, a data class), `logits` among them.
        features: what to capture: paths of submodules for their outputs, such as "stage_1/block_0"
            or "stage_1.block_0"; of values that are sown, such as "attention/attention_weights";
            names of other outputs, such as "hidden_states/2". A module that is called more than
            once is an error unless the path says which call, counted from zero: "activation:2".
        call_fn: `(module, inputs, train) -> outputs`, for modules that are called otherwise, or
            whose outputs have no names.
        paths: where it has the features that methods look at, and its classifier; `Model.paths`.

    Returns:
        A model; `Outputs.features` has the captured arrays under the names in `features`.

    Raises:
        TypeError: if `module` is none of Linen; from init and apply, if none of its outputs is
            known to be the logits.
        ValueError: from init and apply, if a path in `features` names nothing, or a module that is
            called several times; from apply, if the module needs random numbers and has no key,
            changes its state in evaluation, or names an axis of `jax.pmap`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from kdjax import models
        >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(10)])
        >>> network = models.from_linen(module, features=("layers_0",))
        >>> x = jnp.ones((2, 4))
        >>> variables = jax.jit(network.init)(jax.random.key(0), x)
        >>> outputs, _ = network.apply(*variables, x, train=False)
        >>> outputs.logits.shape, outputs.features["layers_0"].shape
        ((2, 10), (2, 8))
    """
    told = _modes(module, call_fn)
    wanted = _calls.parse_features("from_linen", features)
    captured, run = {feature.path for feature in wanted}, _calls.logits_fn("from_linen", call_fn)

    def init(key: Array, inputs: Any) -> Variables:
        called: set[str] = set()
        keep = _keep(frozenset(), called)
        make = nn.init_with_output(run, told[True], capture_intermediates=keep)
        (_, named), made = make(key, inputs, True)
        collections = dict(made)
        params = collections.pop("params", {})
        shapes = functools.partial(_shapes_without, run, told[True], key, inputs)
        sown = [name for name, found in collections.items() if _is_sown(name, found, shapes)]
        state = _without(collections, sown)
        values = _by_path(_without(collections, state))
        _calls.check_paths("from_linen", wanted, {*called, *named, *values})
        return Variables(params, state)

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        called: set[str] = set()
        # What modules sow is kept where features are asked for: one may be among them.
        mutable: Any = DenyList("params") if wanted else [*state]
        keep = _keep(captured, called)
        forward = nn.apply(run, told[train], mutable=mutable, capture_intermediates=keep)
        try:
            with _calls.one_program("from_linen"):
                (logits, named), changed = forward(
                    {"params": params, **state}, inputs, train, rngs=_streams(key) if train else {}
                )
        except errors.InvalidRngError as error:
            raise ValueError(_needs_key(module, train)) from error
        values = {**named, **_by_path(_without(changed, state))}
        _calls.check_paths("from_linen", wanted, {*called, *values})
        found = _calls.pick_features("from_linen", wanted, values)
        new_state = {name: changed[name] for name in state}
        if not train:
            _calls.check_unchanged("from_linen", module, state, new_state)
        return Outputs(logits, found), new_state if train else state

    return Model(init, apply, paths or FeaturePaths())


def _modes(module: nn.Module, call_fn: CallFn | None) -> dict[bool, nn.Module]:
    """Return a module as it trains (True) and as it evaluates (False)."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"from_linen: module is a {type(module).__name__}, expected an instance of a "
            "flax.linen.Module; NNX modules go to from_nnx(lambda rngs: Net(..., rngs=rngs))"
        )
    return {train: module if call_fn else _told(module, train) for train in (True, False)}


def _told(module: nn.Module, train: bool) -> nn.Module:
    """Return a module whose attributes say whether it trains, where it has such."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if isinstance(value, nn.Module) and field.name != "parent":
            changes[field.name] = _told(value, train)
        elif isinstance(value, bool) and field.name in _calls.switches(train):
            changes[field.name] = _calls.switches(train)[field.name]
    same = all(getattr(module, name) is value for name, value in changes.items())
    return module if same else module.clone(**changes)


def _keep(paths: frozenset[str] | set[str], called: set[str]) -> Callable[[nn.Module, str], bool]:
    """Make a filter that captures the modules at `paths` and notes all that are called."""

    def keep(module: nn.Module, method: str) -> bool:
        path = "/".join(module.path).replace(".", "/")
        if method == "__call__":
            called.add(path)
        return method == "__call__" and path in paths

    return keep


def _without(collections: PyTree, names: Collection[str]) -> dict[str, PyTree]:
    return {name: found for name, found in collections.items() if name not in names}


def _by_path(collections: PyTree) -> dict[str, tuple[Any, ...]]:
    """Return what modules returned and sowed, by path, whichever collection it is in."""
    leaves = flatten(collections).items()
    return _calls.values_by_path((path[1:], values) for path, values in leaves)


def _shapes_without(
    run: Callable[..., Any], module: nn.Module, key: Array, inputs: Any, name: str
) -> None:
    """Trace a network's first call where nothing can be put into a collection."""
    make = nn.init_with_output(run, module, mutable=DenyList(name))
    jax.eval_shape(lambda key, inputs: make(key, inputs, True), key, inputs)


def _is_sown(name: str, collection: PyTree, shapes_without: Callable[[str], None]) -> bool:
    """Whether a collection holds what modules sow: then the network runs without it."""
    # What is known is not traced for: BatchNorm's statistics, and what is sown by default.
    if name == "batch_stats":
        return False
    if name == _INTERMEDIATES or any(isinstance(x, tuple) for x in flatten(collection).values()):
        return True
    try:
        shapes_without(name)
    except errors.FlaxError:
        return False
    return True


def _streams(key: Array | None) -> dict[str, Array]:
    # Linen serves a stream that is not there from "params": one entry stands for all the others.
    return {} if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}


def _needs_key(module: nn.Module, train: bool) -> str:
    name = type(module).__name__
    if train:
        return f"from_linen: {name} needs random numbers in training, but key is None"
    return (
        f"from_linen: {name} asks for random numbers in evaluation; give its __call__ an argument "
        "`train` or `deterministic`, or pass call_fn"
    )
