"""Distil a teacher into a student and compare it with the same student trained on labels alone.

    python -m experiments.distill --help

The flags and the run are in `kdjax/runs/distill.py`. Installed: `kdjax distill`.
"""

from kdjax.runs.distill import main

if __name__ == "__main__":
    main()
