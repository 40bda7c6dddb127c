"""Distil without data: a generator makes up the images that the student learns from.

    python -m experiments.data_free --help

The flags and the run are in `kdjax/runs/data_free.py`. Installed: `kdjax data-free`.
"""

from kdjax.runs.data_free import main

if __name__ == "__main__":
    main()
