"""What all losses do with their hyper-parameters: check them, give them one type.

Numbers are checked where they are known before the program runs, in arrays as in Python. What is
traced and out of its range is nan: nothing that is made of it is plausible.
"""

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


class Limits(NamedTuple):
    """The range of a number, which is always finite."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def hold(self, x: Any) -> Any:
        """Return for every number whether it is within them."""
        above = x > self.low if self.open_low else x >= self.low
        return above & (x <= self.high) & (abs(x) < math.inf)

    def __str__(self) -> str:
        """Return them as an interval."""
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


ANY, SHARE, FROM_ONE = Limits(), Limits(0, 1), Limits(1)
POSITIVE, NOT_NEGATIVE, NOT_POSITIVE = Limits(0, open_low=True), Limits(0), Limits(high=0)
# T^2 and 1 / T^2 times the squared gap of two logits are far from both ends of float32.
TEMPERATURE = Limits(1e-12, 1e12)


def known(x: Any) -> np.ndarray | None:
    """Return numbers that are known before the program runs, those under a jit too; or None.

    Example:
        >>> import jax
        >>> from kdjax import metrics
        >>> metrics.known(jax.numpy.arange(3))
        array([0, 1, 2], dtype=int32)
        >>> print(jax.eval_shape(lambda x: metrics.known(x), 1.0))
        None
    """
    if isinstance(x, jax.core.Tracer):
        return None
    elsewhere = isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return None if elsewhere else np.asarray(x)


def as_index(function: str, name: str, value: int) -> int:
    """Return an integer, Python's or NumPy's, that is known before the program runs."""
    try:
        return operator.index(None if isinstance(value, bool | np.bool_) else value)  # type: ignore
    except TypeError:
        given = value if not isinstance(value, jax.core.Tracer) else "traced"
        raise TypeError(f"{function}: {name} is {given!r}, expected an integer") from None


def as_count(function: str, name: str, value: int, high: int | None = None) -> int:
    """Return a number of things: a positive integer."""
    count = as_index(function, name, value)
    if not 1 <= count <= (count if high is None else high):
        expected = "1 or more" if high is None else f"1 to {high}"
        raise ValueError(f"{function}: {name} is {count}, expected {expected}")
    return count


def as_number(
    function: str,
    name: str,
    value: float | Array,
    dtype: DTypeLike,
    limits: Limits = ANY,
    *,
    per: tuple[int, ...] = (),
    what: str = "example",
) -> float | Array:
    """Return a hyper-parameter within its range: a Python number, or an array of this type.

    Args:
        function: see above.
        name: see above.
        value: a number or an array, () or of the shape `per`.
        dtype: of the arrays that it is used with.
        limits: its range.
        per: a shape that it may have, one for each example or channel.
        what: of what there is one for each.
    """
    _check_number(function, name, value, limits)
    if not isinstance(value, np.ndarray | Array):
        return value.item() if isinstance(value, np.number) else value
    x = jnp.asarray(value).astype(dtype)
    if x.shape not in ((), per):
        expected = f"() or {per}, one for each {what}" if per else "a scalar"
        raise ValueError(f"{function}: {name} has shape {x.shape}, expected {expected}")
    if known(value) is None:
        x = jnp.where(limits.hold(x), x, jnp.nan)
    return x


def _check_number(function: str, name: str, value: Any, limits: Limits) -> None:
    """Raise on what is no number, or known to be out of the range."""
    truth = isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_
    if truth or not isinstance(value, int | float | np.number | np.ndarray | Array):
        raise TypeError(f"{function}: {name} is {value!r}, expected a number or an array")
    numbers = known(value)
    if numbers is not None:
        wrong = numbers[~np.asarray(limits.hold(numbers))]
        if wrong.size:
            verb = "has" if numbers.ndim else "is"
            raise ValueError(f"{function}: {name} {verb} {wrong[0]}, expected in {limits}")


def poisoned(values: Array, *numbers: float | Array | None) -> Array:
    """Return values, nan where what only selects is nan: a number out of its range, an array."""
    for number in numbers:
        if isinstance(number, Array):
            values = jnp.where(jnp.isnan(number), jnp.nan, values)
    return values
