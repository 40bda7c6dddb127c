"""PyTorch modules as pairs of pure functions, through torchax, which runs them on JAX's arrays."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax._extras import needs
from kdjax.models import _calls
from kdjax.types import Array, FeaturePaths, Model, Outputs, PyTree, Variables


def from_torch(
    module: Any, *, features: Sequence[str] = (), paths: FeaturePaths | None = None
) -> Model:
    """Turn a PyTorch module into a model that answers and is not trained.

    `init` returns copies of the module's own weights, whatever the key: parameters as params,
    buffers as state. `apply` runs the module's Python code in evaluation mode on arrays of JAX, so
    that it is compiled and differentiated like any other function; the module is left as it is.
    Images [batch, height, width, channels] become [batch, channels, height, width] before, and what
    is captured with four axes comes back the other way; inputs of another number of axes are fed
    as they are.

    Code that asks for values (`if x.sum() > 0`, `.item()`, `.numpy()`), operators that are not
    PyTorch's own, and scripted or quantized modules cannot be compiled.

    Args:
        module: a `torch.nn.Module` that takes one argument and returns logits
            [batch..., num_classes], or several outputs by name, `logits` among them. One that is
            called otherwise goes into a module of your own.
        features: names of submodules whose outputs to capture, such as "layer4" or
            "blocks.11.norm1", or of other outputs.
        paths: where it has the features that methods look at; `Model.paths`.

    Returns:
        A model; `Outputs.features` has the captured arrays under the names in `features`.

    Raises:
        MissingPackage: if torch or torchax is not installed.
        TypeError: if `module` is none of PyTorch; from apply, if none of its outputs is known to be
            the logits.
        ValueError: from apply, if it is asked to train, if a name in `features` names nothing, or
            if the module cannot be compiled.

    Example:
        >>> import importlib.util
        >>> import numpy as np
        >>> from kdjax import models
        >>> if importlib.util.find_spec("torchax"):
        ...     import torch
        ...
        ...     network = models.from_torch(torch.nn.Flatten())
        ...     variables = network.init(None, None)
        ...
    """
    torch, env = _torchax()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"from_torch: module is a {type(module).__name__}, expected one of PyTorch")
    wanted = _calls.parse_features("from_torch", features)
    modules = {name.replace(".", "/"): part for name, part in module.named_modules()}
    watched = {path: modules[path] for path in modules.keys() & {x.path for x in wanted}}
    name, places = type(module).__name__, _places(module)

    def as_array(leaf: Any) -> Any:
        return env.t2j_iso(leaf) if isinstance(leaf, torch.Tensor) else None

    def copied(weights: Iterable[tuple[str, Any]]) -> PyTree:
        return env.t2j_copy({name: weight.detach().clone() for name, weight in weights})

    def init(key: Array | None, inputs: Any) -> Variables:
        return Variables(copied(module.named_parameters()), copied(module.named_buffers()))

    def apply(
        params: PyTree, state: PyTree, inputs: Any, *, train: bool, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        if train:
            raise ValueError(f"from_torch: {name} is a PyTorch module, which only answers here")
        given = jax.tree.map(jnp.asarray, {**params, **state}), _channels_first(params, inputs)
        held, x = env.j2t_iso(given)
        weights = {place: held[own] for place, own in places.items()}
        with _compiled(name), env, torch.no_grad(), _watched(module, watched) as calls:
            raw = torch.func.functional_call(module, weights, (x,), tie_weights=False)
        hint = "call it in a module of your own that returns them so"
        logits, named = _calls.split_outputs("from_torch", name, raw, as_array, hint)
        found = {path: tuple(map(as_array, outputs)) for path, outputs in calls.items()}
        values = jax.tree.map(_channels_last, {**named, **found})
        _calls.check_paths("from_torch", wanted, {*modules, *values})
        return Outputs(logits, _calls.pick_features("from_torch", wanted, values)), state

    return Model(init, apply, paths or FeaturePaths())


def _torchax() -> tuple[Any, Any]:
    """Import torch, and what runs its operators on JAX."""
    with needs("torch"):
        import torch
        import torchax

    return torch, torchax.default_env()


def _places(module: Any) -> dict[str, str]:
    """Return every place that a weight or a buffer has, and the name under which it is held.

    A weight that two modules share has two; a module that is in two places has its own once, or
    PyTorch would not put back what it lends.
    """
    weights = (*module.named_parameters(), *module.named_buffers())
    held = {id(weight): name for name, weight in weights}
    return {
        f"{path}.{name}" if path else name: held[id(weight)]
        for path, part in module.named_modules()
        for found in (part.named_parameters, part.named_buffers)
        for name, weight in found(recurse=False, remove_duplicate=False)
    }


def _channels_first(params: PyTree, inputs: Any) -> Array:
    """Return inputs as PyTorch has them, images in the type of the weights."""
    x = jnp.asarray(inputs)
    if x.ndim != 4:
        return x
    kinds = (leaf.dtype for leaf in jax.tree.leaves(params))
    dtype = next((kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)), jnp.float32)
    return jnp.moveaxis(x.astype(dtype), -1, 1)


def _channels_last(x: Array) -> Array:
    return jnp.moveaxis(x, 1, -1) if x.ndim == 4 else x


@contextlib.contextmanager
def _watched(module: Any, watched: Mapping[str, Any]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Put a module in evaluation mode and keep what parts of it return; then it is as it was."""
    calls: dict[str, tuple[Any, ...]] = {}

    def note(path: str) -> Any:
        def hook(part: Any, inputs: Any, outputs: Any) -> None:
            calls[path] = (*calls.get(path, ()), outputs)

        return hook

    modes = [(part, part.training) for part in module.modules()]
    hooks = [part.register_forward_hook(note(path)) for path, part in watched.items()]
    try:
        module.eval()
        yield calls
    finally:
        for part, mode in modes:
            part.training = mode
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _compiled(name: str) -> Iterator[None]:
    """Say what cannot be compiled of a module, and what to do instead."""
    try:
        # PyTorch's operators mix ranks and types as they like, whatever this process allows.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"from_torch: {name} cannot be run on JAX ({type(error).__name__}: {line[:160]}); "
            "let it answer in PyTorch once, and give its logits by kdjax.teachers.stored"
        ) from error
