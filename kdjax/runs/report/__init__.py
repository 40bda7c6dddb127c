"""What a run leaves behind to be read: a table, plots, and one page that holds them all."""

import logging

from kdjax._extras import needs

with needs("train"):
    # Without a home it warns that it keeps its list of fonts elsewhere: nobody's concern.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as matplotlib

from kdjax.runs.report._calibration import (
    Judged,
    calibration_section,
    calibration_table,
    difference_note,
    judged,
    plot_reliability,
)
from kdjax.runs.report._columns import Column
from kdjax.runs.report._distillation import (
    distillation_page,
    errors_tile,
    format_table,
    trainings,
)
from kdjax.runs.report._drawing import Drawing
from kdjax.runs.report._lines import Line, plot_dots, plot_lines
from kdjax.runs.report._page import (
    Page,
    Section,
    Table,
    Tile,
    format_rows,
    publish,
    results_page,
    write_page,
)
from kdjax.runs.report._pictures import (
    plot_dark_knowledge,
    plot_disagreements,
    plot_instructive,
    select_disagreements,
    select_instructive,
)
from kdjax.runs.report._plots import plot_curves, plot_errors

__all__ = [
    "Column", "Drawing", "Judged", "Line", "Page", "Section", "Table", "Tile",
    "calibration_section", "calibration_table", "difference_note", "distillation_page",
    "errors_tile", "format_rows", "format_table", "judged", "plot_curves",
    "plot_dark_knowledge", "plot_disagreements", "plot_dots", "plot_errors",
    "plot_instructive", "plot_lines", "plot_reliability", "publish", "results_page",
    "select_disagreements", "select_instructive", "trainings", "write_page",
]  # fmt: skip
