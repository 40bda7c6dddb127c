"""A training that is killed again and again ends in the bytes of one that was not.

    python -m benchmarks.faults --kills 50

A small distillation with dropout saves every fourth step, in the background. It is killed with
SIGKILL, so that nothing of it can react: most times somewhere in its steps, where a checkpoint is
being written more often than not, and every fifth time while it starts and reads. Then it may
finish. All arrays of its state are compared with those of a training that nobody touched.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from kdjax import checkpoint, data, loop, models, step, teachers, terms
from kdjax.objective import combine

STEPS_PER_KILL = 12


def train(directory: Path, num_steps: int, step_fn: Callable[[int, object], None]) -> str:
    """Train from wherever the last one got to; return the digest of the final state."""
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.integers(0, 256, (96, 6, 6, 1), np.uint8),
        "label": rng.integers(0, 10, 96).astype(np.int32),
    }
    student, teacher_model = models.mlp(10, widths=(16,), dropout=0.2), models.mlp(10, widths=(8,))
    optimizer = optax.adam(1e-2)
    objective = combine({"kd": terms.kd()}, {"kd": 1.0})
    batch = next(data.train_batches(examples, seed=0, batch_size=16))
    teacher = teachers.frozen(teacher_model, teacher_model.init(jax.random.key(1), batch["image"]))
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)
    at, state = checkpoint.restore(directory, state) or (0, state)
    with checkpoint.saving(directory) as save_fn:
        state = loop.fit(
            step.with_teacher(step.make_train_step(student, objective, optimizer), teacher),
            state,
            data.train_batches(examples, seed=0, batch_size=16, start_step=at),
            num_steps=num_steps,
            log_every=1,
            log_fn=step_fn,
            checkpoint_every=4,
            save_fn=save_fn,
        )
    return checkpoint.params_sha256(state)


def fork(directory: Path, num_steps: int) -> tuple[int, int]:
    """Train in a child, which inherits the seconds of imports; return its id and a pipe.

    The pipe gives one byte for every step, and the digest at the end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        # A checkpoint that a kill has damaged would be passed over with a warning.
        warnings.simplefilter("error", checkpoint.CheckpointWarning)
        digest = train(directory, num_steps, lambda *_: _tell(writer, "."))
        _tell(writer, digest)
        status = 0
    finally:
        # Not the parent's work at exit.
        os._exit(status)


def _tell(writer: int, text: str) -> None:
    os.write(writer, text.encode())


def finish(child: int, reader: int) -> str:
    """Wait for a training that nobody kills; return the digest of its final state."""
    with os.fdopen(reader) as pipe:
        digest = pipe.read().lstrip(".")
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a training failed with status {os.waitstatus_to_exitcode(status)}")
    return digest


def kill(child: int, reader: int, delay: float, *, in_steps: bool) -> bool:
    """Kill a training some time after its first step or its start; return whether it lived."""
    if in_steps:
        os.read(reader, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.waitstatus_to_exitcode(status):
        raise SystemExit("a training failed before it was killed")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Print how many kills there were, and whether the bytes are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The forks come before any thread of the runtime's, and the warning is about those.
    warnings.filterwarnings("ignore", message="os.fork")
    rng, num_steps, kills, torn = random.Random(args.seed), args.kills * STEPS_PER_KILL, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        # The first training compiles for all.
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        expected = finish(*fork(whole, num_steps))
        for attempt in range(args.kills):
            in_steps = attempt % 5 != 4
            delay = rng.uniform(0, 0.8 if in_steps else 1.5)
            kills += kill(*fork(killed, num_steps), delay, in_steps=in_steps)
            torn += any(killed.glob("*.*ed"))
        found = finish(*fork(killed, num_steps))
    same = "yes" if found == expected else "no"
    print(f"{kills} kills, {torn} of them in the write of a checkpoint, {num_steps} steps")
    print(f"the same bytes at the end: {same}")
    sys.exit(found != expected)


if __name__ == "__main__":
    main()
