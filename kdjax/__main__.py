"""The command `kdjax` where its folder is not on the path: `python -m kdjax distill`."""

from kdjax.runs.command import main

if __name__ == "__main__":
    main(program="python -m kdjax")
