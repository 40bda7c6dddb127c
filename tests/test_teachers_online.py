"""Teachers that learn meanwhile: the moving average of the student, and peers."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import checkpoint, online, sharding, step, teachers, terms
from kdjax.losses import kd_loss, soft_target_loss
from kdjax.objective import combine
from kdjax.types import Outputs, Variables

SGD = toys.SGD


def start(model, teacher, batch, objective=None):
    objective = objective or toys.kd_objective()
    return online.init_online_state(jax.random.key(0), model, objective, SGD, batch, teacher)


def averaging(model, teacher, **options):
    train_step = step.make_train_step(model, toys.kd_objective(), SGD)
    return online.with_online_teacher(train_step, teacher, **options)


def copied(tree):
    return jax.tree.map(np.asarray, tree)


def assert_close(got, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, expected)


def test_ema_is_the_recursion_and_answers_from_before_the_step():
    model, batch = toys.norm_model(), toys.batch_of(8)
    teacher = teachers.ema(model, decay=0.75)
    state = start(model, teacher, batch)
    assert_close(state.teacher_state, Variables(state.params["student"], state.model_state), 0)
    run = averaging(model, teacher)
    averages = copied(state.teacher_state)
    answers = jax.jit(teacher.apply)
    for seed in range(3):
        batch = toys.batch_of(8, seed)
        said = np.asarray(answers(state.teacher_state, batch).logits)
        state, metrics = run(state, batch)
        hits = np.sum(np.argmax(said, axis=-1) == batch["label"])
        assert metrics["teacher/accuracy"][0] == hits
        student = Variables(state.params["student"], state.model_state)
        averages = jax.tree.map(lambda a, s: 0.75 * a + 0.25 * np.asarray(s), averages, student)
        assert_close(state.teacher_state, averages)
    apart = jax.tree.map(lambda a, s: not np.allclose(a, s), averages, student)
    assert all(jax.tree.leaves(apart.state))
    assert any(jax.tree.leaves(apart.params))


def test_the_student_is_trained_by_its_average():
    """Equal to a step that is given the average's outputs."""
    model, batch = toys.linear_model(), toys.batch_of(8)
    teacher = teachers.ema(model, decay=0.5)
    run, plain = averaging(model, teacher), step.make_train_step(model, toys.kd_objective(), SGD)
    state, other = start(model, teacher, batch), start(model, teacher, batch)
    for seed in range(3):
        fed = toys.batch_of(8, seed)
        said = teacher.apply(copied(state.teacher_state), fed)
        state, _ = run(state, fed)
        other, _ = plain(other, fed, said)
    assert_close(state.params, other.params)


def test_decay_may_be_a_function_of_the_steps_taken():
    """1 - 1 / (n + 1) keeps the plain mean of the initial and all later students."""
    model, batch = toys.linear_model(), toys.batch_of(8)
    teacher = teachers.ema(model, decay=lambda n: 1 - 1 / (n + 1))
    state, run = start(model, teacher, batch), averaging(model, teacher)
    students = [copied(state.params["student"])]
    for _ in range(4):
        state, _ = run(state, batch)
        students.append(copied(state.params["student"]))
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *students)
    assert_close(state.teacher_state.params, mean)


@pytest.mark.parametrize("skip", [False, True])
def test_any_step_may_keep_an_average_of_the_student_that_teaches_nobody(skip):
    model, batch = toys.norm_model(), toys.batch_of(8)
    average, teacher = teachers.ema(model, decay=0.75), toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    parts = model, toys.kd_objective(), SGD
    state = step.init_train_state(jax.random.key(0), *parts, batch, outputs, average=average)
    plain = step.init_train_state(jax.random.key(0), *parts, batch, outputs)
    run = step.make_train_step(*parts, average=average, skip_nonfinite=skip)
    alone = step.make_train_step(*parts)
    averages = copied(Variables(state.params["student"], state.model_state))
    assert_close(state.teacher_state, averages, 0)
    for _ in range(2):
        state, _ = run(state, batch, outputs)
        plain, _ = alone(plain, batch, outputs)
        student = Variables(state.params["student"], state.model_state)
        averages = jax.tree.map(lambda a, s: 0.75 * a + 0.25 * np.asarray(s), averages, student)
        assert_close(state.teacher_state, averages)
    assert_close(state.params, plain.params)
    if skip:
        broken = {**batch, "image": batch["image"] * np.nan}
        state, _ = run(state, broken, outputs)
        assert_close(state.teacher_state, averages)


def test_first_batches_are_looked_at():
    model, batch = toys.linear_model(), toys.batch_of(8)
    wrong = {**batch, "mask": np.full(8, -1.0, np.float32)}
    with pytest.raises(ValueError, match="mask"):
        start(model, teachers.ema(model), wrong)
    parts = (model, model), (toys.kd_objective(),) * 2, (SGD, SGD)
    with pytest.raises(ValueError, match="mask"):
        online.init_mutual_states(jax.random.key(0), *parts, wrong)


def test_what_is_no_floating_point_array_is_the_students():
    teacher = teachers.ema(toys.linear_model(), decay=0.5)
    old = Variables({"w": jnp.ones(2)}, {"count": jnp.int32(3), "key": jax.random.key(0)})
    new = Variables({"w": jnp.zeros(2)}, {"count": jnp.int32(4), "key": jax.random.key(1)})
    got = teacher.update(old, new, jnp.int32(1))
    np.testing.assert_array_equal(got.params["w"], 0.5)
    assert got.state["count"] == 4
    assert got.state["key"] == jax.random.key(1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_average_of_half_precision_moves(dtype):
    """In bfloat16 a thousandth of the way from 1 to 2 is no way at all."""
    teacher = teachers.ema(toys.linear_model(), decay=0.999)
    student = Variables({"w": jnp.full(2, 2, dtype)}, {})
    kept = teacher.init(student._replace(params={"w": jnp.ones(2, dtype)}))
    moved = jax.lax.fori_loop(0, 2000, lambda n, old: teacher.update(old, student, n), kept)
    np.testing.assert_allclose(moved.params["w"], 2 - 0.999**2000, rtol=1e-4)


def test_ema_is_traced_once_and_its_state_is_donated_saved_and_restored(tmp_path):
    model, batch, traces = toys.linear_model(), toys.batch_of(8), []

    def counted(params, state, inputs, *, train, key=None):
        traces.append(train)
        return model.apply(params, state, inputs, train=train, key=key)

    student = model._replace(apply=counted)
    teacher = teachers.ema(student, decay=0.9)
    state, run = start(student, teacher, batch), averaging(student, teacher)
    traces.clear()
    for seed in range(3):
        previous = state
        state, _ = run(state, toys.batch_of(8, seed))
    assert sorted(traces) == [False, True]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(previous.teacher_state))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))

    checkpoint.save(tmp_path, 3, state)
    _, restored = checkpoint.restore(tmp_path, state)
    (ahead, _), (again, _) = run(state, batch), run(restored, batch)
    for one, other in zip(
        jax.tree.leaves(ahead.teacher_state), jax.tree.leaves(again.teacher_state), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_ema_teacher_sees_the_students_view():
    model, batch = toys.linear_model(), toys.batch_of(8)
    teacher = teachers.ema(model)
    flipped = averaging(
        model, teacher, view_fn=lambda key, b: {**b, "image": -jnp.asarray(b["image"])}
    )
    fed = {**batch, "image": -batch["image"]}
    viewed, _ = flipped(start(model, teacher, batch), batch)
    direct, _ = averaging(model, teacher)(start(model, teacher, batch), fed)
    assert_close(viewed.params, direct.params, 0)


@pytest.mark.parametrize("decay", [1, -0.1, 1.5, float("nan")])
def test_ema_refuses_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=f"ema: decay is {decay}"):
        teachers.ema(toys.linear_model(), decay=decay)


@functools.cache
def mutual_objective():
    return combine(
        {"soft": terms.soft_targets(temperature=2.0), "hard": terms.cross_entropy()},
        {"soft": 0.5, "hard": 0.5},
    )


def cohort(count):
    students = tuple(toys.linear_model(features=5 + i) for i in range(count))
    objectives, optimizers = (mutual_objective(),) * count, (SGD,) * count
    return students, objectives, optimizers


def start_cohort(parts, batch, temperature=2.0):
    key = jax.random.key(0)
    return online.init_mutual_states(key, *parts, batch, temperature=temperature)


def test_two_students_are_two_updates_from_what_both_said_before():
    parts, batch = cohort(2), toys.batch_of(8)
    states = start_cohort(parts, batch)
    before = [copied(s.params["student"]) for s in states]

    def logits(i, params):
        return parts[0][i].apply(params, {}, batch["image"], train=True)[0].logits

    said = [logits(i, before[i]) for i in range(2)]
    expected, values = [], []
    for i in range(2):

        def loss(params, i=i):
            return kd_loss(
                logits(i, params), said[1 - i], batch["label"], temperature=2.0, soft_weight=0.5
            ).mean()

        value, grads = jax.jit(jax.value_and_grad(loss))(before[i])
        values.append(value)
        expected.append(jax.tree.map(lambda p, g: p - 0.1 * g, before[i], grads))

    states, metrics = online.make_mutual_step(*parts, temperature=2.0)(states, batch)
    assert_close([s.params["student"] for s in states], expected)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], sum(values), rtol=1e-5)
    agree = [metrics[f"peer_{i}/agreement"][0] for i in range(2)]
    assert agree[0] == agree[1] == np.sum(np.argmax(said[0], -1) == np.argmax(said[1], -1))
    assert [int(s.step) for s in states] == [1, 1]


def test_no_gradient_flows_into_peers():
    """A student whose own objective has weight zero does not move, whatever its peer learns."""
    students, _, optimizers = cohort(2)
    silent = combine({"hard": terms.cross_entropy()}, {"hard": 0.0})
    parts, batch = (students, (silent, mutual_objective()), optimizers), toys.batch_of(8)
    states = start_cohort(parts, batch)
    before = copied([s.params for s in states])
    states, _ = online.make_mutual_step(*parts, temperature=2.0)(states, batch)
    after = copied([s.params for s in states])
    jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
    assert not any(
        np.allclose(a, b)
        for a, b in zip(jax.tree.leaves(before[1]), jax.tree.leaves(after[1]), strict=True)
    )


def test_three_peers_have_the_gradient_of_the_mean_of_their_losses():
    rng = np.random.default_rng(0)
    logits = [jnp.asarray(3 * rng.normal(size=(4, 6)), jnp.float32) for _ in range(3)]
    taught = teachers.peers([Outputs(x) for x in logits], temperature=2.0)

    @jax.jit
    @jax.grad
    def against(z, teacher):
        return soft_target_loss(z, teacher, temperature=2.0).sum()

    by_mean = against(logits[0], taught[0].logits)
    by_each = [against(logits[0], other) for other in logits[1:]]
    np.testing.assert_allclose(by_mean, sum(by_each) / 2, rtol=1e-4, atol=1e-6)
    assert taught[0].features == {}


def test_two_peers_see_each_others_features():
    one, two = Outputs(jnp.zeros(3), {"a": jnp.ones(2)}), Outputs(jnp.ones(3), {"b": jnp.ones(2)})
    for_one, for_two = teachers.peers([one, two])
    assert (set(for_one.features), set(for_two.features)) == ({"b"}, {"a"})


def test_mutual_step_is_traced_once_over_three_students_with_state():
    batch, traces, model = toys.batch_of(8), [], toys.norm_model()

    def counted(params, state, inputs, *, train, key=None):
        traces.append(train)
        return model.apply(params, state, inputs, train=train, key=key)

    students = (model._replace(apply=counted), model, toys.linear_model())
    parts = (students, *cohort(3)[1:])
    states = start_cohort(parts, batch)
    run = online.make_mutual_step(*parts, temperature=2.0)
    traces.clear()
    statistics = copied(states[0].model_state)
    for seed in range(3):
        previous = states
        states, metrics = run(states, toys.batch_of(8, seed))
    assert traces == [True]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves([s.params for s in previous]))
    assert {"loss", "peer_0/loss/soft", "peer_2/accuracy"} < set(metrics)
    assert not np.allclose(*(jax.tree.leaves(s)[0] for s in (statistics, states[0].model_state)))


@pytest.mark.slow
def test_eight_devices_train_like_one():
    batch = toys.batch_of(16)
    model, parts = toys.linear_model(), cohort(3)
    teacher = teachers.ema(model, decay=0.5)
    averaged, mutual = averaging(model, teacher), online.make_mutual_step(*parts, temperature=2.0)
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(data=devices)
        fed = sharding.shard_batch(batch, mesh)
        state = sharding.replicate(start(model, teacher, batch), mesh)
        states = sharding.replicate(start_cohort(parts, batch), mesh)
        for _ in range(2):
            state, _ = averaged(state, fed)
            states, metrics = mutual(states, fed)
        trained = [s.params for s in states]
        results.append((state.params, state.teacher_state, trained, metrics["loss"]))
        assert len(jax.tree.leaves(state.teacher_state)[0].sharding.device_set) == devices
    assert_close(*results)


@pytest.mark.slow
def test_peers_that_are_split_over_devices_train_like_whole_ones():
    students, objectives, _ = cohort(2)
    parts, batch = (students, objectives, (optax.sgd(0.1, momentum=0.9),) * 2), toys.batch_of(16)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    fed = sharding.shard_batch(batch, mesh)
    results = []
    for rules in ([], [("student/a$", ("fsdp", None))]):
        layout = functools.partial(sharding.shardings, mesh=mesh, rules=rules)
        states = jax.device_put(start_cohort(parts, batch), layout(start_cohort(parts, batch)))
        run = online.make_mutual_step(*parts, temperature=2.0, layout_fn=layout)
        for _ in range(2):
            states, metrics = run(states, fed)
        results.append(([s.params for s in states], metrics["loss"]))
        split = [x for x in jax.tree.leaves(states) if not x.sharding.is_fully_replicated]
        # Of both peers, a matrix and its momentum.
        assert len(split) == 4 * len(rules)
        assert all(x.addressable_shards[0].data.shape[0] == 2 for x in split)
    assert_close(*results)


MISUSE = [
    ("peers: outputs are of 1 students", lambda: teachers.peers([Outputs(jnp.zeros(3))])),
    (
        "peers: temperature must be positive and finite, got 0",
        lambda: teachers.peers([Outputs(jnp.zeros(3))] * 2, temperature=0),
    ),
    (
        "make_mutual_step: there are 1 students",
        lambda: online.make_mutual_step(*cohort(1)),
    ),
    (
        "make_mutual_step: there are 2 students, 2 objectives and 3 optimizers",
        lambda: online.make_mutual_step(*cohort(2)[:2], (SGD,) * 3),
    ),
]


@pytest.mark.parametrize(("words", "call"), MISUSE, ids=[m[0][:30] for m in MISUSE])
def test_misuse_is_explained(words, call):
    with pytest.raises(ValueError) as raised:
        call()
    assert words in str(raised.value)


TEXT = (Path(__file__).parents[1] / "docs" / "online.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.M))
def test_the_code_of_the_guide_runs(block):
    namespace = {"__name__": "guide"}
    exec(compile(block, "online.md", "exec"), namespace)
    assert np.isfinite(namespace["metrics"]["loss"][0])
    states = namespace.get("states") or [namespace["state"]]
    assert [int(state.step) for state in states] == [10] * len(states)
