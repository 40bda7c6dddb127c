"""Numbers over seeds as text."""

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """Format mean and sample standard deviation, or the one value there is.

    Args:
        values: by seed.
        digits: after the point; by default one, below one as many as show two that count.
    """
    mean = sum(values) / len(values)
    if math.isnan(mean):
        return "nan"
    if digits is None:
        digits = 1 if abs(mean) >= 1 or not mean else 1 - math.floor(math.log10(abs(mean)))
    if len(values) == 1:
        return f"{mean:g}" if mean == round(mean) else f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"
