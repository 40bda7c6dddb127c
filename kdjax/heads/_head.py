"""What a head is, and what all that takes one checks."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from kdjax.losses import _inputs, _numbers


class Head(NamedTuple):
    """The last layer of a language model: `cap * tanh((kernel @ hidden + bias) / cap)`.

    The kernel is [vocab, width], as embedding tables are (a Linen `Dense` has the transpose), the
    bias [vocab]. Without a soft cap the logits are what is inside the parentheses, undivided.
    """

    kernel: Array
    bias: Array | None = None
    soft_cap: float | Array | None = None


def as_head(name: str, whose: str, hidden: Any, head: Head) -> tuple[Array, Head]:
    """Return hidden states and a head that fit each other, as arrays of floating types."""
    h, w = f"{whose}_hidden", f"{whose}_head.kernel"
    hidden = _inputs.as_type(name, h, hidden, jnp.floating, "a floating type")
    if not isinstance(head, Head):
        given = type(head).__name__
        raise TypeError(f"{name}: {whose}_head is of type {given}, expected heads.Head(kernel)")
    kernel = _inputs.as_type(name, w, head.kernel, jnp.floating, "a floating type")
    expected = f"[vocab, {hidden.shape[-1] if hidden.ndim else '?'}] for {h} of shape"
    fits = hidden.ndim > 0 and kernel.ndim == 2 and kernel.shape[1] == hidden.shape[-1]
    _inputs.check_fits(fits, name, w, kernel, f"{expected} {hidden.shape}")
    bias, cap = head.bias, head.soft_cap
    if bias is not None:
        bias = _inputs.as_type(name, f"{whose}_head.bias", bias, jnp.floating, "a floating type")
        _inputs.check_shape(name, f"{whose}_head.bias", bias, kernel.shape[:1], "the kernel's rows")
    if cap is not None:
        wide, limits = widest(kernel.dtype), _numbers.POSITIVE
        cap = _numbers.as_number(name, f"{whose}_head.soft_cap", cap, wide, limits)
        cap = jnp.asarray(cap, wide)
    return hidden, Head(kernel, bias, cap)


def check_tokens(name: str, what: str, x: Array, tokens: tuple[int, ...]) -> None:
    """Raise unless an array has one row for each token."""
    expected = f"{tokens} like the tokens of student_hidden, and one axis more"
    _inputs.check_fits(x.ndim > 0 and x.shape[:-1] == tokens, name, what, x, expected)


def finished(product: Array, bias: Array | None, soft_cap: float | Array | None) -> Array:
    """Return the logits that a head makes of its product with the hidden states."""
    logits = product if bias is None else product + bias[None, :].astype(product.dtype)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def product_of(subscripts: str, x: Array, y: Array) -> Array:
    """Multiply, summing in float32 or wider whatever the types."""
    wide = widest(x.dtype, y.dtype)
    return jnp.einsum(subscripts, x, y, preferred_element_type=wide)


def widest(*dtypes: Any) -> Any:
    """Return the type that holds these and float32."""
    wide: Any = jnp.float32
    for dtype in dtypes:
        wide = jnp.promote_types(wide, dtype)
    return wide
