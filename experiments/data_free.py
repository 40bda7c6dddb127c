"""Distil without data: a generator makes up the images that the student learns from.

    python -m experiments.data_free --help

The flags and the run are in `kdjax/runs/data_free.py`. Installed: `kdjax data-free`.
"""

from kdjax.runs.command import start

if __name__ == "__main__":
    start("data-free", "python -m experiments.data_free")
