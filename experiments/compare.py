"""Compare the ways of distilling: one teacher, one student, the same budget for every method.

    python -m experiments.compare --help

The flags and the run are in `kdjax/runs/compare.py`. Installed: `kdjax compare`.
"""

from kdjax.runs.compare import main

if __name__ == "__main__":
    main()
