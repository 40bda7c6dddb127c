"""What a user waits for: importing the losses, and the help page.

python -m benchmarks.startup
"""

import subprocess
import sys

from benchmarks.timing import command, line, ratio


def python(*arguments: str) -> None:
    """Run Python with these arguments to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print the ratios."""
    result = ratio(
        lambda: python("-c", "import kdjax.losses"), lambda: python("-c", "import jax, optax")
    )
    print(line("import kdjax.losses against import jax, optax", result, 1.02))
    result = ratio(
        lambda: python("-m", "experiments.distill", "--help"),
        lambda: python("-c", "pass"),
        repeats=5,
    )
    print(f"--help: {result[0]:.2f} s (wanted < 1: {'yes' if result[0] < 1 else 'no'})")


if __name__ == "__main__":
    command(main, __doc__)
