"""Checks for losses and terms, ours and yours: one call each, which passes or says what is wrong.

`check_loss` and `check_term` belong in a test and raise an `AssertionError` that names the law;
`audit` belongs in a script, looks at an objective on its own first batch, and returns a table.
"""

from kdjax.testing._audit import audit
from kdjax.testing._drawing import term_inputs
from kdjax.testing._harness import Finding, Report
from kdjax.testing._losses import check_loss
from kdjax.testing._terms import check_term

__all__ = ["Finding", "Report", "audit", "check_loss", "check_term", "term_inputs"]
