"""What a loss is fed: arrays drawn after the names of its parameters."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
Inputs = Callable[[np.random.Generator], tuple[PyTree, ...]]
"""Draws the positional arguments of a loss: student, teacher, labels, whatever it takes."""

NUM_EXAMPLES, NUM_CLASSES = 8, 6
_IMAGES, _TOKENS, _VECTORS = (8, 4, 4, 6), (8, 5, 6), (8, 6)


class Signature(NamedTuple):
    """What the parameters of a loss say about it."""

    name: str
    positional: tuple[str, ...]
    keywords: frozenset[str]
    temperature: Any

    @property
    def is_logits(self) -> bool:
        """Whether the student comes as logits."""
        return "logits" in self.positional[0]

    @property
    def is_log_probs(self) -> bool:
        """Whether the student comes as log-probabilities."""
        return "log_probs" in self.positional[0]

    @property
    def has_classes(self) -> bool:
        """Whether the last axis holds classes."""
        return self.is_logits or self.is_log_probs

    @property
    def teacher(self) -> int | None:
        """The teacher's position, None for a loss without one."""
        named = [i for i, name in enumerate(self.positional) if name.startswith("teacher")]
        second = len(self.positional) > 1 and not self.positional[1].startswith("label")
        return named[0] if named else (1 if second else None)

    @property
    def labels(self) -> int | None:
        """The labels' position, None for a loss without any."""
        named = [i for i, name in enumerate(self.positional) if name.startswith("label")]
        return named[0] if named else None


def signature_of(loss_fn: Callable[..., Any]) -> Signature:
    """Read the parameters of a loss; those with a default are hyper-parameters.

    Raises:
        TypeError: if a keyword without default is missing, or there is no positional parameter.
    """
    inner = loss_fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", type(inner).__name__)
    parameters = inspect.signature(loss_fn).parameters.values()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [p for p in parameters if p.default is inspect.Parameter.empty]
    missing = [p.name for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if missing:
        raise TypeError(
            f"check_loss: {name} needs {', '.join(missing)}; bind them with functools.partial"
        )
    positional = tuple(p.name for p in given if p.kind in places)
    if not positional:
        raise TypeError(f"check_loss: {name} has no positional parameter for the student")
    others = {p.name: p.default for p in parameters if p.name not in positional}
    return Signature(name, positional, frozenset(others), others.get("temperature"))


def draw(signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Draw positional arguments of one shape, float32 and integer NumPy arrays.

    Logits are multiples of 2^-10, so that adding a moderate constant to them rounds nothing.

    Raises:
        TypeError: if a parameter's name says nothing about what it takes.
    """
    student = [0] if signature.teacher is None else [0, signature.teacher]
    args = []
    for i, name in enumerate(signature.positional):
        if i == signature.labels:
            args.append(_labels(name, signature, rng, shape))
        elif i in student:
            args.append(_floats(signature, rng, shape))
        else:
            raise TypeError(
                f"check_loss: do not know what to draw for parameter {name!r} of "
                f"{signature.name}; pass inputs=lambda rng: (student, teacher, ...)"
            )
    return tuple(args)


def shapes_for(signature: Signature, *, couples_batch: bool) -> list[tuple[int, ...]]:
    """Return the shapes to try, the main one first."""
    if not signature.has_classes:
        return [_IMAGES, _TOKENS, _VECTORS]
    main = (NUM_EXAMPLES, NUM_CLASSES)
    return [main] if couples_batch else [main, (2, 3, NUM_CLASSES), (NUM_CLASSES,)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Normalise over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def as_arrays(args: PyTree, dtype: Any) -> PyTree:
    """Turn NumPy arrays into device arrays, the floating ones of this type."""

    def cast(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.numpy.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None)

    return jax.tree.map(cast, args)


def _floats(signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    drawn = rng.normal(size=shape)
    if signature.is_logits:
        return (np.round(3 * drawn * 1024) / 1024).astype(np.float32)
    return (log_softmax(3 * drawn) if signature.is_log_probs else drawn).astype(np.float32)


def _labels(
    name: str, signature: Signature, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    if name == "label_probs":
        return np.exp(log_softmax(rng.normal(size=shape))).astype(np.float32)
    batch = shape[:-1] if signature.has_classes else shape[:1]
    return rng.integers(0, NUM_CLASSES, batch).astype(np.int32)
