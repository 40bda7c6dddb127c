"""Measures as `(total, count)`, which merge exactly over batches, devices and hosts.

Totals are sums over the examples that count. A mask of numbers in place of booleans weighs them:
the total is sum(weight * value), the count sum(weight), and what weighs nothing adds nothing.
`calibration` keeps one total per bin, because the calibration error of a whole is not the mean of
the errors of its parts.

A label that counts and is no class is an error where it is known before the program runs, and makes
the measure nan where it is traced.

A measure whose number is not the quotient of the two, such as the mean average precision, is a
named pair with a method `value`. It merges like all others, by adding up what it holds.
"""

from kdjax.losses._numbers import known
from kdjax.metrics._intervals import (
    Difference,
    calibrated_gaps,
    calibrated_range,
    paired_bootstrap,
)
from kdjax.metrics._means import (
    accuracy,
    agreement,
    are_probabilities,
    calibration,
    calibration_of,
    counted,
    examples_of,
    masked_sum,
    mean_of,
    merge,
    nll,
    positions_of,
    spread,
    squared_error,
    to_host,
    value,
    weights_of,
)
from kdjax.metrics._tasks import (
    binary_accuracy,
    mean_average_precision,
    mean_iou,
    of,
    r_squared,
    recall_at_k,
    root_mean_squared_error,
)

__all__ = [
    "Difference", "accuracy", "agreement", "are_probabilities", "binary_accuracy",
    "calibrated_gaps", "calibrated_range", "calibration", "calibration_of", "counted",
    "examples_of", "known", "masked_sum", "mean_average_precision", "mean_iou", "mean_of", "merge",
    "nll", "of", "paired_bootstrap", "positions_of", "r_squared", "recall_at_k",
    "root_mean_squared_error", "spread", "squared_error", "to_host", "value", "weights_of",
]  # fmt: skip
