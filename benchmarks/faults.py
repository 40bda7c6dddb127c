"""Trainings that are killed, run out of disk or are interrupted again and again, and how they end.

    python -m benchmarks.faults --kills 50
    python -m benchmarks.faults group --kills 50
    python -m benchmarks.faults disk --kills 5
    python -m benchmarks.faults interrupt --kills 50

training: a small distillation with dropout saves every fourth step, in the background. It is killed
with SIGKILL, so that nothing of it can react: most times somewhere in its steps, where a checkpoint
is being written more often than not, and every fifth time while it starts and reads. Then it may
finish. All arrays of its state are compared with those of a training that nobody touched.

group: networks that the scripts of the paper train together, killed in the moment that something
is being written; disk: the same with a limit on the size of files, as where a disk is full. Then
each may finish, in the same bytes again.

interrupt: scripts as a user runs them, sent Ctrl-C or SIGTERM at a random moment of their first
five seconds. Each must end by it, without a traceback.
"""

import argparse
import dataclasses
import functools
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from experiments.hinton2015 import networks
from experiments.hinton2015.study import Recipe, StudySettings, opened
from kdjax import checkpoint, data, loop, models, step, teachers, terms
from kdjax.objective import combine

STEPS_PER_KILL = 12
PASSING = (".unfinished", ".removed", ".partial")
SCRIPTS = (
    "experiments.distill --epochs 5000",
    "experiments.hinton2015.mnist --quick",
    "kdjax distill --epochs 5000",
    "experiments.online --epochs 5000",
)


def train(directory: Path, num_steps: int, step_fn: Callable[..., None]) -> str:
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


def train_group(directory: Path, step_fn: Callable[..., None]) -> str:
    """Train networks of the paper's scripts together; return the digest of what was trained."""
    study = opened(StudySettings(workdir=directory, quick=True), "faults", "digits", lambda: False)
    study = dataclasses.replace(study, run=dataclasses.replace(study.run, checkpoint_every=4))
    spec, recipe = networks.mlp_spec(study, (8,), dropout=0.2), Recipe(epochs=2, batch_size=64)
    cohort = networks.Cohort(study, spec, recipe, study.train._asdict(), (0, 1))
    return checkpoint.params_sha256(networks.train(cohort, "group").variables)


def fork(train_fn: Callable[[Callable[..., None]], str]) -> tuple[int, int]:
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # A checkpoint that a kill has damaged would be passed over with a warning.
        warnings.simplefilter("error", checkpoint.CheckpointWarning)
        digest = train_fn(lambda *_: _tell(writer, "."))
        _tell(writer, digest)
        status = 0
    except OSError as error:
        print(f"  {error}", file=sys.stderr)
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


def kill(child: int, reader: int, wait_fn: Callable[[int], None]) -> bool:
    """Kill a training when `wait_fn` returns; return whether it lived until then."""
    wait_fn(reader)
    os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.waitstatus_to_exitcode(status):
        raise SystemExit("a training failed before it was killed")
    return os.WIFSIGNALED(status)


def kill_trainings(rng: random.Random, scratch: Path, tries: int) -> bool:
    """Kill one training again and again; print what became of it."""
    num_steps, kills, torn = tries * STEPS_PER_KILL, 0, 0
    whole, killed = (functools.partial(train, scratch / x, num_steps) for x in ("whole", "killed"))
    expected = finish(*fork(whole))
    for attempt in range(tries):
        kills += kill(*fork(killed), functools.partial(_some_time, attempt % 5 != 4, rng))
        torn += any((scratch / "killed").glob("*.*ed"))
    good = finish(*fork(killed)) == expected
    print(f"{kills} kills, {torn} of them in the write of a checkpoint, {num_steps} steps")
    print(f"the same bytes at the end: {'yes' if good else 'no'}")
    return good


def _some_time(in_steps: bool, rng: random.Random, reader: int) -> None:
    if in_steps:
        os.read(reader, 1)
    time.sleep(rng.uniform(0, 0.8 if in_steps else 1.5))


def kill_groups(rng: random.Random, scratch: Path, tries: int) -> bool:
    """Kill groups while they write, each until it is done; print how many came to other bytes."""
    expected = finish(*fork(functools.partial(train_group, scratch / "whole")))
    kills, groups, bad = 0, 0, 0
    while kills < tries:
        root, lived = scratch / f"killed {groups}", True
        train_fn = functools.partial(train_group, root)
        while lived and kills < tries:
            lived = kill(*fork(train_fn), functools.partial(_until_it_writes, root, rng))
            kills += lived
        groups, bad = groups + 1, bad + (finish(*fork(train_fn)) != expected)
    print(f"{kills} kills in writes, {groups} groups of networks: {bad} unusable or other bytes")
    return not bad


def _until_it_writes(root: Path, rng: random.Random, reader: int) -> None:
    """Wait until things have had their passing names as many times as chance says, or the end."""
    seen: set[str] = set()
    wanted = rng.randint(1, 12)
    while len(seen) < wanted and not select.select([reader], [], [], 0)[0]:
        inside = (
            f"{at}/{name}" for at, folders, files in os.walk(root) for name in folders + files
        )
        seen.update(path for path in inside if path.endswith(PASSING))
    time.sleep(rng.uniform(0, 0.01))


def fill_disks(rng: random.Random, scratch: Path, tries: int) -> bool:
    """Limit what groups may write, then let them finish; print how many came to other bytes."""
    expected, full, bad = finish(*fork(functools.partial(train_group, scratch / "whole"))), 0, 0
    for attempt in range(tries):
        root, size = scratch / f"full {attempt}", rng.choice((0, 100, 200, 400, 1000, 2000))

        child, reader = fork(functools.partial(_limited, size, root))
        os.close(reader)
        full += os.waitpid(child, 0)[1] != 0
        bad += finish(*fork(functools.partial(train_group, root))) != expected
    print(f"{full} of {tries} disks full: {bad} unusable or other bytes afterwards")
    return not bad and bool(full)


def _limited(size: int, directory: Path, step_fn: Callable[..., None]) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return train_group(directory, step_fn)


def interrupt(rng: random.Random, scratch: Path, tries: int) -> bool:
    """Interrupt scripts in their first seconds; print how many ended otherwise than they should."""
    bad = []
    for attempt in range(tries):
        script = SCRIPTS[attempt % len(SCRIPTS)]
        number, delay = rng.choice((signal.SIGINT, signal.SIGTERM)), rng.uniform(0, 5)
        command = [sys.executable, "-m", *script.split(), "--workdir", str(scratch / str(attempt))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(delay)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        ended = process.returncode in (-number, 128 + number, 130)
        if not ended or b"Traceback" in errors or errors.count(b"\n") > 1:
            bad.append(f"  {script}, {number.name} after {delay:.2f} s: {process.returncode}\n")
            bad.append(errors.decode())
    print("".join(bad), end="")
    print(f"{tries} interruptions: {len(bad) // 2} swallowed, or with a traceback")
    return not bad


KINDS = {
    "training": kill_trainings,
    "group": kill_groups,
    "disk": fill_disks,
    "interrupt": interrupt,
}


def main() -> None:
    """Print how many faults there were, and whether the bytes are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("kind", nargs="?", choices=KINDS, default="training")
    parser.add_argument("--kills", type=int, default=50, help="how many faults; default 50")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The forks come before any thread of the runtime's, and the warning is about those.
    warnings.filterwarnings("ignore", message="os.fork")
    with tempfile.TemporaryDirectory() as scratch:
        # The first training compiles for all.
        jax.config.update("jax_compilation_cache_dir", f"{scratch}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        good = KINDS[args.kind](random.Random(args.seed), Path(scratch), args.kills)
    sys.exit(not good)


if __name__ == "__main__":
    main()
