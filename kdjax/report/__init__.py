"""What a run leaves behind to be read: a table, plots, and one page that holds them all."""

from kdjax.report._lines import Line as Line
from kdjax.report._lines import plot_dots as plot_dots
from kdjax.report._lines import plot_lines as plot_lines
from kdjax.report._page import Section as Section
from kdjax.report._page import save_figure as save_figure
from kdjax.report._page import write_page as write_page
from kdjax.report._page import write_report as write_report
from kdjax.report._plots import plot_curves as plot_curves
from kdjax.report._plots import plot_dark_knowledge as plot_dark_knowledge
from kdjax.report._plots import plot_errors as plot_errors
from kdjax.report._plots import select_instructive as select_instructive
from kdjax.report._rows import read_metrics as read_metrics
from kdjax.report._tables import format_rows as format_rows
from kdjax.report._tables import format_table as format_table
from kdjax.report._tables import table_html as table_html
from kdjax.report._tables import trainings_html as trainings_html

__all__ = [
    "Line",
    "Section",
    "format_rows",
    "format_table",
    "plot_curves",
    "plot_dark_knowledge",
    "plot_dots",
    "plot_errors",
    "plot_lines",
    "read_metrics",
    "save_figure",
    "select_instructive",
    "table_html",
    "trainings_html",
    "write_page",
    "write_report",
]
