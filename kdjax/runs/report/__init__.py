"""What a run leaves behind to be read: a table, plots, and one page that holds them all."""

import logging

from kdjax._extras import needs

with needs("train"):
    # Without a home it warns that it keeps its list of fonts elsewhere: nobody's concern.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as matplotlib

from kdjax.runs.report._columns import Column
from kdjax.runs.report._distillation import distillation_page, format_table
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
from kdjax.runs.report._plots import (
    plot_curves,
    plot_dark_knowledge,
    plot_errors,
    plot_instructive,
    select_instructive,
)

__all__ = [
    "Column", "Line", "Page", "Section", "Table", "Tile", "distillation_page", "format_rows",
    "format_table", "plot_curves", "plot_dark_knowledge", "plot_dots", "plot_errors",
    "plot_instructive", "plot_lines", "publish", "results_page", "select_instructive", "write_page",
]  # fmt: skip
