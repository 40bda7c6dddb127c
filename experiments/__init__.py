"""Scripts that train, measure and report."""

import sys

# Python's word for a module that it is about to run: nothing else is imported yet.
if sys.argv[0] == "-m":
    from kdjax.runs import interrupts

    interrupts.leave_at_once()
