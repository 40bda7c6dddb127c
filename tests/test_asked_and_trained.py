"""What the command line asks for is what is trained: small runs against plain formulas."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import data, models, step
from kdjax.runs import checks, distill, measures, methods, resolved, teaching, training
from kdjax.runs.settings import OptimizerSettings


@pytest.fixture
def trained(undrawn, monkeypatch, tmp_path):
    """Return a function of flags that trains, and gives every training with its seed and result."""

    def run(*flags):
        found, own = [], training.train

        def recorded(run, plan, seed, **others):
            variables = own(run, plan, seed, **others)
            found.append((plan, seed, variables.params))
            return variables

        monkeypatch.setattr(training, "train", recorded)
        base = ["--workdir", tmp_path / "w", "--teacher.widths", 16]
        base += [] if "--student.name" in flags else ["--student.widths", 8]
        distill.main([*map(str, [*base, *flags])])
        return found, models.load_network(tmp_path / "w" / "student").variables.params

    return run


def logits_of(params, images, spec):
    x = (images.astype(jnp.float32) / 255 - jnp.array(spec.mean)) / jnp.array(spec.std)
    x = x.reshape(len(x), -1)
    for layer in sorted(set(params) - {"head"}):
        x = jnp.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def held_to(params, limit):
    """Shorten the incoming weights of every unit to a norm."""

    def held(x):
        return x / jnp.maximum(1, jnp.linalg.norm(x, axis=0) / limit) if x.ndim == 2 else x

    return jax.tree.map(held, params) if limit else params


@jax.numpy_rank_promotion("allow")
def by_hand(
    plan,
    seeds,
    optimizer,
    num_steps,
    *,
    batch_size,
    limit=None,
    smoothing=0,
    weights=None,
    average=None,
    **teaching,
):
    """Train a perceptron from where the library starts it, in its order of the examples."""
    images, hot = jnp.asarray(plan.examples["image"]), jax.nn.one_hot(plan.examples["label"], 10)
    label = (1 - smoothing) * hot + smoothing / 10
    weights = hot @ (jnp.ones(10) if weights is None else jnp.asarray(weights))

    def loss(params, rows):
        z = logits_of(params, images[rows], plan.spec)
        hard = -jnp.sum(label[rows] * jax.nn.log_softmax(z), -1)
        return jnp.sum(weights[rows] * values(params, rows, z, hard)) / jnp.sum(weights[rows])

    def values(params, rows, z, hard):
        if not teaching:
            return hard
        t, share = teaching["temperature"], teaching["soft_weight"]
        v = logits_of(teaching["teacher"], images[rows], teaching["spec"])
        p, log_q = jax.nn.softmax(v / t), jax.nn.log_softmax(z / t)
        soft = t**2 * jnp.sum(p * (jax.nn.log_softmax(v / t) - log_q), -1)
        return share * soft + (1 - share) * hard

    @jax.jit
    def one_step(params, state, rows):
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return held_to(optax.apply_updates(params, updates), limit), state

    few = {name: x[:2] for name, x in plan.examples.items()}
    outputs = plan.teacher.apply(plan.teacher.variables, few)
    found, made = [], (plan.model, plan.objective, plan.optimizer, few, outputs)
    for seed in seeds:
        params = step.init_train_state(jax.random.key(seed), *made).params["student"]
        state, mean = optimizer.init(params), params
        rows = data.train_rows(len(hot), seed=seed, batch_size=batch_size)
        for i in range(num_steps):
            params, state = one_step(params, state, next(rows)["index"])
            share = 1 - min(1 - 1 / (i + 2), average or 0)
            mean = jax.tree.map(lambda m, p, s=share: m + s * (p - m), mean, params)
        found.append(mean)
    return found


def kernels(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def dropping(peak, num_steps):
    drops = [round(share * num_steps) for share in (0.625, 0.75, 0.875)]
    return lambda count: peak * 0.1 ** sum(count >= drop for drop in drops)


def agree(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for own, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=2e-3, atol=2e-4)


def test_sgd_at_a_low_temperature_within_limits(trained, monkeypatch):
    setups, own = [], methods.objective_of
    monkeypatch.setattr(
        methods,
        "objective_of",
        lambda name, setup, **k: setups.append(setup) or own(name, setup, **k),
    )
    flags = ["--optimizer.name", "sgd", "--optimizer.learning-rate", 0.03, "--seed", 3]
    flags += ["--optimizer.weight-decay", 0.02, "--optimizer.schedule", "steps", "--epochs", 6]
    flags += ["--optimizer.nesterov", "False", "--temperature", 2.5, "--soft-weight", 0.6]
    flags += ["--student.max-norm", 0.7, "--teacher.max-norm", 0.9, "--teacher.epochs", 1]
    flags += ["--teacher.learning-rate", 0.02, "--num-seeds", 2, "--batch-size", 32]
    found, exported = trained(*flags)
    assert [(plan.phase, seed) for plan, seed, _ in found] == [
        ("teacher", 3), ("scratch", 3), ("distilled", 3), ("scratch", 4), ("distilled", 4)
    ]  # fmt: skip

    def sgd(peak, num_steps):
        decay = optax.add_decayed_weights(0.02, kernels)
        return optax.chain(decay, optax.sgd(dropping(peak, num_steps), momentum=0.9)), num_steps

    (teacher, _, taught), (scratch, _, _), (distilled, _, _), *_ = found
    assert len(teacher.examples["label"]) == 1212
    assert np.bincount(scratch.examples["label"]).tolist() == [10] * 10
    agree(taught, *by_hand(teacher, [3], *sgd(0.02, 38), batch_size=32, limit=0.9))
    lesson = {"temperature": 2.5, "soft_weight": 0.6, "teacher": taught, "spec": teacher.spec}
    for plan, extra in ((scratch, {}), (distilled, lesson)):
        common = {"batch_size": 32, "limit": 0.7}
        expected = by_hand(plan, [3, 4], *sgd(0.03, 19), **common, **extra)
        own = [params for of, _, params in found if of.phase == plan.phase]
        for params, wanted in zip(own, expected, strict=True):
            agree(params, wanted)
    assert [(s.num_examples, s.num_steps) for s in setups] == [(100, 19)]
    assert any(
        jax.tree.all(jax.tree.map(np.array_equal, exported, params))
        for plan, _, params in found
        if plan.phase == "distilled"
    )


def test_adamw_with_larger_batches_and_usual_rates(trained):
    flags = ["--batch-size", 256, "--data.student-examples", 600, "--epochs", 5, "--num-seeds", 1]
    flags += ["--optimizer.weight-decay", 0.1, "--teacher.epochs", 2, "--temperature", 7]
    (teacher, _, taught), *students = trained(*flags)[0]

    def adamw(num_steps):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 1, num_steps)
        return optax.adamw(schedule, weight_decay=0.1, mask=kernels), num_steps

    agree(taught, *by_hand(teacher, [0], *adamw(10), batch_size=256))
    lesson = {"temperature": 7.0, "soft_weight": 0.9, "teacher": taught, "spec": teacher.spec}
    for (plan, _, params), extra in zip(students, ({}, lesson), strict=True):
        agree(params, *by_hand(plan, [0], *adamw(12), batch_size=256, **extra))


def test_the_best_student_is_the_best_by_validation():
    entry = {"validation_accuracy": [0.2, 0.9, 0.9, None]}
    assert measures.best_of(["a", "b", "c", "d"], entry) == "b"
    assert measures.best_of(["a", "b"], {"validation_accuracy": [None, None]}) == "a"


@pytest.mark.parametrize("augment", [(), ("none",), ("jitter",), ("crop", "flip")])
def test_answers_are_kept_only_where_views_stay_the_same(augment, monkeypatch):
    monkeypatch.setattr(teaching, "with_logits", lambda run, network, examples: "kept")
    monkeypatch.setattr(teaching, "_teaching", lambda experiment, network: network)
    experiment = SimpleNamespace(settings=SimpleNamespace(augment=augment), run=None)
    examples = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, int)}
    found = teaching.with_answers(experiment, SimpleNamespace(network=None), examples)
    assert (found == "kept") == (augment in ((), ("none",))), found


def test_the_knobs_of_recipes(trained):
    weights = [2.0, 1.0, 1.0, 0.5, 1.0, 3.0, 0.0, 1.0, 1.0, 1.0]
    flags = ["--label-smoothing", 0.2, "--class-weights", *weights, "--average", 0.8]
    flags += ["--optimizer.clip-norm", 0.3, "--optimizer.warmup-steps", 3, "--epochs", 5]
    flags += ["--num-seeds", 1, "--teacher.epochs", 1, "--batch-size", 64]
    (teacher, _, taught), *students = trained(*flags)[0]

    def adamw(num_steps):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 3, num_steps)
        return optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(schedule, weight_decay=0))

    common = {"batch_size": 64, "weights": weights}
    agree(taught, *by_hand(teacher, [0], adamw(19), 19, **common))
    common |= {"smoothing": 0.2, "average": 0.8}
    lesson = {"temperature": 4.0, "soft_weight": 0.9, "teacher": taught, "spec": teacher.spec}
    for (plan, _, params), extra in zip(students, ({}, lesson), strict=True):
        agree(params, *by_hand(plan, [0], adamw(8), 8, **common, **extra))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--class-weights", 1, 2], "--class-weights are .* expected 10"),
        (["--class-weights", *[1] * 10, "--balanced-classes"], "--balanced-classes makes"),
        (["--augment", "mixup", "--method", "dkd"], "--augment mixup gives an image two classes"),
    ],
)
def test_knobs_that_do_not_fit_are_one_line(trained, capfd, flags, words):
    with pytest.raises(SystemExit) as stopped:
        trained(*flags)
    assert stopped.value.code == 2
    assert re.search(words, capfd.readouterr().err)


def test_flags_that_change_nothing_are_named():
    def unread(**own):
        asked = distill.Settings(workdir=Path("w"), **own)
        return checks.unread(asked, resolved.resolve(asked, data.load("digits")))

    assert unread(temperature=8.0, soft_weight=0.2) == unread(method="dkd") == []
    sgd = OptimizerSettings(name="sgd", momentum=0.5)
    assert unread(method="dkd+kd", temperature=8.0, optimizer=sgd) == []
    adamw = dataclasses.replace(sgd, name="adamw")
    assert unread(method="dkd", temperature=8.0, soft_weight=0.2, optimizer=adamw) == [
        "--temperature changes nothing here: it is of kd, and --method is dkd",
        "--soft-weight changes nothing here: it is of kd, and --method is dkd",
        "--optimizer.momentum changes nothing here: it is of sgd, and --optimizer.name is adamw",
    ]


@pytest.mark.slow
def test_a_transformer_learns_by_its_token_from_mixtures_and_goes_out_with_it(trained, tmp_path):
    flags = ["--student.name", "vit_mu", "--method", "deit-hard", "--augment", "mixup", "cutmix"]
    flags += ["--epochs", 1, "--teacher.epochs", 1, "--num-seeds", 1, "--mix-each", "example"]
    found, exported = trained(*flags)
    taught = next(params for plan, _, params in found if plan.phase == "distilled")
    scratch = next(params for plan, _, params in found if plan.phase == "scratch")
    assert set(taught) - set(scratch) == {"distillation_head"}
    assert "distillation_token" in taught["tokens"]
    assert jax.tree.all(jax.tree.map(np.array_equal, exported, taught))
    network = models.load_network(tmp_path / "w" / "student")
    assert network(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
