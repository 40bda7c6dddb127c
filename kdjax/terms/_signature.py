"""What the names of a loss's parameters say about what it takes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdjax.types import Array

_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Signature(NamedTuple):
    """The parameters of a loss by name, and what they mean.

    `positional` have no default, in order; `missing` are keywords without one; `defaults` holds
    the hyper-parameters; `lists` are annotated as sequences: they take all stages at once.
    """

    name: str
    positional: tuple[str, ...]
    missing: tuple[str, ...]
    defaults: Mapping[str, Any]
    lists: frozenset[str]

    @property
    def temperature(self) -> Any:
        """The default of the temperature, None for a loss without one."""
        return self.defaults.get("temperature")

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


def signature_of(loss: Callable[..., Array]) -> Signature:
    """Read the parameters of a loss; those with a default are hyper-parameters."""
    given = inspect.signature(loss).parameters.values()
    parameters = [p for p in given if p.kind not in _GATHERING]
    needed = [p for p in parameters if p.default is p.empty]
    return Signature(
        name=_name_of(loss),
        positional=tuple(p.name for p in needed if p.kind is not p.KEYWORD_ONLY),
        missing=tuple(p.name for p in needed if p.kind is p.KEYWORD_ONLY),
        defaults={p.name: p.default for p in parameters if p not in needed},
        lists=frozenset(p.name for p in filter(_is_list, parameters)),
    )


def _name_of(loss: Callable[..., Array]) -> str:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def _is_list(parameter: inspect.Parameter) -> bool:
    return any(word in str(parameter.annotation) for word in ("Sequence", "list", "tuple"))
