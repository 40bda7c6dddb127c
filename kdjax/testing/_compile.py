"""Programs that run once, on a few numbers: what counts is how fast they compile."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `jax.jit(fn)`, made to compile several times as fast; not to be called in a trace."""
    return jax.jit(fn, compiler_options=_options())


def known(fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function of arrays as it is called without `jit`: it looks at numbers, not tracers.

    What it computes from them is one program, where one for each operation would take seconds; a
    function that looks at what it computed on its way is called as it stands.
    """
    args = jax.device_put(args)
    try:
        return compiled(lambda: fn(*args))()
    except jax.errors.ConcretizationTypeError:
        return fn(*args)


@functools.cache
def _options() -> dict[str, Any] | None:
    """Return the options that shorten compilation, those of them that this XLA knows."""
    if jax.default_backend() != "cpu":
        return None
    return {name: value for name, value in _QUICK.items() if _is_known({name: value})}


def _is_known(options: dict[str, Any]) -> bool:
    try:
        jax.jit(jnp.negative, compiler_options=options)(1.0)
    except Exception:
        return False
    return True
