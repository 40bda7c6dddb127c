"""Distil a language model and compare it with the same one trained on the text alone.

    python -m experiments.lm --help

The flags and the run are in `kdjax/runs/lm.py`. Installed: `kdjax lm`.
"""

from kdjax.runs.lm import main

if __name__ == "__main__":
    main()
