"""Flax NNX modules as pairs of pure functions."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from kdjax.models import _calls
from kdjax.models._calls import CallFn, flatten, unflatten
from kdjax.types import Array, FeaturePaths, Model, Outputs, PyTree, Variables

State = nnx.State[str | int, Any]
MakeModule = Callable[[nnx.Rngs], nnx.Module]
# Flax has no types for this.
_eager_sharding: Callable[[bool], AbstractContextManager[None]] = nnx.use_eager_sharding


class _Feature(nnx.Variable[Any]):
    """Holds what a captured module returned, one entry per call."""


def from_nnx(
    make_module: MakeModule,
    *,
    features: Sequence[str] = (),
    call_fn: CallFn | None = None,
    paths: FeaturePaths | None = None,
) -> Model:
    """Turn an NNX module into a model.

    Each call works on a copy, put in training or evaluation mode by `module.train()` and
    `module.eval()`, and by setting the attributes of all modules in it that are named as the
    arguments in `from_linen` and true or false; `__call__` gets the inputs and whichever of these
    arguments it takes. In training every random stream is seeded anew from `key`; evaluation that
    draws random numbers or changes the state is refused, and the state holds no stream.

    Where a variable has axis names (`nnx.with_partitioning`), so has its array: it comes in a
    `flax.linen.Partitioned`, as from Linen, and `kdjax.sharding` places it by them.

    Args:
        make_module: makes the module, as in `lambda rngs: Net(32, rngs=rngs)`; it returns logits
            [batch..., num_classes], or several outputs by name, as in `from_linen`.
        features: what to capture: paths of submodules for their outputs, such as "blocks/0/norm"
            or "blocks.0.norm", of values that are sown, or names of other outputs. A module that is
            called more than once is an error unless the path says which call, counted from zero:
            "activation:2".
        call_fn: `(module, inputs, train) -> outputs`, for modules that are called otherwise, or
            whose outputs have no names.
        paths: where it has the features that methods look at, and its classifier; `Model.paths`.

    Returns:
        A model with `nnx.Param` as its params and the other variables as its state, both as nested
        dictionaries by attribute; `Outputs.features` is keyed by the names in `features`.

    Raises:
        TypeError: if `make_module` makes no NNX module; from init and apply, if none of the
            module's outputs is known to be the logits.
        ValueError: from init and apply, if a path in `features` names nothing, or a module that is
            not called or called several times; from apply, if the module draws random
            numbers in training and `key` is None, or in evaluation, or changes its state there, or
            names an axis of `jax.pmap`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from kdjax import models
        >>> network = models.from_nnx(lambda rngs: nnx.Linear(4, 10, rngs=rngs))
        >>> x = jnp.ones((2, 4))
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
        >>> outputs, _ = jax.eval_shape(lambda v: network.apply(*v, x, train=False), variables)
        >>> outputs.logits.shape
        (2, 10)
    """
    wanted = _calls.parse_features("from_nnx", features)
    blueprint = _blueprint(make_module)
    graphdef, (params_like, streams_like, state_like) = _split(blueprint)
    modules = {_join(path) for path, _ in nnx.iter_modules(blueprint)}
    run = _calls.logits_fn("from_nnx", call_fn)

    def init(key: Array, inputs: Any) -> Variables:
        variables = variables_of(_made(make_module, nnx.Rngs(key)))
        jax.eval_shape(functools.partial(apply, train=False), *variables, inputs)
        return variables

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        streams = _streams(streams_like, key if train else None)
        parts = _filled(params_like, params), streams, _filled(state_like, state)
        module = nnx.merge(graphdef, *parts, copy=True)
        _tell(module, train)
        if wanted:
            _record(module, {feature.path for feature in wanted})
        with _calls.one_program("from_nnx"):
            (logits, named), recorded = nnx.capture(run, _Feature)(module, inputs, train)
        _, (_, new_streams, new_state) = _split(module)
        if (key is None or not train) and _drew(streams, new_streams):
            raise ValueError(
                f"from_nnx: {type(blueprint).__name__} needs random numbers in "
                + ("training, but key is None" if train else "evaluation: it is in training mode")
            )
        kept = _like(state_like, new_state)
        if not train:
            _calls.check_unchanged("from_nnx", blueprint, state, kept)
        values = {**named, **_by_path(recorded)}
        _calls.check_paths("from_nnx", wanted, {*modules, *values})
        captured = _calls.pick_features("from_nnx", wanted, values)
        return Outputs(logits, captured), kept if train else state

    return Model(init, apply, paths or FeaturePaths())


def variables_of(module: nnx.Module) -> Variables:
    """Read the variables of a live NNX module, for the model that `from_nnx` makes of its kind.

    Args:
        module: an instance, trained or not; it is left as it is.

    Returns:
        Its `nnx.Param` as params, its other variables but random streams as state.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from kdjax import models
        >>> make = lambda: models.variables_of(nnx.Linear(4, 10, rngs=nnx.Rngs(0)))
        >>> models.num_params(jax.eval_shape(make).params)
        50
    """
    _, (params, _, state) = _split(module)
    return Variables(_nested(params), _nested(state))


def _blueprint(make_module: MakeModule) -> nnx.Module:
    if isinstance(make_module, nnx.Module):
        raise TypeError(
            f"from_nnx: make_module is a {type(make_module).__name__}, expected a function of rngs "
            "that makes one; the variables of a live module are variables_of(module)"
        )
    blueprint = nnx.eval_shape(lambda: _made(make_module, nnx.Rngs(0)))
    if not isinstance(blueprint, nnx.Module):
        raise TypeError(
            "from_nnx: make_module made no nnx.Module; expected lambda rngs: Net(..., rngs=rngs)"
        )
    return blueprint


def _made(make_module: MakeModule, rngs: nnx.Rngs) -> nnx.Module:
    # Otherwise axis names would ask for a mesh here: arrays are placed later, by the whole tree.
    with _eager_sharding(False):
        return make_module(rngs)


def _split(module: nnx.Module) -> tuple[Any, list[State]]:
    """Split a module into its structure and its parameters, random streams and other variables."""
    graphdef, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return graphdef, states


def _tell(module: nnx.Module, train: bool) -> None:
    """Put a module in training or evaluation mode."""
    # Of the class: an attribute may have the name of the method.
    mode: Callable[[nnx.Module], None] = getattr(type(module), "train" if train else "eval")
    mode(module)
    for _, child in nnx.iter_modules(module):
        for name, value in _calls.switches(train).items():
            if isinstance(vars(child).get(name), bool):
                setattr(child, name, value)


def _join(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


def _value(leaf: Any) -> Any:
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def _array(leaf: Any) -> Any:
    """Return a variable's array, in a box with the names of its axes if it has some."""
    names = leaf.get_metadata().get("out_sharding") if isinstance(leaf, nnx.Variable) else None
    return nn.Partitioned(_value(leaf), tuple(names)) if names else _value(leaf)


def _nested(state: State) -> PyTree:
    # Indices of lists become strings: a dictionary with keys of two types is no pytree.
    leaves = {tuple(map(str, path)): _array(leaf) for path, leaf in nnx.to_flat_state(state)}
    return unflatten(leaves)


def _filled(like: State, tree: PyTree) -> State:
    """Return variables of the types of `like` with the arrays of a nested dictionary."""
    arrays = flatten(tree)

    def fill(path: tuple[Any, ...], leaf: Any) -> Any:
        array = arrays[tuple(map(str, path))]
        array = array.value if isinstance(array, nn.Partitioned) else array
        return leaf.replace(array) if isinstance(leaf, nnx.Variable) else array

    return nnx.from_flat_state({path: fill(path, leaf) for path, leaf in nnx.to_flat_state(like)})


def _like(like: State, state: State) -> PyTree:
    """Keep the variables that a fresh module has; what else a call leaves behind is no state."""
    leaves = dict(nnx.to_flat_state(state))
    return _nested(nnx.from_flat_state({path: leaves[path] for path, _ in nnx.to_flat_state(like)}))


def _streams(like: State, key: Array | None) -> State:
    """Seed every random stream from a key, each with its own."""
    root = jax.random.key(0) if key is None else key
    if not jnp.issubdtype(root.dtype, jax.dtypes.prng_key):
        root = jax.random.wrap_key_data(root)

    def seed(index: int, leaf: nnx.Variable[Any]) -> nnx.Variable[Any]:
        shape = leaf.get_raw_value().shape
        if not isinstance(leaf, nnx.RngKey):
            return leaf.replace(jnp.zeros(shape, jnp.uint32))
        own = jax.random.fold_in(root, index)
        return leaf.replace(jax.random.split(own, shape) if shape else own)

    flat = nnx.to_flat_state(like)
    return nnx.from_flat_state({path: seed(i, leaf) for i, (path, leaf) in enumerate(flat)})


def _drew(before: State, after: State) -> bool:
    # A traced count has no value to compare, but drawing from a stream replaces it.
    old, new = nnx.to_flat_state(before), dict(nnx.to_flat_state(after))
    return any(
        isinstance(leaf, nnx.RngCount) and _value(leaf) is not _value(new[path])
        for path, leaf in old
    )


def _record(module: nnx.Module, paths: set[str]) -> None:
    """Make modules keep what they sow, and those at `paths` what they return.

    They belong to one call's copy.
    """
    for path, child in list(nnx.iter_modules(module)):
        object.__setattr__(child, "__class__", _recording(type(child), _join(path) in paths))


@functools.cache
def _recording(cls: Any, returned: bool) -> Any:
    def sow(self: Any, variable_type: Any, name: str, value: Any, *how: Any, **named: Any) -> bool:
        # Under one type, whichever the module's own: it is known when it is sown.
        return bool(cls.sow(self, _Feature, name, value, *how, **named))

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = cls.__call__(self, *args, **kwargs)
        cls.sow(self, _Feature, "__call__", outputs)
        return outputs

    members = {"__qualname__": cls.__qualname__, "__module__": cls.__module__, "sow": sow}
    return type(cls)(cls.__name__, (cls,), members | ({"__call__": __call__} if returned else {}))


def _by_path(recorded: State) -> dict[str, tuple[Any, ...]]:
    leaves = nnx.to_flat_state(recorded)
    return _calls.values_by_path((path, _value(leaf)) for path, leaf in leaves)
