"""Several processes on one machine, forked from one that has done the imports, train together.

    python tests/hosts.py OUT SCENARIO...

Writes OUT/results.json: for every scenario what its processes ended with, and what they said.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import toys

from kdjax import checkpoint, data, distributed, loop, many, sharding, step
from kdjax.distributed import _watchdog
from kdjax.runs import distill, experiment, flags
from kdjax.runs.settings import DataSettings
from kdjax.types import Variables

NUM_STEPS, SAVE_EVERY, TIMEOUT, NUM_DEVICES = 12, 5, 15.0, 8
# No signal: the main thread waits for what never happens.
ASLEEP = -1


class Scenario(NamedTuple):
    """How many processes train on which mesh, in whose directory, and who dies when."""

    processes: int
    mesh: tuple[int, int, int]
    directory: str
    victim: int | None = None
    number: int = signal.SIGKILL
    at: int = 7
    steps_per_call: int = 1
    absent: int | None = None
    timeout: float = TIMEOUT
    without_store: bool = False
    differ: str = ""


SCENARIOS = {
    "one": Scenario(1, (8, 1, 1), "one"),
    "two": Scenario(2, (2, 4, 1), "two"),
    "two without a store": Scenario(2, (2, 4, 1), "no store", without_store=True),
    "two by calls": Scenario(2, (2, 4, 1), "two calls", steps_per_call=4),
    "one dies": Scenario(2, (2, 4, 1), "killed", victim=1),
    "resumed by two": Scenario(2, (2, 4, 1), "killed"),
    "zero dies": Scenario(2, (2, 4, 1), "orphaned", victim=0),
    "resumed by one": Scenario(1, (8, 1, 1), "orphaned"),
    "one leaves": Scenario(2, (1, 2, 4), "left", victim=1, number=0),
    "one hangs": Scenario(2, (1, 2, 4), "hung", victim=1, number=signal.SIGSTOP),
    "one sleeps": Scenario(2, (1, 2, 4), "a", victim=1, number=ASLEEP, timeout=8.0),
    "zero sleeps": Scenario(2, (1, 2, 4), "b", victim=0, number=ASLEEP, timeout=8.0),
    "one is late": Scenario(2, (1, 2, 4), "c", victim=1, number=ASLEEP, at=NUM_STEPS, timeout=8.0),
    "one never comes": Scenario(4, (1, 2, 4), "d", absent=3, timeout=8.0),
    "preempted": Scenario(2, (1, 2, 4), "stopped", victim=1, number=signal.SIGTERM, at=3),
    "resumed by four": Scenario(4, (1, 2, 4), "stopped"),
    "other flags": Scenario(2, (2, 4, 1), "flags", differ="flags"),
    "other data": Scenario(2, (2, 4, 1), "data", differ="data"),
    "four": Scenario(4, (8, 1, 1), "four"),
    "one of four dies": Scenario(4, (8, 1, 1), "four killed", victim=2),
    "four again": Scenario(4, (8, 1, 1), "four killed"),
}


def examples(size, seed):
    return toys.batch_of(size, seed, width=16)


def placed(state, mesh):
    """Split over fsdp what divides: arrays that no process holds whole."""

    def layout(leaf):
        split = getattr(leaf, "ndim", 0) and leaf.shape[-1] % mesh.shape["fsdp"] == 0
        axes = [None] * (leaf.ndim - 1) + ["fsdp"] if split else []
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    return sharding.put(state, jax.tree.map(layout, state))


def batches(mesh, start=0):
    rows = sharding.local_rows(mesh, 16)
    made = data.train_batches(examples(40, 0), seed=3, batch_size=16, start_step=start, rows=rows)
    for batch in made:
        assert len(batch["label"]) == len(rows)
        yield sharding.shard_batch(batch, mesh)


def rows_of(mesh, start=0):
    return data.train_rows(40, seed=3, batch_size=16, start_step=start)


def disturbed(made, directory, scenario, me):
    """Let the victim die when it asks for a batch, and the first checkpoint is there."""
    for at, batch in made:
        if (me, at) == (scenario.victim, scenario.at):
            while at > SAVE_EVERY and not (directory / str(SAVE_EVERY)).exists():
                time.sleep(0.05)
            if not scenario.number:
                raise SystemExit(2)
            if scenario.number == ASLEEP:
                threading.Event().wait()
            os.kill(os.getpid(), scenario.number)
        if scenario.number == signal.SIGTERM:
            time.sleep(0.3)
        yield batch


def train(out, scenario, me, port):
    if scenario.without_store:
        _watchdog._PRIVATE = "jax.gone"
    if scenario.processes > 1:
        distributed.initialize(
            coordinator=f"127.0.0.1:{port}",
            num_processes=scenario.processes,
            process_id=me,
            timeout=scenario.timeout,
        )
    if scenario.differ:
        open_differing(out, scenario, me)
        return
    sizes = dict(zip(("data", "fsdp", "tensor"), scenario.mesh, strict=True))
    mesh = sharding.make_mesh(**sizes)
    model, optimizer = toys.norm_model(), optax.sgd(0.1, momentum=0.9)
    teacher = toys.teacher_for(examples(16, 0))
    teacher = teacher._replace(variables=sharding.replicate(teacher.variables, mesh))
    batch = next(batches(mesh))
    objective = toys.kd_objective()
    outputs = teacher.apply(teacher.variables, batch)
    fresh = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    fresh = placed(fresh, mesh)
    directory = out / scenario.directory
    start, state = checkpoint.restore(directory, fresh) or (0, fresh)
    run, made = (
        step.with_teacher(step.make_train_step(model, objective, optimizer), teacher),
        batches,
    )
    if scenario.steps_per_call > 1:
        run, made = many.several(many.with_examples(run, examples(40, 0), mesh)), rows_of
    feed = enumerate(made(mesh, start), start)
    with loop.stop_on_signals() as stop_fn, checkpoint.saving(directory) as save_fn:
        state = loop.fit(
            run,
            state,
            disturbed(feed, directory, scenario, me),
            num_steps=NUM_STEPS,
            steps_per_call=scenario.steps_per_call,
            checkpoint_every=SAVE_EVERY,
            save_fn=save_fn,
            stop_fn=stop_fn,
        )
    if (scenario.victim, scenario.at, scenario.number) == (me, NUM_STEPS, ASLEEP):
        threading.Event().wait()
    report(out, model, state, mesh, start)


def open_differing(out, scenario, me):
    """Open a run whose processes were started with other flags, or see other data."""
    own = {"temperature": 2.0 + me} if scenario.differ == "flags" else {}
    sets_of = DataSettings(name="toy", dir=out / f"data{me}")
    asked = distill.Settings(data=sets_of, workdir=out / scenario.directory, batch_size=8, **own)
    with flags.plain_errors(resume_with=""), experiment.opened(asked):
        print("opened", flush=True)


def report(out, model, state, mesh, start):
    """Measure on every example once, collect the parameters and print what the test looks at."""
    rows = sharding.local_rows(mesh, 16)
    made = data.eval_batches(examples(21, 1), batch_size=16, rows=rows)
    variables = Variables(state.params["student"], state.model_state)
    measured = loop.evaluate(
        step.make_eval_step(model), variables, (sharding.shard_batch(b, mesh) for b in made)
    )
    split = sum(not distributed.is_whole(x) for x in jax.tree.leaves(state.params))
    values = {
        jax.tree_util.keystr(keys): distributed.gathered(x).ravel().tolist()
        for keys, x in jax.tree_util.tree_leaves_with_path(state.params)
    }
    said = {
        "start": start,
        "sha256": checkpoint.params_sha256(state),
        "values": values,
        "measured": {name: np.asarray(metric[1]).tolist() for name, metric in measured.items()},
        "split": split,
        "leader": distributed.is_leader(),
    }
    print(json.dumps(said), flush=True)


def child(out, scenario, me, port, path):
    """Be one process of a scenario, with files for output."""
    for descriptor, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{path}{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    devices = NUM_DEVICES // scenario.processes
    jax.config.update("jax_num_cpu_devices", devices)
    status = 1
    try:
        with distributed.leaving():
            try:
                train(out, scenario, me, port)
            except loop.Stopped as stopped:
                print(json.dumps({"stopped": stopped.step}), flush=True)
                raise SystemExit(130) from stopped
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        # JAX's own barrier at exit, without the parent's work there.
        _watchdog.retire()
        jax.distributed.shutdown()
        sys.stdout.flush()
        os._exit(status)


def run(out, name):
    scenario = SCENARIOS[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path, began = str(out / name.replace(" ", "-")), time.monotonic()
    pids = []
    for me in {*range(scenario.processes)} - {scenario.absent}:
        pid = os.fork()
        if not pid:
            child(out, scenario, me, port, f"{path}.{me}")
        pids.append(pid)
    ends = {}
    while len(ends) < len(pids):
        pid, status = os.wait()
        if pid in pids:
            ends[pids.index(pid)] = (os.waitstatus_to_exitcode(status), time.monotonic() - began)
            if scenario.number == signal.SIGSTOP and len(ends) < len(pids):
                os.kill(pids[scenario.victim], signal.SIGKILL)
    return {
        "status": [ends[me][0] for me in sorted(ends)],
        "seconds": [ends[me][1] for me in sorted(ends)],
        "out": [Path(f"{path}.{me}.out").read_text() for me in sorted(ends)],
        "err": [Path(f"{path}.{me}.err").read_text() for me in sorted(ends)],
    }


def main():
    warnings.filterwarnings("ignore", message="os.fork")
    out = Path(sys.argv[1])
    # One compiles, the others read.
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    results = {name: run(out, name) for name in sys.argv[2:]}
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
