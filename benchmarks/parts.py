"""A step of distillation against the sum of its parts, and against its other forms.

    python -m benchmarks.parts

The networks of the MNIST experiment, batches of 128: a 784-1200-1200-10 teacher, a 784-800-800-10
student, Adam. The parts are the student's step from labels alone and the teacher's forward pass.
Rematerialization is measured on deep networks for CIFAR, and gradient accumulation on a shallow one
as well, batches of 32, from labels.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.step import BATCH_SIZE, make_batch
from benchmarks.timing import command, line, ratio
from kdjax import models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Batch, Model, Objective, PyTree, Teacher

STEPS = 10


class Program(NamedTuple):
    """A compiled step: takes STEPS steps when called; what the compiler says of one."""

    run: Callable[[], None]
    flops: float
    bytes_accessed: float
    compile_seconds: float
    temporary_bytes: int


def distillation() -> Objective:
    """Make the objective of plain distillation."""
    weights = {"soft": 0.9, "hard": 0.1}
    return combine({"soft": terms.soft_targets(), "hard": terms.cross_entropy()}, weights)


def labels_alone() -> Objective:
    """Make the objective of training from labels."""
    return combine({"hard": terms.cross_entropy()}, {"hard": 1.0})


def program(
    student: Model, batch: Batch, objective: Objective, teacher: Teacher, *, parts: int = 1
) -> Program:
    """Compile a step of the student, and count what it does."""
    optimizer = optax.adam(1e-3)
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), student, objective, optimizer, batch, outputs)
    train_step = step.make_train_step(student, objective, optimizer, num_micro_batches=parts)
    run: Any = step.with_teacher(train_step, teacher)
    begin = time.perf_counter()
    compiled = run.func.lower(state, batch, **run.keywords).compile()
    seconds, cost = time.perf_counter() - begin, compiled.cost_analysis()

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = compiled(state, batch, **run.keywords)
        jax.block_until_ready(state)

    memory = compiled.memory_analysis().temp_size_in_bytes
    return Program(steps, cost["flops"], cost["bytes accessed"], seconds, memory)


def small(dtype: Any = None) -> Model:
    """Make the student."""
    return models.mlp(10, widths=(800, 800), dtype=dtype)


def forward(teacher: Teacher, batch: Batch) -> Callable[[], None]:
    """Return a function that lets the teacher answer STEPS times."""
    apply = jax.jit(teacher.apply)

    def answers() -> None:
        for _ in range(STEPS):
            jax.block_until_ready(apply(teacher.variables, batch))

    return answers


def big(dtype: Any = None) -> tuple[Model, Any]:
    """Make the teacher and its variables."""
    model = models.mlp(10, widths=(1200, 1200), dtype=dtype)
    return model, model.init(jax.random.key(1), make_batch()["image"])


def kept_bytes(model: Model, images: jax.Array) -> int:
    """Count what a forward pass keeps for the gradient, the parameters left out."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def backward(params: PyTree, state: PyTree) -> Any:
        return jax.vjp(lambda p: model.apply(p, state, images, train=True)[0].logits, params)[1]

    def total(tree: PyTree) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return total(jax.eval_shape(backward, *shapes)) - total(shapes.params)


def colored_batch() -> Batch:
    """Make images of CIFAR's shape, with labels."""
    images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
    return {"image": images, "label": jnp.arange(32) % 10}


def rematerialization(name: str, model: Model) -> None:
    """Print what it costs and saves on a network to compute its blocks again."""
    batch, lean = colored_batch(), models.rematerialized(model)
    images = batch["image"]
    again, plain = (program(m, batch, labels_alone(), teachers.absent()) for m in (lean, model))
    first, second, quotient = ratio(again.run, plain.run, repeats=5)
    kept = kept_bytes(lean, images) / kept_bytes(model, images)
    memory = again.temporary_bytes / plain.temporary_bytes
    print(
        f"{name} rematerialized, against plain: {first * 1e3:.0f} ms against "
        f"{second * 1e3:.0f} ms, ratio {quotient:.2f}; FLOP {again.flops / plain.flops:.2f}, "
        f"bytes kept for the gradient {kept:.2f}, temporary bytes {memory:.2f}"
    )


def main() -> None:
    """Print the ratios, and the compiler's counts beside what arithmetic asks for."""
    batch = make_batch()
    teacher = teachers.frozen(*big())
    answered = {**batch, "teacher_logits": teacher.apply(teacher.variables, batch).logits}
    whole = program(small(), batch, distillation(), teacher)
    alone = program(small(), batch, labels_alone(), teachers.absent())
    answer = forward(teacher, batch)

    def sum_of_parts() -> None:
        alone.run()
        answer()

    stored = program(small(), answered, distillation(), teachers.stored())
    halves = program(small(), batch, distillation(), teacher, parts=2)
    narrow = teachers.frozen(*big(jnp.bfloat16))
    half_precision = program(small(jnp.bfloat16), batch, distillation(), narrow)
    print(line("a step against the sum of its parts", ratio(whole.run, sum_of_parts), 1.03))
    for name, other in (
        ("logits stored, against a live teacher", stored),
        ("two micro-batches, against one batch", halves),
        ("bfloat16 against float32", half_precision),
    ):
        first, second, quotient = ratio(other.run, whole.run, repeats=7)
        print(f"{name}: {first * 1e3:.2f} ms against {second * 1e3:.2f} ms, ratio {quotient:.3f}")
    # BatchNorm's statistics are those of a part, which changes no time.
    warnings.filterwarnings("ignore", message="micro-batches")
    network, colored = models.resnet8(10), colored_batch()
    four, one = (
        program(network, colored, labels_alone(), teachers.absent(), parts=parts)
        for parts in (4, 1)
    )
    first, second, quotient = ratio(four.run, one.run, repeats=5)
    print(
        f"resnet8, four micro-batches, against one batch: {first * 1e3:.0f} ms against "
        f"{second * 1e3:.0f} ms, ratio {quotient:.3f}"
    )
    numbers = [784 * 800 + 800 * 800 + 800 * 10, 784 * 1200 + 1200 * 1200 + 1200 * 10]
    # Forward, and the gradients of inputs and weights; the first layer's inputs need none.
    ideal = BATCH_SIZE * (2 * numbers[1] + 6 * numbers[0] - 2 * 784 * 800)
    print(
        f"one step: {whole.flops / 1e6:.0f} MFLOP by the compiler's count, {ideal / 1e6:.0f} in "
        f"the products of matrices; {whole.bytes_accessed / 1e6:.0f} MB read and written"
    )
    print(f"compiled once, in {whole.compile_seconds:.2f} s")
    rematerialization("resnet56", models.resnet56(10))
    vit = models.vit(10, patch_size=4, width=64, depth=8, num_heads=2)
    rematerialization("a transformer of 8 blocks", vit)


if __name__ == "__main__":
    command(main, __doc__)
