"""The compiled step: one trace, exact accumulation, untouched teachers, any mesh."""

import functools
import traceback
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from jax import export

from kdjax import sharding, step, teachers, terms
from kdjax.losses import angle_relation_loss, cross_entropy, kd_loss, similarity_preserving_loss
from kdjax.objective import combine


def start(model, objective, optimizer, batch, teacher):
    outputs = teacher.apply(teacher.variables, batch)
    return step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)


def test_step_is_the_gradient_of_kd_loss():
    model, batch = toys.linear_model(), toys.batch_of(8)
    teacher, optimizer = toys.teacher_for(batch), toys.SGD
    state = start(model, toys.kd_objective(), optimizer, batch, teacher)
    outputs = teacher.apply(teacher.variables, batch)

    def loss(params):
        logits = model.apply(params, {}, batch["image"], train=True)[0].logits
        return kd_loss(logits, outputs.logits, batch["label"], temperature=3.0).mean()

    before = jax.tree.map(np.asarray, state.params["student"])
    value, grads = jax.jit(jax.value_and_grad(loss))(before)
    train_step = step.make_train_step(model, toys.kd_objective(), optimizer)
    state, metrics = train_step(state, batch, outputs)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, grads)
    for got, want in zip(
        jax.tree.leaves(state.params["student"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    total, count = metrics["loss"]
    np.testing.assert_allclose(total / count, value, rtol=1e-5)
    assert int(state.step) == 1
    assert {"loss/soft", "loss/hard", "accuracy", "agreement", "teacher/accuracy"} < set(metrics)


def test_one_trace_and_donated_state():
    batch = toys.batch_of(8)
    teacher, optimizer = toys.teacher_for(batch), optax.adam(1e-2)
    model, traces = toys.linear_model(), []

    def counted(params, state, inputs, *, train, key=None):
        traces.append(train)
        return model.apply(params, state, inputs, train=train, key=key)

    student = model._replace(apply=counted)
    objective = toys.kd_objective()
    state = start(student, objective, optimizer, batch, teacher)
    run = step.with_teacher(step.make_train_step(student, objective, optimizer), teacher)
    traces.clear()
    for seed in range(4):
        previous = state
        state, _ = run(state, toys.batch_of(8, seed))
    assert traces == [True]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(previous.params))


def test_teacher_variables_travel_as_arguments_and_never_change():
    batch = toys.batch_of(8)
    model = toys.norm_model()
    variables = model.init(jax.random.key(3), batch["image"])
    before = jax.tree.map(np.asarray, variables)
    teacher = teachers.frozen(model, variables)
    student, optimizer = toys.linear_model(), toys.SGD
    state = start(student, toys.kd_objective(), optimizer, batch, teacher)
    run = step.with_teacher(step.make_train_step(student, toys.kd_objective(), optimizer), teacher)
    for _ in range(3):
        state, _ = run(state, batch)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, variables))
    text = run.func.lower(state, batch, **run.keywords).as_text()
    kernel = np.asarray(jax.tree.leaves(variables.params)[-1])
    assert 'dense<"0x' not in text, kernel.shape


def test_stored_logits_train_like_the_frozen_teacher():
    batch = toys.batch_of(8)
    frozen = toys.teacher_for(batch)
    logits = frozen.apply(frozen.variables, batch).logits
    results = []
    for teacher, fed in [
        (frozen, batch),
        (teachers.stored(), {**batch, "teacher_logits": np.asarray(logits)}),
    ]:
        model, optimizer = toys.linear_model(), optax.adam(1e-2)
        state = start(model, toys.kd_objective(), optimizer, fed, teacher)
        run = step.with_teacher(
            step.make_train_step(model, toys.kd_objective(), optimizer), teacher
        )
        for _ in range(3):
            state, _ = run(state, fed)
        results.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


@functools.cache
def hinting():
    return combine(
        {"kd": terms.kd(), "hint": terms.hint("hidden", "hidden")}, {"kd": 1.0, "hint": 0.5}
    )


@pytest.mark.parametrize(("num_micro_batches", "padded"), [(2, True), (4, False)])
def test_micro_batches_give_the_full_gradient(num_micro_batches, padded):
    model, batch = toys.linear_model(), toys.batch_of(8)
    if padded:
        batch["mask"] = np.array([1, 1, 0, 1, 0, 1, 0, 0], bool)
    teacher, optimizer = toys.teacher_for(batch), toys.sgd(1.0)
    outputs = teacher.apply(teacher.variables, batch)
    objective = hinting()
    results = []
    for parts in (1, num_micro_batches):
        state = start(model, objective, optimizer, batch, teacher)
        run = step.make_train_step(model, objective, optimizer, num_micro_batches=parts)
        results.append(run(state, batch, outputs))
    (full, full_metrics), (parts, parts_metrics) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        (full.params, full_metrics),
        (parts.params, parts_metrics),
    )


def test_micro_batches_warn_of_batch_norm():
    batch, optimizer, objective = toys.batch_of(8), toys.SGD, toys.kd_objective()
    model, teacher = toys.norm_model(), toys.teacher_for(batch)
    state = start(model, objective, optimizer, batch, teacher)
    run = step.make_train_step(model, objective, optimizer, num_micro_batches=2)
    with pytest.warns(UserWarning, match="BatchNorm"):
        run(state, batch, teacher.apply(teacher.variables, batch))


def test_micro_batches_are_refused_where_terms_couple_the_batch():
    batch, optimizer, model = toys.batch_of(8), toys.SGD, toys.linear_model()
    teacher = toys.teacher_for(batch)
    objective = combine(
        {
            "hard": terms.cross_entropy(),
            "alike": terms.of(similarity_preserving_loss, student="hidden", teacher="hidden"),
            "angles": terms.of(angle_relation_loss, student="hidden", teacher="hidden"),
        },
        {"hard": 1.0, "alike": 1.0, "angles": 1.0},
    )
    outputs = teacher.apply(teacher.variables, batch)
    state = start(model, objective, optimizer, batch, teacher)
    run = step.make_train_step(model, objective, optimizer, num_micro_batches=2)
    with pytest.raises(ValueError, match="train_step: the terms alike, angles relate"):
        run(state, batch, outputs)
    step.make_train_step(model, objective, optimizer)(state, batch, outputs)


def test_micro_batches_that_do_not_divide_raise():
    batch, optimizer, model = toys.batch_of(6), toys.SGD, toys.linear_model()
    teacher = toys.teacher_for(batch)
    state = start(model, toys.kd_objective(), optimizer, batch, teacher)
    run = step.make_train_step(model, toys.kd_objective(), optimizer, num_micro_batches=4)
    with pytest.raises(ValueError, match="batch of 6 does not divide into 4"):
        run(state, batch, teacher.apply(teacher.variables, batch))
    with pytest.raises(ValueError, match="num_micro_batches must be positive, got 0"):
        step.make_train_step(model, toys.kd_objective(), optimizer, num_micro_batches=0)


def train_on(mesh, num_steps=4, traces=None):
    batch = toys.batch_of(16)
    model, optimizer = toys.norm_model(), optax.sgd(0.1, momentum=0.9)
    network = model

    def counted(params, state, inputs, *, train, key=None):
        if traces is not None and train:
            traces.append(1)
        return network.apply(params, state, inputs, train=train, key=key)

    model = network._replace(apply=counted)
    teacher = toys.teacher_for(batch)
    state = start(model, toys.kd_objective(), optimizer, batch, teacher)
    state = sharding.replicate(state, mesh)
    placed = teacher._replace(variables=sharding.replicate(teacher.variables, mesh))
    run = step.with_teacher(step.make_train_step(model, toys.kd_objective(), optimizer), placed)
    for seed in range(num_steps):
        state, metrics = run(state, sharding.shard_batch(toys.batch_of(16, seed), mesh))
    return state, metrics


def test_eight_devices_train_like_one():
    traces = []
    alone = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    state, metrics = train_on(sharding.make_mesh(), traces=traces)
    expected, expected_metrics = train_on(alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get((state.params, state.model_state, metrics)),
        jax.device_get((expected.params, expected.model_state, expected_metrics)),
    )
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    assert len(traces) == 1


def test_lowers_sharded_and_donated_for_tpu_and_cuda():
    mesh, batch = sharding.make_mesh(), toys.batch_of(16)
    model, optimizer = toys.norm_model(), optax.adam(1e-3)
    teacher = toys.teacher_for(batch)
    state = start(model, toys.kd_objective(), optimizer, batch, teacher)
    run = step.make_train_step(model, toys.kd_objective(), optimizer)

    def shapes(tree, layout):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)

    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    outputs = jax.eval_shape(teacher.apply, teacher.variables, batch)
    args = shapes(state, everywhere), shapes(batch, split), shapes(outputs, split)
    exported = export.export(run, platforms=["tpu", "cuda"])(*args)
    assert exported.platforms == ("tpu", "cuda")
    assert exported.nr_devices == 8
    text = exported.mlir_module()
    assert "tf.aliasing_output" in text or "jax.buffer_donor" in text


def test_views_are_shared_by_teacher_and_student_and_change_with_the_step():
    batch = toys.batch_of(8)
    seen = []

    def view_fn(key, view):
        return {**view, "image": jax.random.normal(key, view["image"].shape)}

    def spy(params, state, inputs, *, train, key=None):
        jax.debug.callback(lambda x: seen.append((train, np.asarray(x))), inputs)
        return toys.linear_model().apply(params, state, inputs, train=train, key=key)

    model, optimizer = toys.linear_model()._replace(apply=spy), toys.SGD
    teacher = teachers.frozen(model, model.init(jax.random.key(1), batch["image"]))
    state = start(model, toys.kd_objective(), optimizer, batch, teacher)
    jax.effects_barrier()
    seen.clear()
    run = step.with_teacher(
        step.make_train_step(model, toys.kd_objective(), optimizer), teacher, view_fn=view_fn
    )
    for _ in range(2):
        state, _ = run(state, batch)
    jax.effects_barrier()
    by_student = [x for train, x in seen if train]
    by_teacher = [x for train, x in seen if not train]
    assert len(by_student) == len(by_teacher) == 2
    assert {x.tobytes() for x in by_student} == {x.tobytes() for x in by_teacher}
    assert by_student[0].tobytes() != by_student[1].tobytes()


def test_bfloat16_logits_leave_parameters_and_loss_in_float32():
    batch, optimizer = toys.batch_of(8), toys.SGD
    model = toys.linear_model()

    def halved(params, state, inputs, *, train, key=None):
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        outputs, _ = model.apply(low, state, inputs.astype(jnp.bfloat16), train=train)
        return outputs, state

    student, teacher = model._replace(apply=halved), toys.teacher_for(batch)
    state = start(student, toys.kd_objective(), optimizer, batch, teacher)
    run = step.with_teacher(step.make_train_step(student, toys.kd_objective(), optimizer), teacher)
    state, metrics = run(state, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert metrics["loss"][0].dtype == jnp.float32


def test_eval_step_leaves_out_what_the_mask_leaves_out():
    model, batch = toys.linear_model(), toys.batch_of(8)
    variables = model.init(jax.random.key(0), batch["image"])
    logits = model.apply(variables.params, {}, batch["image"], train=False)[0].logits
    eval_step = step.make_eval_step(model)
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    subset = {name: x[mask] for name, x in batch.items()}
    whole = eval_step(variables, {**batch, "mask": mask, "teacher_logits": logits})
    part = eval_step(variables, {**subset, "teacher_logits": logits[mask]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, part)
    assert whole["agreement"][0] == whole["agreement"][1] == 6


def test_weights_may_be_schedules_of_the_step():
    batch, model, optimizer = toys.batch_of(8), toys.linear_model(), optax.sgd(0.0)
    objective = combine({"hard": terms.cross_entropy()}, {"hard": lambda at: 1.0 + at})
    teacher = teachers.absent()
    state = start(model, objective, optimizer, batch, teacher)
    run = step.with_teacher(step.make_train_step(model, objective, optimizer), teacher)
    values = []
    for _ in range(3):
        state, metrics = run(state, batch)
        values.append(float(metrics["loss"][0] / metrics["loss/hard"][0]))
    np.testing.assert_allclose(values, [1, 2, 3], rtol=1e-6)


def test_a_teacher_of_numpy_arrays_travels_to_the_device_once():
    model, optimizer, batch = toys.linear_model(), toys.SGD, toys.batch_of(8)
    variables = jax.device_get(model.init(jax.random.key(1), batch["image"]))
    teacher = teachers.frozen(model, variables)
    outputs, batch = teacher.apply(variables, batch), jax.device_put(batch)
    objective = toys.kd_objective()
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    run = step.with_teacher(step.make_train_step(model, objective, optimizer), teacher)
    state, _ = run(state, batch)
    with jax.transfer_guard_host_to_device("disallow"):
        run(state, batch)


@pytest.mark.parametrize("split", [False, True])
def test_between_the_step_and_its_objective_there_is_only_this_module(split):
    """A reader of a traceback in a loss finds three functions of `kdjax.step`, and no wrapper."""
    stacks = []

    def value(inputs):
        stacks.append(traceback.extract_stack()[:-1])
        return jnp.sum(inputs.student.logits**2, axis=-1)

    objective = combine({"seen": terms.stateless(value)}, {"seen": 1.0})
    mesh = sharding.make_mesh(fsdp=2)
    layout = functools.partial(sharding.shardings, mesh=mesh, min_size=1) if split else None
    batch, model, optimizer = toys.batch_of(8), toys.linear_model(), toys.SGD
    teacher = teachers.absent()
    state = start(model, objective, optimizer, batch, teacher)
    run = step.make_train_step(model, objective, optimizer, layout_fn=layout)
    stacks.clear()
    step.with_teacher(run, teacher)(state, sharding.shard_batch(batch, mesh))
    root = Path(step.__file__).parent
    ours = [
        (Path(frame.filename).relative_to(root).parts[0], frame.name)
        for frame in stacks[0]
        if Path(frame.filename).is_relative_to(root)
    ]
    names = [name for name, _ in ours]
    before = names[: names.index("objective.py")]
    assert before == ["step.py"] * 3, ours
    assert [name for _, name in ours[:3]] == ["step", "train_step", "loss_fn"]


def test_parts_of_a_batch_have_the_mean_over_what_no_term_ignores():
    batch, model = toys.batch_of(8), toys.linear_model()
    batch["label"][[0, 1, 5]] = 255
    hard = terms.of(cross_entropy, ignore_label=255)
    objective = combine({"hard": hard, "soft": terms.soft_targets()}, {"hard": 1.0, "soft": 1.0})
    teacher = toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    made = jax.random.key(0), model, objective, toys.SGD, batch, outputs
    found = []
    for parts in (1, 2):
        run = step.make_train_step(model, objective, toys.SGD, num_micro_batches=parts)
        state, metrics = run(step.init_train_state(*made), batch, outputs)
        found.append((state.params, metrics))
    chex.assert_trees_all_close(*found, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_keeps_to_strict_promotion_whatever_its_optimizer_does(parts):
    batch, model, optimizer = toys.batch_of(8), toys.linear_model(), optax.adamw(1e-3)
    batch["label"] = batch["label"].astype(np.uint8)
    weights = {"soft": optax.linear_schedule(0.0, 1.0, 5), "hard": 1.0}
    objective = combine({"soft": terms.soft_targets(), "hard": terms.cross_entropy()}, weights)
    teacher = toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    found = []
    for promotion in ("standard", "strict"):
        with jax.numpy_dtype_promotion(promotion):
            key = jax.random.key(0)
            state = step.init_train_state(key, model, objective, optimizer, batch, outputs)
            made = step.make_train_step(model, objective, optimizer, num_micro_batches=parts)
            found.append(step.with_teacher(made, teacher)(state, batch)[0])
    jax.tree.map(np.testing.assert_array_equal, found[0].params, found[1].params)
