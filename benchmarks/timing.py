"""Timing two things in turn, so that a machine that changes speed changes both."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping


def ratio(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int = 15
) -> tuple[float, float, float]:
    """Time two functions alternately.

    Args:
        first: runs to completion; called once more, before the timing, to warm up.
        second: runs to completion, as the first does.
        repeats: timings of each.

    Returns:
        The median seconds of each, and the median of first / second over the pairs.
    """
    first()
    second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(
    takes: Mapping[str, Callable[[int], object]], *, wanted: float = 0.3, repeats: int = 5
) -> dict[str, tuple[float, float]]:
    """Time several ways to take steps, one after the other, again and again.

    Args:
        takes: functions that take some steps to their end, by name.
        wanted: about how many seconds one timing of each lasts.
        repeats: timings of each.

    Returns:
        For each name the median seconds of a step, and the median of that over the first one's.
    """
    counts = {}
    for name, take in takes.items():
        take(1)
        counts[name] = max(1, round(wanted / seconds(functools.partial(take, 1))))
    rounds = [
        {name: seconds(functools.partial(take, counts[name])) / counts[name]
         for name, take in takes.items()}
        for _ in range(repeats)
    ]  # fmt: skip
    first = next(iter(takes))
    return {
        name: (
            statistics.median(own[name] for own in rounds),
            statistics.median(own[name] / own[first] for own in rounds),
        )
        for name in takes
    }


def line(
    name: str, result: tuple[float, float, float], bar: float, *, at_least: bool = False
) -> str:
    """Format a result beside what it should be."""
    first, second, quotient = result
    good = quotient >= bar if at_least else quotient <= bar
    sign = ">=" if at_least else "<="
    return (
        f"{name}: {first * 1e3:.2f} ms against {second * 1e3:.2f} ms, "
        f"ratio {quotient:.3f} (wanted {sign} {bar}: {'yes' if good else 'no'})"
    )


def command(main_fn: Callable[[], None], doc: str | None) -> None:
    """Run a benchmark that has no flags but `--help`, which prints its module's docstring."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=doc, formatter_class=formatter).parse_args()
    main_fn()
