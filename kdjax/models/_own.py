"""Networks of the user's own code, by the name of what makes them."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from kdjax.models._linen import from_linen
from kdjax.models._nnx import from_nnx
from kdjax.models._torch import from_torch
from kdjax.types import FeaturePaths, Model


def own_model(
    name: str, given: Mapping[str, Any], *, features: Sequence[str], paths: FeaturePaths
) -> Model:
    """Make the model of a user's network.

    What makes it is called with those of the given values that it has arguments for. With an
    argument `rngs` it makes an NNX module; otherwise it returns a Linen module, a PyTorch module,
    or a `Model`, for which it takes `features` too where some are asked for.

    Args:
        name: "package.module:function", or a class in its place.
        given: `num_classes`, `image_shape` and others, by name.
        features: paths to capture.
        paths: where it has the features that methods look at.

    Raises:
        ValueError: if there is no such name, or a `Model` cannot capture features.
        TypeError: if it makes something else.
    """
    make = _imported(name)
    # Of a class, what makes an instance: NNX hides it behind a call of its own.
    parameters = inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters
    known = {key: given[key] for key in given.keys() & parameters.keys()}
    how: dict[str, Any] = {"features": features, "paths": paths}
    if "rngs" in parameters:
        return from_nnx(lambda rngs: make(**known, rngs=rngs), **how)
    takes = features and "features" in parameters
    made = make(**known, features=features) if takes else make(**known)
    if isinstance(made, nn.Module):
        return from_linen(made, **how)
    if isinstance(made, Model):
        return _captures(name, made, paths, takes or not features)
    if is_torchs(made):
        return from_torch(made, **how)
    raise TypeError(
        f"{name} returned a {type(made).__name__}, expected a Linen or PyTorch module or a Model; "
        "what makes an NNX module has an argument `rngs`"
    )


def _captures(name: str, model: Model, paths: FeaturePaths, captures: bool) -> Model:
    if not captures:
        raise ValueError(f"{name} returns a Model: it needs an argument `features` to capture")
    return model._replace(paths=paths) if paths.all else model


def is_torchs(module: Any) -> bool:
    """Whether something is a PyTorch module, without importing PyTorch."""
    return any(f"{cls.__module__}.{cls.__name__}" == "torch.nn.modules.module.Module"
               for cls in type(module).__mro__)  # fmt: skip


def seen_from(
    make_fn: Callable[[Sequence[str]], Model], paths: FeaturePaths, image_shape: Sequence[int]
) -> FeaturePaths:
    """Complete the paths of a user's network by what is found there: maps, or vectors."""
    if not paths.stages:
        return paths
    model, image = make_fn(paths.stages), np.zeros((1, *image_shape), np.float32)

    def outputs(image: jax.Array) -> Any:
        return model.apply(*model.init(jax.random.key(0), image), image, train=False)[0].features

    shapes = jax.eval_shape(outputs, image)
    spatial = all(shapes[stage].ndim == 4 for stage in paths.stages)
    last = paths.stages[-1] if spatial else ""
    return paths._replace(preactivations=paths.stages, spatial=spatial, last_map=last)


def _imported(name: str) -> Callable[..., Any]:
    """Return what a name stands for, in a package on Python's path or in the current folder."""
    module, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        # Where a command is installed, Python does not look here.
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name or "."):
            raise ValueError(f"{name}: {module} needs {error.name}, which is not there") from error
        raise ValueError(
            f"{name}: there is no module {module} on Python's path or in {folder}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            told = f"; did you mean {' or '.join(near)}" if near else ""
            raise ValueError(f"{name}: {module} has no {part or 'name behind the colon'}{told}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is a {type(found).__name__}, expected a function or a class")
    making: Callable[..., Any] = found
    return making
