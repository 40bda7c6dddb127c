"""Numbers over seeds as text."""

import math
import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float | None], digits: int | None = None) -> str:
    """Format mean and sample standard deviation, or the one value there is.

    Args:
        values: by seed; a single whole number is written without digits. None stands for nan, as
            null does in the JSON of a run.
        digits: after the point; by default one, below one as many as show two that count.
    """
    values = numbers(values)
    mean = sum(values) / len(values)
    if len(values) == 1 and mean.is_integer():
        return f"{mean:g}"
    if digits is None and math.isfinite(mean):
        digits = 1 if abs(mean) >= 1 or not mean else 1 - math.floor(math.log10(abs(mean)))
    return "".join(format_parts(values, digits or 0))


def numbers(values: Sequence[float | None]) -> list[float]:
    """Return values with nan for None."""
    return [math.nan if value is None else value for value in values]


def format_parts(values: Sequence[float], digits: int, separator: str = "") -> tuple[str, str]:
    """Format the mean, and " ± " with the deviation where there are several finite values."""
    if not values:
        return "", ""
    mean = sum(values) / len(values)
    number = f"{separator}.{digits}f"
    several = len(values) > 1 and math.isfinite(mean)
    return f"{mean:{number}}", f" ± {statistics.stdev(values):{number}}" if several else ""
