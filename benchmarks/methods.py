"""What each method costs: its step's time and memory as a ratio to plain KD's.

    python -m benchmarks.methods [METHOD ...] [--json docs/results/cost.json]

A resnet20 teaches a resnet8 on images of CIFAR's shape in batches of 64, the teacher inside the
step. Memory is what the compiled program needs beside its arguments and its results, at its peak.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.timing import ratio
from kdjax import models, step, teachers
from kdjax.models import NetworkSpec
from kdjax.runs import methods
from kdjax.types import Batch

BATCH_SIZE, NUM_CLASSES, NUM_EXAMPLES, STEPS = 64, 100, 50_000, 1
BAR = 1.25
OWN_NETWORKS = ("ft", "review", "mgd", "simkd", "semckd")
"""Methods that train further networks: convolutions on the features."""


class Cost(NamedTuple):
    """A method's step over plain KD's: seconds, and bytes that the program needs while it runs."""

    time: float
    memory: float


def spec_of(name: str) -> NetworkSpec:
    """Describe a network for CIFAR-100."""
    return NetworkSpec(name, (), NUM_CLASSES, (32, 32, 3), (0.5,) * 3, (0.25,) * 3)


def make_batch() -> Batch:
    """Return random images with labels and positions in the training set."""
    rng = np.random.default_rng(0)
    return jax.device_put(
        {
            "image": rng.integers(0, 256, (BATCH_SIZE, 32, 32, 3), np.uint8),
            "label": rng.integers(0, NUM_CLASSES, BATCH_SIZE).astype(np.int32),
            "index": rng.permutation(NUM_EXAMPLES)[:BATCH_SIZE].astype(np.int32),
        }
    )


def prepare(method: str, batch: Batch) -> tuple[Callable[[], None], int]:
    """Compile a method's step.

    Returns:
        A function that takes STEPS steps, and the bytes that the program needs while it runs.
    """
    student_spec, teacher_spec = spec_of("resnet8"), spec_of("resnet20")
    looks = methods.looks_at_features(method)
    own, theirs = (models.build(spec).paths for spec in (student_spec, teacher_spec))
    teacher_model = models.build(teacher_spec, features=theirs.all if looks else ())
    variables = jax.jit(teacher_model.init)(jax.random.key(1), batch["image"])
    setup = methods.Setup(own, theirs, variables.params, NUM_EXAMPLES, num_steps=10_000)
    student = models.build(
        methods.student_of(method, student_spec, setup),
        features=own.all if looks else (),
        classifier=variables.params[theirs.head],
    )
    objective, optimizer = methods.objective_of(method, setup), optax.sgd(1e-3, momentum=0.9)
    teacher = teachers.frozen(teacher_model, variables)
    outputs = jax.jit(teacher.apply)(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    program = run.func.lower(state, batch, **run.keywords).compile()  # type: ignore[attr-defined]

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = program(state, batch, **run.keywords)  # type: ignore[attr-defined]
        jax.block_until_ready(state)

    return steps, program.memory_analysis().temp_size_in_bytes


def measure(names: list[str], *, repeats: int) -> dict[str, Cost]:
    """Measure methods against plain KD, each pair in turn."""
    batch, found = make_batch(), {}
    base, base_memory = prepare("kd", batch)
    for name in names:
        steps, memory = prepare(name, batch)
        seconds, _, quotient = ratio(steps, base, repeats=repeats)
        found[name] = Cost(round(quotient, 3), round(memory / base_memory, 3))
        print(report_line(name, found[name], seconds), flush=True)
    return found


def report_line(name: str, cost: Cost, seconds: float) -> str:
    """Format a method's cost beside what it should be."""
    wanted = "" if name in OWN_NETWORKS else f" (wanted <= {BAR}: {_yes(cost.time <= BAR)})"
    return (
        f"{name:<16} {seconds / STEPS * 1e3:7.1f} ms, time ratio {cost.time:5.2f}{wanted}, "
        f"memory ratio {cost.memory:5.2f}"
    )


def main(args: list[str] | None = None) -> None:
    """Print a line per method, and keep the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("method", nargs="*", help="which ones (default: all)")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each (default: 9)")
    parser.add_argument("--json", type=Path, help="where to keep the ratios")
    asked: Any = parser.parse_args(args)
    names = asked.method or list(methods.METHODS)
    for name in names:
        methods.methods_in(name)
    found = measure(names, repeats=asked.repeats)
    if asked.json:
        known = json.loads(asked.json.read_text()) if asked.json.exists() else {}
        merged = known | {name: cost._asdict() for name, cost in found.items()}
        asked.json.write_text(json.dumps(dict(sorted(merged.items())), indent=1) + "\n")


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


if __name__ == "__main__":
    main()
