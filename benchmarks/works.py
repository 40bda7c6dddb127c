"""Four steps of distillation to be timed: by the library, and by hand in JAX.

Perceptrons for MNIST, resnet32x4 to resnet8x4 on images of CIFAR's shape, ViT-S/16 into itself at
224 pixels, and language models with all their logits. The steps by hand have the same networks, the
textbook's loss and nothing else: no metrics, no checks.
"""

import functools
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Array, Batch, Model, Variables

TEMPERATURE, SOFT_WEIGHT = 4.0, 0.9


class Work(NamedTuple):
    """A student and its teacher, what they are fed and how the student learns."""

    network_fn: Callable[..., Model]
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    num_classes: int
    inputs: tuple[int, ...]
    optimizer: optax.GradientTransformation

    @property
    def reads_words(self) -> bool:
        """Whether the inputs are words, [batch, tokens], each with a label."""
        return len(self.inputs) == 2

    @property
    def name(self) -> str:
        """What the inputs are called in a batch."""
        return "tokens" if self.reads_words else "image"


class Program(NamedTuple):
    """A compiled step: takes some steps when called; what the compiler says of one."""

    take: Callable[[int], None]
    flops: float | None
    traffic: float | None
    peak_bytes: int | None
    compile_seconds: float
    num_params: int


def resnet(num_classes: int, *, depth: int, **sizes: Any) -> Model:
    """Make a residual network, the depth among its sizes."""
    return models.resnet(depth, num_classes, **sizes)


ADAM, SGD = optax.adam(1e-3), optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, 0.9))
ADAMW, X4 = optax.adamw(1e-3, weight_decay=0.05), {"widths": (32, 64, 128, 256)}
VIT_S = {"patch_size": 16, "width": 384, "depth": 12, "num_heads": 6}
VIT_MU = {"patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
SMALL, TINY_X4 = {"width": 8, "depth": 1, "num_heads": 2}, {"depth": 8, "widths": (4, 4, 4, 4)}
MLPS = {"widths": (800, 800)}, {"widths": (1200, 1200)}
DECODERS = (
    {"width": 512, "depth": 8, "num_heads": 8},
    {"width": 1024, "depth": 16, "num_heads": 16},
)

WORKS = {
    "mnist": Work(models.mlp, *MLPS, 10, (128, 28, 28, 1), ADAM),
    "resnet": Work(resnet, {"depth": 8, **X4}, {"depth": 32, **X4}, 100, (64, 32, 32, 3), SGD),
    "vit": Work(models.vit, VIT_S, VIT_S, 1000, (64, 224, 224, 3), ADAMW),
    "language": Work(models.transformer, *DECODERS, 32_768, (8, 512), ADAMW),
}
TINY = {
    "mnist": Work(models.mlp, {"widths": (8,)}, {"widths": (8,)}, 10, (4, 4, 4, 1), ADAM),
    "resnet": Work(resnet, TINY_X4, TINY_X4, 10, (4, 8, 8, 3), SGD),
    "vit": Work(models.vit, VIT_MU, VIT_MU, 10, (4, 8, 8, 3), ADAMW),
    "language": Work(models.transformer, SMALL, SMALL, 16, (2, 8), ADAMW),
}
# Of a size at which a step on two CPU cores takes some hundredths of a second.
FOR_CPU = {
    "mnist": WORKS["mnist"],
    "transformer": Work(
        models.vit,
        {"patch_size": 4, "width": 64, "depth": 4, "num_heads": 4},
        {"patch_size": 4, "width": 128, "depth": 4, "num_heads": 4},
        *(100, (32, 32, 32, 3), ADAMW),
    ),
}


def make_batch(work: Work) -> dict[str, Array]:
    """Draw inputs and labels."""
    rng = np.random.default_rng(0)
    size = work.inputs if work.reads_words else work.inputs[:1]
    labels = jnp.asarray(rng.integers(0, work.num_classes, size), jnp.int32)
    if work.reads_words:
        return {"tokens": jnp.roll(labels, 1, axis=1), "label": labels}
    return {"image": jnp.asarray(rng.standard_normal(work.inputs, np.float32)), "label": labels}


def networks(work: Work, dtype: Any) -> tuple[Model, Model]:
    """Make student and teacher."""
    student, teacher = (
        work.network_fn(work.num_classes, dtype=dtype, **sizes)
        for sizes in (work.student, work.teacher)
    )
    return student, teacher


def library(work: Work, dtype: Any = None) -> Program:
    """Compile the step of the library, the teacher inside."""
    (student, teacher_model), batch = networks(work, dtype), make_batch(work)
    inputs_fn = itemgetter(work.name)
    variables = jax.jit(teacher_model.init)(jax.random.key(1), inputs_fn(batch))
    teacher = teachers.frozen(teacher_model, variables, inputs_fn=inputs_fn)
    kd = terms.kd(temperature=TEMPERATURE, soft_weight=SOFT_WEIGHT)
    objective, optimizer = combine({"kd": kd}, {"kd": 1.0}), work.optimizer
    outputs = jax.jit(teacher.apply)(variables, batch)
    state = step.init_train_state(
        *(jax.random.key(0), student, objective, optimizer, batch, outputs), inputs_fn=inputs_fn
    )
    run: Any = step.with_teacher(
        step.make_train_step(student, objective, optimizer, inputs_fn=inputs_fn), teacher
    )
    return compiled(run.func, state, state.params["student"], batch, **run.keywords)


def by_hand(work: Work, dtype: Any = None) -> Program:
    """Compile the same as one writes it by hand."""
    (student, teacher), batch = networks(work, dtype), make_batch(work)
    optimizer, name = work.optimizer, work.name

    def loss_fn(params: Any, rest: Any, variables: Variables, batch: Batch) -> tuple[Array, Any]:
        answer, _ = teacher.apply(variables.params, variables.state, batch[name], train=False)
        outputs, rest = student.apply(params, rest, batch[name], train=True)
        z, v = outputs.logits, jax.lax.stop_gradient(answer.logits)
        return textbook(z, v, batch["label"]), rest

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry: Any, batch: Batch, *, variables: Any) -> tuple[Any, Array]:
        params, rest, opt_state = carry
        (loss, rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, rest, variables, batch
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    params, rest = jax.jit(student.init)(jax.random.key(0), batch[name])
    variables = jax.jit(teacher.init)(jax.random.key(1), batch[name])
    return compiled(run, (params, rest, optimizer.init(params)), params, batch, variables=variables)


def textbook(z: Array, v: Array, labels: Array) -> Array:
    """Return the mean of the usual loss on logits [..., classes]."""
    log_q, log_p = (jax.nn.log_softmax(x / TEMPERATURE) for x in (z, v))
    soft = TEMPERATURE**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
    hard = optax.softmax_cross_entropy_with_integer_labels(z, labels)
    return jnp.mean(SOFT_WEIGHT * soft + (1 - SOFT_WEIGHT) * hard)


def compiled(run: Any, carry: Any, params: Any, batch: Batch, **held: Any) -> Program:
    """Compile a step `(carry, batch) -> (carry, ...)`; its arithmetic is counted before that.

    Compiled for a GPU, products are calls of libraries, of which not every version counts all.
    """
    num_params = sum(x.size for x in jax.tree.leaves(params))
    lowered = run.lower(carry, batch, **held)
    begin = time.perf_counter()
    program = lowered.compile()
    seconds, memory = time.perf_counter() - begin, program.memory_analysis()

    def take(count: int) -> None:
        nonlocal carry
        for _ in range(count):
            carry, _ = program(carry, batch, **held)
        jax.block_until_ready(carry)

    counts = (lowered.cost_analysis(), "flops"), (program.cost_analysis(), "bytes accessed")
    flops, traffic = ((cost or {}).get(name) for cost, name in counts)
    return Program(take, flops, traffic, peak_of(memory), seconds, num_params)


def peak_of(memory: Any) -> int | None:
    """Return the bytes that a program needs: arguments, results and what is between."""
    if memory is None:
        return None
    named = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(named - memory.alias_size_in_bytes + memory.temp_size_in_bytes)
