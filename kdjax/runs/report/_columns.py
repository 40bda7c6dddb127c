"""What tables and curves show of networks, whatever their task: a row of data for each measure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.runs.numbers import format_parts, numbers

Summary = Mapping[str, Mapping[str, Any]]
"""What a run writes of each kind of network: the number of parameters, and lists by seed."""


class Column(NamedTuple):
    """A column of the results: where it comes from, what it is called, how it is written."""

    key: str
    short: str
    title: str
    scale: float
    digits: int

    @property
    def named(self) -> str:
        """Its title within a sentence."""
        initial = self.title[0].lower() if self.title[1:2].islower() else self.title[0]
        return initial + self.title[1:]

    def written(self, values: Sequence[float | None]) -> tuple[str, str]:
        """Write the mean of values, and their deviation behind it where there are several."""
        digits = 0 if self.key == "test_errors" and len(values) == 1 else self.digits
        return format_parts([self.scale * value for value in numbers(values)], digits, ",")


COLUMNS = (
    Column("test_errors", "test errors", "Test errors", 1, 1),
    Column("mean_average_precision", "mAP %", "Mean average precision (%)", 100, 2),
    Column("r_squared", "R²", "R²", 1, 4),
    Column("root_mean_squared_error", "RMSE", "Root mean squared error", 1, 4),
    Column("recall_at_1", "recall@1 %", "Recall at 1 (%)", 100, 2),
    Column("recall_at_5", "recall@5 %", "Recall at 5 (%)", 100, 2),
    Column("cosine", "cosine", "Cosine with the teacher", 1, 4),
    Column("mean_iou", "mean IoU %", "Mean IoU (%)", 100, 2),
    Column("binary_accuracy", "labels right %", "Labels right (%)", 100, 2),
    Column("accuracy", "accuracy %", "Accuracy (%)", 100, 2),
    Column("nll", "NLL (nats)", "Negative log-likelihood (nats)", 1, 4),
    Column("ece", "calib. error %", "Calibration error (%)", 100, 2),
    Column("agreement", "agreement %", "Agreement with the teacher (%)", 100, 2),
)
ACCURACY = next(column for column in COLUMNS if column.key == "accuracy")


def columns_of(summary: Summary) -> list[Column]:
    """Return the columns that a summary has numbers for; the first says most."""
    return [column for column in COLUMNS if all(column.key in x for x in summary.values())]


def measured_in(rows: Iterable[Mapping[str, Any]]) -> Column:
    """Return what lines of `metrics.jsonl` say of validation, the first of the columns."""
    names = {name for row in rows if row.get("split") == "validation" for name in row}
    return next((column for column in COLUMNS if column.key in names), ACCURACY)
