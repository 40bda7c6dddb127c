"""Our training step against a PyTorch loop that does the same work, where PyTorch is installed.

    python -m pip install -e '.[torch]' && python -m benchmarks.pytorch

The networks of the MNIST experiment, and a small vision transformer that a wider one teaches, on
images of CIFAR's shape.
"""

import importlib.util
import sys

from benchmarks.timing import command, in_turn
from benchmarks.works import FOR_CPU, library


def main() -> None:
    """Print a ratio for each network."""
    if importlib.util.find_spec("torch") is None:
        sys.exit("PyTorch is not installed: python -m pip install -e '.[torch]'")
    from benchmarks.works_torch import take_of

    for name, work in FOR_CPU.items():
        ours = library(work)
        theirs = take_of(name, work, ours.num_params, half=False)
        found = in_turn({"here": ours.take, "PyTorch": theirs}, wanted=1.0, repeats=9)
        here, there, quotient = found["here"][0], *found["PyTorch"]
        print(
            f"{name}: {here * 1e3:.2f} ms a step here, {there * 1e3:.2f} ms in PyTorch, steps a "
            f"second ratio {quotient:.2f} (wanted >= 1.0: {'yes' if quotient >= 1 else 'no'})",
            flush=True,
        )


if __name__ == "__main__":
    command(main, __doc__)
