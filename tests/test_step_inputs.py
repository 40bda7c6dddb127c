"""What a step is given means what it is taken for, or one line says what does not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from optax import contrib

from kdjax import _steps, loop, many, metrics, sharding, step, teachers, terms
from kdjax.losses import cross_entropy, distance_relation_loss
from kdjax.objective import combine
from kdjax.testing import audit
from kdjax.types import Outputs, TermInputs, Variables

WEIGHTS = np.array([0.1, 0, 0.25, 0.3, 0.05, 0.1, 0, 0.02], np.float32)


def started(batch, *, objective=None, optimizer=None, **options):
    """Return a student, its objective and optimizer, its teacher and its state."""
    model, teacher = toys.linear_model(), toys.teacher_for(batch)
    objective, optimizer = objective or toys.kd_objective(), optimizer or toys.SGD
    outputs = teacher.apply(teacher.variables, batch)
    key = jax.random.key(0)
    state = step.init_train_state(key, model, objective, optimizer, batch, outputs, **options)
    return (model, objective, optimizer), teacher, state


def trained(batch, *, num_steps=1, options=None, **start):
    parts, _, state = started(batch, **start)
    run = toys.taught(*parts, **options or {})
    for _ in range(num_steps):
        state, measured = run(state, batch)
    return state, {name: metrics.value(metric) for name, metric in measured.items()}


def assert_same(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


def test_weights_are_the_weighted_mean_in_loss_gradient_and_metrics():
    batch = {**toys.batch_of(8), "mask": WEIGHTS}
    (model, *_), _, state = started(batch)
    params, share = state.params["student"], WEIGHTS.astype(np.float64) / WEIGHTS.sum()

    def hard(params):
        logits = model.apply(params, {}, batch["image"], train=True)[0].logits
        return cross_entropy(logits, batch["label"])

    values = jax.jit(hard)(params)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(share.astype(np.float32) * hard(p))))(params)
    before = jax.tree.map(np.asarray, params)
    objective = combine({"hard": terms.cross_entropy()}, {"hard": 1.0})
    after, found = trained(batch, objective=objective)
    np.testing.assert_allclose(found["loss/hard"], np.sum(share * values), rtol=1e-6)
    assert_same(after.params["student"], jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient))
    logits = model.apply(before, {}, batch["image"], train=False)[0].logits
    right = np.argmax(logits, -1) == batch["label"]
    np.testing.assert_allclose(found["accuracy"], np.sum(share * right), rtol=1e-6)
    seen = loop.evaluate(step.make_eval_step(model), Variables(before, {}), [batch])
    np.testing.assert_allclose(metrics.value(seen["accuracy"]), np.sum(share * right), rtol=1e-6)
    np.testing.assert_allclose(metrics.value(seen["nll"]), np.sum(share * values), rtol=1e-6)
    confidence = np.max(jax.nn.softmax(logits), -1)
    bins = np.ceil(confidence * 15)
    gaps = [np.sum((share * (confidence - right))[bins == b]) for b in np.unique(bins)]
    np.testing.assert_allclose(metrics.value(seen["ece"]), np.sum(np.abs(gaps)), rtol=1e-5)


def test_weights_mean_the_same_in_micro_batches_on_devices_and_in_calls_of_several_steps():
    batch = {**toys.batch_of(8), "mask": WEIGHTS}
    whole, found = trained(batch)
    parts, measured = trained(batch, options={"num_micro_batches": 2})
    assert_same((whole.params, found), (parts.params, measured))
    split = sharding.shard_batch(batch, sharding.make_mesh(data=4, fsdp=2))
    assert_same((whole.params, found), (trained(split)[0].params, trained(split)[1]))
    recipe, _, state = started(batch)
    several = many.several(toys.taught(*recipe))
    state, _ = several(state, {name: x[None] for name, x in batch.items()}, np.int32(1))
    assert_same(whole.params, state.params)


def test_equal_weights_are_no_weights_and_integers_are_weights():
    batch = toys.batch_of(8)
    plain = trained(batch)
    assert_same(
        (plain[0].params, plain[1]["loss"]),
        (trained({**batch, "mask": np.full(8, 0.3, np.float32)})[0].params, plain[1]["loss"]),
    )
    twice = {name: np.concatenate([x, x[:2]]) for name, x in batch.items()}
    doubled = {**batch, "mask": np.array([2, 2, 1, 1, 1, 1, 1, 1])}
    assert_same(trained(twice)[0].params, trained(doubled)[0].params)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS > 0], ids=["weights", "booleans"])
def test_what_weighs_nothing_may_hold_anything(weights, micro):
    batch = {**toys.batch_of(8), "mask": weights}
    spoiled = {**batch, "label": np.where(weights > 0, batch["label"], 255)}
    (model, objective, optimizer), teacher, _ = started(batch)
    answers = teacher.apply(teacher.variables, batch)
    hole = np.asarray(weights > 0)[:, None]
    nan = Outputs(jnp.where(hole, answers.logits, jnp.nan), answers.features)
    run = step.make_train_step(model, objective, optimizer, num_micro_batches=micro)
    results = [
        run(started(batch)[2], fed, outputs)[0].params
        for fed, outputs in ((batch, answers), (spoiled, nan))
    ]
    assert_same(*results)


def test_terms_that_relate_examples_are_told_who_counts_and_their_values_are_weighed():
    seen = []

    def value(x):
        seen.append(x.mask.dtype)
        return distance_relation_loss(
            x.student.features["hidden"], x.teacher.features["hidden"], mask=x.mask
        )

    objective = combine({"far": terms.stateless(value, couples_batch=True)}, {"far": 1.0})
    batch = {**toys.batch_of(8), "mask": WEIGHTS}
    (model, *_), teacher, state = started(batch, objective=objective)
    student = model.apply(state.params["student"], {}, batch["image"], train=True)[0]
    pair = student.features["hidden"], teacher.apply(teacher.variables, batch).features["hidden"]
    values = jax.jit(distance_relation_loss)(*pair, mask=jnp.asarray(WEIGHTS > 0))
    expected = np.sum(WEIGHTS * values) / np.sum(WEIGHTS)
    np.testing.assert_allclose(trained(batch, objective=objective)[1]["loss"], expected, rtol=1e-5)
    assert {*seen} == {jnp.bool_.dtype}


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
def test_weights_that_are_none_are_refused_where_they_are_known_and_nan_where_not(wrong):
    batch = toys.batch_of(4)
    bad = {**batch, "mask": np.array([1, wrong, 1, 1], np.float32)}
    calls = [
        lambda: metrics.accuracy(jnp.zeros((4, 2)), jnp.zeros(4, int), bad["mask"]),
        lambda: started(bad),
        lambda: loop.fit(lambda s, b: (s, {}), started(batch)[2], [bad], num_steps=1),
        lambda: loop.evaluate(step.make_eval_step(toys.linear_model()), Variables({}, {}), [bad]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"mask: a weight is {wrong}, expected booleans, or"):
            call()
    total, count = jax.jit(metrics.masked_sum)(jnp.ones(4), bad["mask"])
    assert np.isnan(total / count)
    parts, _, state = started(batch)
    _, found = toys.taught(*parts)(state, bad)
    assert np.isnan(metrics.value(found["loss"]))


@pytest.mark.parametrize("micro", [1, 2])
def test_scalars_and_keys_beside_the_examples_change_nothing(micro):
    batch = toys.batch_of(16)
    extra = {"a": np.float32(0.3), "b": 0.3, "k": jax.random.key(1), "j": jax.random.PRNGKey(1)}
    options = {"num_micro_batches": micro}
    want = trained(batch, options=options)[0].params
    found = trained({**extra, **batch}, options=options)[0].params
    jax.tree.map(np.testing.assert_array_equal, want, found)
    split = sharding.shard_batch({**extra, **batch}, sharding.make_mesh(data=8))
    assert split["image"].addressable_shards[0].data.shape[0] == 2
    assert_same(want, trained(split, options=options)[0].params)


def test_doubles_leave_the_types_of_the_state_alone():
    with jax.enable_x64():
        model, batch = toys.norm_model(), toys.batch_of(8)
        batch["image"] = batch["image"].astype(np.float64)
        objective, optimizer = toys.kd_objective(), optax.adam(0.1)
        teacher = teachers.frozen(model, model.init(jax.random.key(1), batch["image"]))
        outputs = teacher.apply(teacher.variables, batch)
        parts, key = (model, objective, optimizer), jax.random.key(0)
        step_of = step.with_teacher(step.make_train_step(*parts), teacher)
        stacked = {name: np.stack([x] * 2) for name, x in batch.items()}
        calls = (step_of, (batch,)), (many.several(step_of), (stacked, np.int32(1)))
        for call, fed in calls:
            state = step.init_train_state(key, *parts, batch, outputs)
            types = jax.tree.map(lambda x: x.dtype, state)
            assert jax.tree.map(lambda x: x.dtype, call(state, *fed)[0]) == types


def test_a_term_may_read_what_is_one_for_the_whole_batch():
    def mixed(x):
        share = x.batch["lam"] * x.batch["weights"][x.batch["label"]]
        return share * cross_entropy(x.student.logits, x.batch["label"])

    batch = {**toys.batch_of(8), "lam": np.float32(0.25), "weights": np.ones(5, np.float32)}
    found = [
        trained(batch, objective=combine({"m": term}, {"m": 1.0}), options={"num_micro_batches": n})
        for n in (1, 2)
        for term in (terms.stateless(mixed), terms.cross_entropy())
    ]
    losses = [measured["loss"] for _, measured in found]
    np.testing.assert_allclose(losses[0], losses[1] / 4, rtol=1e-6)
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-5)


GOOD = toys.batch_of(8)
OTHER_BATCHES = {
    "labels": (
        {"image": GOOD["image"], "labels": GOOD["label"]},
        r"combine: term 'hard' looks for 'label', which is not there; the batch has "
        r"\['image', 'labels'\]",
    ),
    "inputs": (
        {"inputs": GOOD["image"], "label": GOOD["label"]},
        r"a network is fed batch\['image'\], but the batch has \['inputs', 'label'\]; pass inp",
    ),
    "tuple": ((GOOD["image"], GOOD["label"]), "the batch is a tuple, expected arrays by name"),
    "list": ({**GOOD, "label": [*GOOD["label"]]}, r"batch\['label'\] is a list, expected an arr"),
    "short mask": (
        {**GOOD, "mask": np.ones(4, bool)},
        r"batch\['mask'\] has shape \(4,\), expected 8 examples",
    ),
}


@pytest.mark.parametrize(("batch", "words"), OTHER_BATCHES.values(), ids=OTHER_BATCHES)
def test_another_librarys_batch_is_refused_by_name(batch, words):
    parts, _, state = started(GOOD)
    with pytest.raises((TypeError, ValueError), match=words) as raised:
        toys.taught(*parts)(state, batch)
    assert "\n" not in str(raised.value)


def test_examples_are_counted_in_what_the_network_is_fed():
    fed = {"a": jnp.zeros(()), "b": jnp.zeros((3, 2)), "c": jnp.zeros(7)}
    assert _steps.examples_in(fed) == 3


def test_file_names_are_refused_at_the_first_batch():
    named = {**GOOD, "path": np.array([f"{i}.png" for i in range(8)])}
    with pytest.raises(TypeError, match=r"batch\['path'\] holds no numbers"):
        started(named)
    with pytest.raises(TypeError, match=r"batch\['path'\] holds no numbers"):
        loop.fit(lambda s, b: (s, {}), started(GOOD)[2], [named], num_steps=1)


def test_objectives_are_made_of_names():
    with pytest.raises(TypeError, match="combine: terms is a list, expected them by name"):
        combine([terms.cross_entropy()], [1.0])


def softmaxed(teacher):
    def apply(variables, batch):
        return Outputs(jax.nn.softmax(teacher.apply(variables, batch).logits))

    return teachers.Teacher(teacher.variables, apply)


def test_probabilities_in_the_place_of_logits_are_refused_where_they_are_known():
    parts, teacher, _ = started(GOOD)
    wrong = softmaxed(teacher)
    probs = wrong.apply(wrong.variables, GOOD)
    soft_model = parts[0]._replace(
        apply=lambda *args, **mode: (
            Outputs(jax.nn.softmax(parts[0].apply(*args, **mode)[0].logits)),
            {},
        )
    )
    variables = soft_model.init(jax.random.key(0), GOOD["image"])
    pair = teachers.ensemble([teacher, wrong])
    kept = {**GOOD, "teacher_logits": np.asarray(probs.logits)}
    calls = {
        "the teacher's logits": lambda: step.init_train_state(
            jax.random.key(0), *parts, GOOD, probs
        ),
        "frozen: the teacher's logits": lambda: teachers.frozen(soft_model, variables).apply(
            variables, GOOD
        ),
        "ensemble: the logits of teacher 1": lambda: pair.apply(pair.variables, GOOD),
        "stored: batch['teacher_logits']": lambda: teachers.stored().apply((), kept),
        "batch['teacher_logits']": lambda: loop.fit(
            lambda s, b: (s, {}), started(GOOD)[2], [kept], num_steps=1
        ),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value).startswith(f"{words} are probabilities"), raised.value
    # They are logits too: the same softmax at every temperature.
    logs = Outputs(jnp.log(probs.logits))
    step.init_train_state(jax.random.key(0), *parts, GOOD, logs)


@pytest.mark.parametrize("label", [255, -100, 5])
def test_a_label_that_is_no_class_is_named_before_the_first_step(label):
    wrong = {**GOOD, "label": np.where(np.arange(8) == 3, label, GOOD["label"])}
    with pytest.raises(ValueError, match=f"label {label} is no class of 5; leave it out by batch"):
        started(wrong)
    started({**wrong, "mask": np.arange(8) != 3})

    def ignoring(x):
        labels = x.batch["label"]
        known = (labels >= 0) & (labels < 5)
        values = cross_entropy(x.student.logits, jnp.where(known, labels, 0))
        return jnp.where(known, values, 0)

    started(wrong, objective=combine({"own": terms.stateless(ignoring)}, {"own": 1.0}))


def test_a_loss_that_goes_bad_says_what_its_labels_are():
    parts, _, state = started(GOOD)
    run = toys.taught(*parts)
    wrong = {**GOOD, "label": np.where(np.arange(8) == 3, 255, GOOD["label"])}
    with pytest.raises(
        loop.NonFiniteLoss,
        match=r"step 2; .*: hard; its labels are 0 to 255: lea.*; if all are classes, a smaller",
    ):
        loop.fit(run, state, [GOOD, wrong], num_steps=2)


def in_a_run(batch, teacher, weights=None, **options):
    objective = combine({"kd": terms.kd(temperature=2.0)}, weights or {"kd": 1.0})
    model = toys.linear_model()
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(
        jax.random.key(0), model, objective, toys.SGD, batch, outputs, **options
    )
    train_step = step.make_train_step(model, objective, toys.SGD, num_micro_batches=2)
    state, found = step.with_teacher(train_step, teacher)(state, batch)
    return state.params, {name: metrics.value(x) for name, x in found.items()}


@pytest.mark.parametrize("names", [("top", None), ("top", "classes")])
def test_the_largest_answers_teach_as_all_of_them_with_the_rest_at_minus_infinity(names):
    logits = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    classes = np.argsort(-logits, axis=-1)[:, 1::-1]  # the largest stands second
    top, dense = np.take_along_axis(logits, classes, axis=-1), np.full((8, 5), -np.inf, np.float32)
    np.put_along_axis(dense, classes, top, axis=-1)
    pair = {"top": (top, classes)} if names[1] is None else {"top": top, "classes": classes}
    expected = in_a_run({**GOOD, "teacher_logits": dense}, teachers.stored())
    found = in_a_run({**GOOD, **pair}, teachers.stored(names[0], indices=names[1]))
    assert_same(found, expected)
    assert {"agreement", "teacher/accuracy"} <= set(found[1])
    if names[1] is None:
        model, evaluated = toys.linear_model(), {**GOOD, "teacher_logits": pair["top"]}
        evaluate, variables = step.make_eval_step(model), Variables(found[0]["student"], {})
        assert_same(
            evaluate(variables, evaluated), evaluate(variables, {**GOOD, "teacher_logits": dense})
        )
    view = {**GOOD, **pair, "image": -GOOD["image"]}
    with pytest.raises(ValueError, match="answers in 'top'"):
        _steps.check_view({**GOOD, **pair}, view, teachers.stored(*names[:1]).held_in)


@pytest.mark.parametrize(
    "given",
    [
        (np.ones((8, 3)), np.ones((8, 3))),
        (np.zeros((8, 3), int), np.ones((8, 3))),
        (np.ones((8, 3)), np.zeros((8, 2), int)),
        (np.ones((8, 3)),),
        {"logits": np.ones((8, 3))},
    ],
)
def test_stored_answers_that_are_no_pair_of_numbers_and_classes_are_one_line(given):
    with pytest.raises(TypeError, match=r"expected one array .* classes, \[batch..., k\] both$"):
        teachers.stored().apply((), {"teacher_logits": given})
    with pytest.raises(ValueError, match="the batch has no 'classes', only"):
        teachers.stored(indices="classes").apply((), {"teacher_logits": np.ones((8, 3))})


def test_text_in_the_batch_of_a_loop_of_ones_own_is_one_line():
    (model, *_), _, state = started(GOOD)
    evaluate = step.make_eval_step(model)
    variables = Variables(state.params["student"], state.model_state)
    for names in (np.array(["a.png"] * 8), np.array(["a.png"] * 8, object)):
        batch = {**GOOD, "path": names}
        for call in (started, functools.partial(evaluate, variables)):
            with pytest.raises(TypeError, match=r"^batch\['path'\] holds no numbers; leave it out"):
                call(batch)


def test_stored_answers_are_not_those_to_a_view():
    batch = {**GOOD, "teacher_logits": np.ones((8, 5), np.float32)}
    parts, _, state = started(batch)

    def flipped(key, batch):
        return {**batch, "image": -batch["image"]}

    def both(key, batch):
        return {**flipped(key, batch), "teacher_logits": 2 * batch["teacher_logits"]}

    train_step, held = step.make_train_step(*parts), teachers.stored()
    for teacher in (held, teachers.ensemble([held, toys.teacher_for(batch)])):
        with pytest.raises(ValueError, match=r"view_fn changes 'image', but .* 'teacher_logits'"):
            step.with_teacher(train_step, teacher, view_fn=flipped)(state, batch)
    step.with_teacher(train_step, held, view_fn=both)(state, batch)


def test_optimizers_that_ask_for_the_loss_get_it():
    asked = []

    def update(updates, state, params=None, *, value, grad, value_fn, **extra):
        asked.append((value, value_fn(params), jax.tree.map(jnp.subtract, updates, grad)))
        return jax.tree.map(jnp.zeros_like, updates), (value, value_fn(params))

    asking = optax.GradientTransformationExtraArgs(lambda params: (jnp.zeros(()),) * 2, update)
    for micro in (1, 2):
        state, found = trained(GOOD, optimizer=asking, options={"num_micro_batches": micro})
        np.testing.assert_allclose(state.opt_state, [found["loss"]] * 2, rtol=1e-6)
    plateau = optax.chain(
        optax.sgd(0.1), contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.999)
    )
    state, _ = trained(GOOD, optimizer=plateau, num_steps=4)
    assert state.opt_state[1].scale < 1
    polyak = optax.polyak_sgd(max_learning_rate=0.1)
    losses = [trained(GOOD, optimizer=polyak, num_steps=n)[1]["loss"] for n in (1, 5)]
    assert losses[1] < losses[0]


STARTING = {"adam": optax.adam(0.1), "schedule_free": contrib.schedule_free_sgd(0.1)}


@pytest.mark.parametrize("optimizer", STARTING.values(), ids=STARTING)
def test_a_student_that_starts_from_given_weights_is_where_its_optimizer_thinks(optimizer):
    model = toys.linear_model()
    given = model.init(jax.random.key(9), GOOD["image"])
    parts, _, state = started(GOOD, optimizer=optimizer, variables=given)
    assert_same(state.params["student"], given.params, rtol=0)
    assert_same(state.opt_state, optimizer.init(state.params), rtol=0)
    drawn = started(GOOD, optimizer=optimizer)[2]
    assert_same(state.params["terms"], drawn.params["terms"], rtol=0)
    assert np.array_equal(jax.random.key_data(state.key), jax.random.key_data(drawn.key))
    toys.taught(*parts)(state, GOOD)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    other = toys.linear_model(7).init(jax.random.key(9), GOOD["image"])
    with pytest.raises(ValueError, match=r"variables have \(4, 7\) at \[0\]\['a'\], the student"):
        started(GOOD, variables=other)


def test_metrics_of_ones_own_are_measured_in_training_and_evaluation():
    def top_two(batch, outputs):
        best = jax.lax.top_k(outputs.logits, 2)[1]
        return jnp.any(best == batch["label"][:, None], -1)

    own = {"top 2": top_two, "sum": lambda batch, outputs: (jnp.ones(()), jnp.float32(4))}
    batch = {**GOOD, "mask": WEIGHTS}
    (model, *parts), teacher, state = started(batch)
    before = jax.tree.map(jnp.copy, Variables(state.params["student"], {}))
    measuring = step.with_teacher(step.make_train_step(model, *parts, metrics=own), teacher)
    found = {name: metrics.value(x) for name, x in measuring(state, batch)[1].items()}
    seen = loop.evaluate(step.make_eval_step(model, metrics=own), before, [batch])
    logits = model.apply(*before, batch["image"], train=False)[0].logits
    hits = (np.argsort(logits, -1)[:, -2:] == batch["label"][:, None]).any(-1)
    expected = np.sum(WEIGHTS * hits) / np.sum(WEIGHTS)
    for measured in (found, {name: metrics.value(x) for name, x in seen.items()}):
        np.testing.assert_allclose(measured["top 2"], expected, rtol=1e-6)
        assert (measured["sum"], "accuracy" in measured) == (0.25, True)
    unlabeled = {"image": GOOD["image"]}
    with pytest.raises(ValueError, match="make_eval_step: there is no label beside"):
        step.make_eval_step(model)(before, unlabeled)
    for label in (np.zeros((8, 3), int), np.zeros(8, np.float32)):
        shape = re.escape(str(label.shape))
        with pytest.raises(ValueError, match=rf"there is label \w+{shape} beside logits"):
            step.make_eval_step(model)(before, {**GOOD, "label": label})
        mine = step.make_eval_step(model, metrics={"n": lambda b, o: o.logits[:, 0]})
        assert mine(before, {**GOOD, "label": label}).keys() == {"n"}
    only = step.make_eval_step(model, metrics={"n": lambda b, o: jnp.ones(len(o.logits))})
    assert {name: metrics.value(x) for name, x in only(before, unlabeled).items()} == {"n": 1.0}


def soft_objective():
    return combine({"soft": terms.soft_targets()}, {"soft": 1.0})


def test_labels_are_measured_as_what_they_are():
    """Classes and distributions by their class, real numbers by their distance, never by a hit."""
    model = toys.linear_model()
    variables = model.init(jax.random.key(0), GOOD["image"])
    logits = np.asarray(model.apply(*variables, GOOD["image"], train=False)[0].logits)
    rng = np.random.default_rng(0)
    real, soft = rng.normal(size=(8, 5)), rng.dirichlet(np.ones(5), 8)
    one = model._replace(
        apply=lambda *args, **mode: (Outputs(model.apply(*args, **mode)[0].logits[:, :1]), {})
    )
    measured = {}

    def distance(x):
        return jnp.sum((x.student.logits - x.batch["label"].reshape(8, -1)) ** 2, -1)

    for name, net, label in (
        ("soft", model, soft),
        ("real", model, real),
        ("one", one, real[:, 0]),
        ("two", one, real[:, :1]),
    ):
        batch = {**GOOD, "label": label.astype(np.float32)}
        found = step.make_eval_step(net)(variables, batch)
        measured[name] = {key: metrics.value(x) for key, x in found.items()}
        none = step.make_eval_step(net)(variables, {**batch, "mask": np.zeros(8, bool)})
        assert none.keys() == found.keys()
        objective = combine({"mse": terms.stateless(distance)}, {"mse": 1.0})
        state = step.init_train_state(
            jax.random.key(0), net, objective, optax.sgd(0.1), batch, None
        )
        run = step.make_train_step(net, objective, optax.sgd(0.1))
        assert "accuracy" not in run(state, batch, None)[1]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    assert measured["soft"].keys() == {"accuracy", "nll", "ece"}
    nll = -(soft * log_probs).sum(-1).mean()
    np.testing.assert_allclose(measured["soft"]["nll"], nll, rtol=1e-5)
    hits = np.argmax(logits, -1) == np.argmax(soft, -1)
    np.testing.assert_allclose(measured["soft"]["accuracy"], hits.mean())
    assert measured["real"].keys() == measured["one"].keys() == {"mse"}
    squares = (logits - real) ** 2
    np.testing.assert_allclose(measured["real"]["mse"], squares.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["one"]["mse"], squares[:, 0].mean(), rtol=1e-5)
    assert measured["one"] == measured["two"]
    # Loaders pad with zeros, which are no distribution.
    filled = np.where(np.arange(8)[:, None] < 6, soft, 0).astype(np.float32)
    padded = {**GOOD, "label": filled, "mask": np.arange(8) < 6}
    found = step.make_eval_step(model)(variables, padded)
    assert found.keys() == {"accuracy", "nll", "ece"} and found["nll"][1] == 6
    ordinal = trained({**GOOD, "label": real[:, 0]}, objective=soft_objective())[1]
    assert ordinal.keys() == {"loss", "loss/soft"}


@pytest.mark.parametrize("none", [255, 5])
def test_labels_that_are_no_class_are_not_counted_as_wrong(none):
    labels = jnp.array([0, none, 2, none], jnp.uint8)
    inputs = TermInputs({"label": labels}, Outputs(jnp.eye(5)[:4]), None, jnp.ones(4, bool))
    assert jax.jit(lambda x: _steps.hits(x)["accuracy"])(inputs) == (2, 2)


def test_the_audit_names_what_its_inputs_are_not():
    (model, objective, _), teacher, state = started(GOOD)
    student = model.apply(state.params["student"], {}, GOOD["image"], train=False)[0]
    outputs = teacher.apply(teacher.variables, GOOD)
    soft = np.asarray(jax.nn.softmax(outputs.logits))
    broken = {
        "inputs: entries": ({"path": np.array(["a"] * 8)}, student, outputs),
        "inputs: mask": ({"mask": -np.ones(8, np.float32)}, student, outputs),
        "inputs: label": ({"label": GOOD["label"] + 250}, student, outputs),
        "inputs: label (sums)": ({"label": 0.9 * soft}, student, outputs),
        "inputs: logits": ({}, student, Outputs(soft)),
        "inputs: logits (student)": ({}, Outputs(soft), outputs),
        "inputs: logits (one)": ({}, Outputs(student.logits[:, :1]), outputs),
    }
    for name, (change, own, taught) in broken.items():
        report = audit(objective, {**GOOD, **change}, own, taught)
        failed = {finding.name for finding in report.failures}
        assert name.partition(" (")[0] in failed, f"{name}: {report}"
        assert {finding.term for finding in report.findings} == {"inputs"}
    more = {"mask": WEIGHTS, "lam": np.float32(1), "label": soft}
    report = audit(objective, {**GOOD, **more}, student, outputs)
    assert report.passed, str(report)
