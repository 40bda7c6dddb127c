"""Distil along a chain: born-again generations, or teacher assistants on the way to the student.

    python -m experiments.generations --help

The flags and the run, from top to bottom: `kdjax/runs/generations.py`. Installed:
`kdjax generations`.
"""

from kdjax.runs.command import start

if __name__ == "__main__":
    start("generations", "python -m experiments.generations")
