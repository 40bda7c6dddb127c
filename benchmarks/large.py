"""What trainings on 8, 64 and 512 devices need of each, counted by the compiler; nothing runs.

    python -m benchmarks.large [--devices 8 64 512] [--works imagenet language] [--tiny]

ImageNet, resnet34 to resnet18 in bfloat16, 128 images a device; and a language model of 8 billion
parameters that teaches one of 1.2 billion (Llama 3's sizes, a row of 2,048 tokens a device). Steps
are lowered from shapes for simulated devices and compiled. Counts of a batch, or of a depth, are
straight lines: two of each are compiled, the rest is arithmetic. The tables are for Markdown.
"""

import argparse
import functools
import math
import os
import re
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.works import peak_of
from kdjax import models, sharding, step, teachers, terms
from kdjax.objective import combine
from kdjax.runs.language import lessons
from kdjax.runs.language.settings import LanguageSettings
from kdjax.types import Model, Objective, Teacher, TrainState, Variables

# An H100 SXM: dense bfloat16, its memory, a direction of NVLink, and of InfiniBand at 400 Gbit/s.
FLOPS, BANDWIDTH, NVLINK, NETWORK = 989e12, 3.35e12, 450e9, 50e9
IN_A_MACHINE = 8
# Compiled to be read, not run.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "f64": 8, "s64": 8}
BASE: dict[str, Any] = {"width": 4096, "depth": 32, "num_heads": 32, "num_key_heads": 8}
TEACHER = {**BASE, "mlp_width": 14_336, "tied": False}
STUDENT = {**BASE, "width": 2048, "depth": 16, "mlp_width": 8192}
SMALL = {"width": 32, "depth": 4, "num_heads": 4, "num_key_heads": 2, "mlp_width": 64}


class Count(NamedTuple):
    """What a device needs for a step."""

    peak: float
    flops: float
    memory_traffic: float
    sent_inside: float
    sent_across: float

    def plus(self, other: "Count", times: float) -> "Count":
        """Return this and a multiple of another."""
        return Count(*(a + times * b for a, b in zip(self, other, strict=True)))


def sent_by(text: str, devices: int) -> tuple[float, float]:
    """Count the bytes that a device sends in a program, each collective as a ring does it.

    A sum of S bytes over n devices sends 2 (n - 1) / n S, a gather of S in all (n - 1) / n S, a
    sum of which each keeps an n-th of S (n - 1) / n S.

    Args:
        text: the compiled program.
        devices: it runs on.

    Returns:
        What goes to devices of the same machine, which are neighbors, and what is sent where a
        collective joins several machines.
    """
    totals = [0.0, 0.0]
    pattern = r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\((.*)"
    for results, name, rest in re.findall(pattern, text):
        group, across = _group(rest, devices)
        size = sum(
            BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", results)
        )
        ring = {"all-reduce": 2 / group, "reduce-scatter": 1.0}.get(name, 1 / group)
        totals[across] += (group - 1) * ring * size
    return totals[0], totals[1]


def _group(rest: str, devices: int) -> tuple[int, bool]:
    """Return how many devices a collective joins, and whether they are of several machines."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    spread = re.search(r"replica_groups=\[(\d+),\d+\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    named = re.search(
        r"replica_groups=mesh\[([^]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        rest,
    )
    every = np.arange(devices)
    if listed:
        every = np.array(_numbers(listed[1]))
    elif spread:
        every = _moved(every, *spread.groups()[1:]).reshape(int(spread[1]), -1)[0]
    elif named:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        grid = _moved(every, named[2], named[3]).reshape(list(sizes.values()))
        joined = re.findall(r"\w+", named[4])
        every = grid[tuple(slice(None) if name in joined else 0 for name in sizes)].ravel()
    elif "replica_groups=" in rest and "replica_groups={}" not in rest:
        raise ValueError(f"how are these devices grouped? {rest}")
    return every.size, len({n // IN_A_MACHINE for n in every.tolist()}) > 1


def _moved(devices: np.ndarray, shape: str | None, order: str | None) -> np.ndarray:
    """Return all devices as a grid, its axes in another order: `[shape]T(order)` of the program."""
    grid = devices.reshape(_numbers(shape)) if shape else devices
    return np.transpose(grid, _numbers(order)) if order else grid


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def count(
    student: Model,
    teacher: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Any,
    mesh: jax.sharding.Mesh,
    inputs_fn: Any = itemgetter("image"),
) -> Count:
    """Compile a step for a mesh, from shapes alone."""
    layout = functools.partial(sharding.shardings, mesh=mesh, rules=sharding.NETWORK_RULES)
    frozen = teachers.frozen(teacher, Variables((), ()), inputs_fn=inputs_fn)

    def make(key: Any, batch: Any) -> tuple[TrainState, Any]:
        drawn = teacher.init(key, inputs_fn(batch))
        # A teacher is kept in half the precision.
        variables = drawn._replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn[0]))
        outputs = frozen.apply(variables, batch)
        parts = student, objective, optimizer, batch, outputs
        return step.init_train_state(key, *parts, inputs_fn=inputs_fn), variables

    state, variables = sharding.abstract(make, jax.random.key(0), batch, layout_fn=layout)
    run: Any = step.with_teacher(
        step.make_train_step(student, objective, optimizer, layout_fn=layout, inputs_fn=inputs_fn),
        Teacher(variables, frozen.apply),
    )
    program = run.func.lower(state, batch, teacher_variables=variables).compile()
    cost, peak = program.cost_analysis(), peak_of(program.memory_analysis())
    sent = sent_by(program.as_text(), mesh.size)
    return Count(peak or 0, cost["flops"], cost["bytes accessed"], *sent)


def imagenet(num_devices: int, *, tiny: bool) -> Count:
    """Count a step of resnet34 to resnet18: for 128 images a device, from 1 and 2."""
    mesh = sharding.make_mesh(data=num_devices)
    half: dict[str, Any] = {"dtype": jnp.bfloat16}
    side, make = (16, models.resnet8) if tiny else (224, models.resnet18)
    teacher = models.resnet8(10, **half) if tiny else models.resnet34(1000, **half)
    student = make(10 if tiny else 1000, **half)
    objective = combine({"kd": terms.kd()}, {"kd": 1.0})
    sgd = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.4, 0.9, nesterov=True))

    def of(images: int) -> Count:
        split, size = sharding.batch_sharding(mesh), images * num_devices
        describe = functools.partial(jax.ShapeDtypeStruct, sharding=split)
        batch = {
            "image": describe((size, side, side, 3), np.float32),
            "label": describe((size,), np.int32),
        }
        return count(student, teacher, objective, sgd, batch, mesh)

    return line(of(1), of(2), 128)


def language(num_devices: int, *, tiny: bool) -> Count:
    """Count a step of 8 billion parameters to 1.2 billion, from 1 and 2 blocks of each.

    The compiler counts a loop's body once. So all logits of a device's row are one chunk in these
    programs, and a fourth one, of chunks of 256 tokens, says what memory chunks leave.
    """
    fsdp = min(IN_A_MACHINE, num_devices)
    mesh = sharding.make_mesh(data=num_devices // fsdp, fsdp=fsdp)
    words, length = (64, 16) if tiny else (128_256, 2048)
    student, teacher = (SMALL, SMALL) if tiny else (STUDENT, TEACHER)
    split = sharding.batch_sharding(mesh)
    rows = jax.ShapeDtypeStruct((num_devices, length), np.int32, sharding=split)
    batch = {"tokens": rows, "label": rows}
    adam = optax.adamw(1e-4, b2=0.95, weight_decay=0.1)

    def of(student_depth: int, teacher_depth: int, chunk: int = length) -> Count:
        own = {"context": length, "dtype": jnp.bfloat16, "features": ("norm",)}
        networks = (
            models.transformer(words, **{**sizes, "depth": depth, **own})
            for sizes, depth in ((student, student_depth), (teacher, teacher_depth))
        )
        pupil, master = map(lessons.without_logits, networks)
        settings = LanguageSettings(divergence="kl", chunk_size=chunk)
        objective = lessons.distilled(settings, 1)
        return count(pupil, master, objective, adam, batch, mesh, lessons.inputs_of)

    one, more, taller = of(1, 1), of(2, 1), of(1, 2)
    whole = line(one, more, student["depth"])
    whole = whole.plus(taller.plus(one, -1), teacher["depth"] - 1)
    return whole._replace(peak=whole.peak + of(1, 1, min(256, length // 2)).peak - one.peak)


def line(one: Count, two: Count, at: int) -> Count:
    """Return the point at a number of the straight line through those at 1 and 2."""
    return one.plus(two.plus(one, -1), at - 1)


WORKS = {"imagenet": imagenet, "language": language}


def main() -> None:
    """Print a row for each training and number of devices."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--tiny", action="store_true", help="networks of a few numbers")
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    simulated = f"--xla_force_host_platform_device_count={max(flags.devices)}"
    os.environ["XLA_FLAGS"] = f"{simulated} {QUICKLY}"
    names = "devices | GiB | TFLOP | GB of memory | GB sent inside | GB sent across"
    limited = "ms FLOPs | ms memory | ms inside | ms across"
    print(f"| training | {names} | {limited} |\n" + "| --- " * 11 + "|", flush=True)
    for name in flags.works:
        for devices in flags.devices:
            found = WORKS[name](devices, tiny=flags.tiny)
            limits = 1.0, FLOPS, BANDWIDTH, NVLINK, NETWORK
            times = [1e3 * x / limit for x, limit in zip(found, limits, strict=True)][1:]
            units = 2**30, 1e12, 1e9, 1e9, 1e9
            cells = [x / unit for x, unit in zip(found, units, strict=True)] + times
            print(f"| {name} | {devices} | " + " | ".join(f"{x:.3g}" for x in cells) + " |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
