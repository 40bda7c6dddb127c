"""Distil along a chain: born-again generations, or teacher assistants on the way to the student.

    python -m experiments.generations --help

The flags and the run are in `kdjax/runs/generations.py`. Installed: `kdjax generations`.
"""

from kdjax.runs.generations import main

if __name__ == "__main__":
    main()
