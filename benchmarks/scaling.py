"""What a device holds of a training, and what the compiled step needs at its peak.

    python -m benchmarks.scaling

Distillation of ViT-S/16 at 224 pixels into itself, Adam, 8 images a step, compiled for eight
simulated devices and not run. The table is for Markdown; sizes are MiB a device.
"""

import functools
import math
import os
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

from benchmarks.timing import command
from kdjax import models, sharding, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import PyTree, Teacher, TrainState, Variables

MESHES = ((8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2))
BATCH, CLASSES = 8, 1000


def bytes_per_device(tree: PyTree) -> int:
    """Count the bytes that one device holds of arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def compile_on(mesh: jax.sharding.Mesh, *, split_teacher: bool) -> tuple[TrainState, PyTree, Any]:
    """Describe state and teacher on a mesh, and compile the step for them."""
    layout = functools.partial(sharding.shardings, mesh=mesh, rules=sharding.NETWORK_RULES)
    axes = dict(sharding.LOGICAL_AXES)
    if split_teacher:
        axes["fsdp"] = sharding.BATCH_AXES
    model, optimizer = models.vit_s(CLASSES, patch_size=16), optax.adam(1e-3)
    objective = combine({"kd": terms.kd()}, {"kd": 1.0})
    split = sharding.batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 224, 224, 3), np.float32, sharding=split),
        "label": jax.ShapeDtypeStruct((BATCH,), np.int32, sharding=split),
    }
    frozen = teachers.frozen(model, Variables((), ()))

    def make(key: Any, batch: Any) -> tuple[TrainState, PyTree]:
        variables = model.init(key, batch["image"])
        outputs = frozen.apply(variables, batch)
        state = step.init_train_state(key, model, objective, optimizer, batch, outputs)
        return state, variables

    def lives(tree: PyTree) -> PyTree:
        return layout(tree[0]), layout(tree[1], axes=axes)

    state, variables = sharding.abstract(make, jax.random.key(0), batch, layout_fn=lives)
    train_step = step.make_train_step(model, objective, optimizer, layout_fn=layout)
    run: Any = step.with_teacher(train_step, Teacher(variables, frozen.apply))
    return state, variables, run.func.lower(state, batch, teacher_variables=variables).compile()


def peak_of(program: Any) -> int:
    """Count the bytes that a program needs on a device: arguments, results and what is between."""
    memory = program.memory_analysis()
    named = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return named - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def main() -> None:
    """Print the table."""
    print("| data x fsdp x tensor | teacher | parameters | optimizer | teacher's | step's peak |")
    print("| --- | --- | --- | --- | --- | --- |")
    for data, fsdp, tensor in MESHES:
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        for split_teacher in (False, True) if (data, fsdp) == (8, 1) else (False,):
            state, variables, program = compile_on(mesh, split_teacher=split_teacher)
            sizes = [*map(bytes_per_device, (state.params, state.opt_state, variables))]
            sizes.append(peak_of(program))
            cells = " | ".join(f"{size / 2**20:.1f}" for size in sizes)
            split = "split over data" if split_teacher else "as the student"
            print(f"| {data} x {fsdp} x {tensor} | {split} | {cells} |", flush=True)


if __name__ == "__main__":
    command(main, __doc__)
