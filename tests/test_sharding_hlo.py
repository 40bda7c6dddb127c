"""What the compiled step sends between devices, read from the compiled program."""

import functools
import math
import re

import jax
import numpy as np
import optax
import pytest

from kdjax import models, sharding, step, teachers, terms
from kdjax.objective import combine

CLASSES, BATCH = 8, 24
STUDENTS = {
    "mlp": lambda: models.mlp(CLASSES, widths=(32, 16), dropout=0.3),
    "resnet": lambda: models.resnet8(CLASSES),
    "transformer": lambda: models.vit(CLASSES, patch_size=4, width=16, depth=1, num_heads=8),
}
# loss and kd share one total; accuracy, agreement and teacher/accuracy; how many labels there are,
# for each of the two that look at them.
NUM_METRICS = 6


def compiled(student, mesh, *, teacher_axes=sharding.LOGICAL_AXES):
    """Return the program of a relation-free distillation step, its state and its teacher."""
    layout = functools.partial(
        sharding.shardings, mesh=mesh, rules=sharding.NETWORK_RULES, min_size=1
    )
    batch = {
        "image": np.zeros((BATCH, 8, 8, 3), np.float32),
        "label": np.zeros(BATCH, np.int32),
    }
    teacher_model = models.mlp(CLASSES, widths=(64,))
    shapes = jax.eval_shape(teacher_model.init, jax.random.key(1), batch["image"])
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    placed = sharding.place(variables, mesh, sharding.NETWORK_RULES, axes=teacher_axes)
    teacher = teachers.frozen(teacher_model, placed)
    objective, optimizer = combine({"kd": terms.kd()}, {"kd": 1.0}), optax.sgd(0.1, momentum=0.9)

    def make(key):
        outputs = teacher.apply(variables, batch)
        return step.init_train_state(key, student, objective, optimizer, batch, outputs)

    state = sharding.abstract(make, jax.random.key(0), layout_fn=layout)
    train_step = step.make_train_step(student, objective, optimizer, layout_fn=layout)
    run = step.with_teacher(train_step, teacher)
    args = state, sharding.shard_batch(batch, mesh)
    return run.func.lower(*args, teacher_variables=placed).compile(), state


def sent(text):
    """Return the collectives of a program: the operation's name and the shape of each result."""
    found = []
    pattern = (
        r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\("
    )
    for results, name in re.findall(pattern, text):
        for dims in re.findall(r"\w+\[([\d,]*)\]", results):
            found.append((name, tuple(int(n) for n in dims.split(",") if n)))
    return found


def numbers(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", STUDENTS)
def test_data_parallel_sums_gradients_statistics_and_metrics_and_nothing_else(name):
    program, state = compiled(STUDENTS[name](), sharding.make_mesh())
    traffic = sent(program.as_text())
    assert {operation for operation, _ in traffic} == {"all-reduce"}
    assert not any(shape[:1] == (BATCH,) for _, shape in traffic)
    # BatchNorm: means and mean squares forward, what flows back to the squares; to the means flows
    # what the gradient of the bias is made of, which is counted with the parameters.
    statistics = numbers(state.model_state) * 3 // 2
    expected = numbers(state.params) + statistics + NUM_METRICS
    assert sum(math.prod(shape) for _, shape in traffic) == expected


def test_a_split_teacher_is_gathered_and_its_batch_is_not():
    axes = {"fsdp": ("data", "fsdp")}
    program, state = compiled(STUDENTS["mlp"](), sharding.make_mesh(), teacher_axes=axes)
    traffic = sent(program.as_text())
    gathered = sorted(shape for name, shape in traffic if name == "all-gather")
    assert gathered == [(64, CLASSES), (192, 64)]
    reduced = sum(math.prod(shape) for name, shape in traffic if name == "all-reduce")
    assert reduced == numbers(state.params) + NUM_METRICS


@pytest.mark.parametrize("sizes", [(1, 8, 1), (4, 2, 1)], ids=["1x8x1", "4x2x1"])
def test_split_parameters_are_gathered_twice_and_activations_never(sizes):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    student = models.mlp(CLASSES, widths=(32, 48))
    program, state = compiled(student, mesh)
    gathered = [shape for name, shape in sent(program.as_text()) if name == "all-gather"]
    # The gradient for the images is not needed, and so the first kernel not again.
    assert gathered.count((192, 32)) == 1
    assert gathered.count((32, 48)) == gathered.count((48, CLASSES)) == 2
    teacher = {(192, 64), (64, CLASSES)}
    assert set(gathered) <= teacher | {x.shape for x in jax.tree.leaves(state.params)}


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=["8x1x1", "2x2x2"])
def test_donated_buffers_are_reused(sizes):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    program, state = compiled(STUDENTS["mlp"](), mesh)
    header = program.as_text().split("\n", 1)[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)
    arrays = jax.tree.leaves(state)
    assert {int(output) for output, _ in aliases} == set(range(len(arrays)))
    assert all(output == argument for output, argument in aliases)
    held = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * 4
        for x in arrays
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    key = 2 * 4
    assert program.memory_analysis().alias_size_in_bytes == held + key
