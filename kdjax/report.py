"""Interim."""


def format_table(summary):
    return str(summary)
