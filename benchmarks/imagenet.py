"""What a step of the ImageNet preset costs, by the compiler: memory, arithmetic, time to expect.

    python -m benchmarks.imagenet

Distillation of resnet34 into resnet18, and of resnet34 into ViT-S/16, at 224 pixels in bfloat16,
compiled for one device and not run. FLOPs are XLA's count for a batch, divided by it; memory grows
with the batch, so that two batches tell what is fixed and what an image adds. The table is for
Markdown.
"""

import os
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled to be read, not run: memory and FLOPs do not need LLVM's best.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import command
from kdjax import models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model, Teacher, Variables

CLASSES, SIZE, BATCHES = 1000, 224, (8, 16)
IMAGES, EPOCHS = 1_281_167 * 0.99, 100
# Dense bfloat16, 1e12 FLOPs a second, by the makers' data sheets.
PEAKS = {"A100": 312, "H100 SXM": 989, "TPU v4 chip": 275, "TPU v5e chip": 197}


class Cost(NamedTuple):
    """What a compiled step needs: bytes at its peak, and FLOPs."""

    peak: int
    flops: float


class Row(NamedTuple):
    """What is compiled, and the share of a chip's peak that such networks are known to reach."""

    teacher: Model
    student: Model
    optimizer: optax.GradientTransformation
    utilisation: float


def rows() -> dict[str, Row]:
    """Return what the tables have rows for."""
    half: dict[str, Any] = {"dtype": jnp.bfloat16}
    teacher = models.resnet34(CLASSES, **half)
    sgd = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.4, momentum=0.9, nesterov=True))
    vit = models.vit_s(CLASSES, patch_size=16, **half)
    return {
        "resnet34 to resnet18": Row(teacher, models.resnet18(CLASSES, **half), sgd, 0.2),
        "resnet34 to ViT-S/16": Row(teacher, vit, optax.adamw(1e-3, weight_decay=0.05), 0.3),
    }


def compiled(row: Row, batch_size: int) -> Cost:
    """Compile a step from shapes alone, and ask the compiler."""
    mean, optimizer = np.full(3, 0.5), row.optimizer
    teacher, student = (models.normalized(model, mean, mean) for model in row[:2])
    objective = combine(
        {"soft": terms.soft_targets(temperature=4.0), "hard": terms.cross_entropy()},
        {"soft": 0.9, "hard": 0.1},
    )
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }
    frozen = teachers.frozen(teacher, Variables((), ()))

    def make(key: Any, batch: Any) -> Any:
        variables = teacher.init(key, batch["image"])
        outputs = frozen.apply(variables, batch)
        state = step.init_train_state(key, student, objective, optimizer, batch, outputs)
        return state, variables

    state, variables = jax.eval_shape(make, jax.random.key(0), batch)
    train_step = step.make_train_step(student, objective, optimizer)
    run: Any = step.with_teacher(train_step, Teacher(variables, frozen.apply))
    program = run.func.lower(state, batch, teacher_variables=variables).compile()
    memory = program.memory_analysis()
    named = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak = named - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Cost(peak, program.cost_analysis()["flops"])


def main() -> None:
    """Print both tables."""
    print("| distillation | fixed MiB | MiB an image | GFLOP an image |")
    print("| --- | --- | --- | --- |")
    found = {}
    for name, row in rows().items():
        small, large = (compiled(row, size) for size in BATCHES)
        images = BATCHES[1] - BATCHES[0]
        per_image = (large.peak - small.peak) / images
        fixed = small.peak - BATCHES[0] * per_image
        found[name] = (large.flops - small.flops) / images
        cells = f"{fixed / 2**20:.0f} | {per_image / 2**20:.1f} | {found[name] / 1e9:.1f}"
        print(f"| {name} | {cells} |", flush=True)
    print(f"\n| hours for {EPOCHS} epochs | of the peak | " + " | ".join(PEAKS) + " |")
    print("| --- " * (2 + len(PEAKS)) + "|")
    for name, row in rows().items():
        total = found[name] * IMAGES * EPOCHS / row.utilisation
        hours = " | ".join(f"{total / (peak * 1e12) / 3600:.1f}" for peak in PEAKS.values())
        print(f"| {name} | {row.utilisation:.0%} | {hours} |")


if __name__ == "__main__":
    command(main, __doc__)
