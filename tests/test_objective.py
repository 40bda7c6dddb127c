"""Objectives, terms and teachers: weights, masks, learned parts, ensembles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import losses, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model, Outputs, Teacher, Term, TermInputs, Variables


def inputs_for(batch, mask=None, seed=1):
    student, teacher = toys.linear_model(), toys.teacher_for(batch)
    variables = student.init(jax.random.key(seed), batch["image"])
    outputs, _ = student.apply(variables.params, {}, batch["image"], train=False)
    mask = np.ones(len(batch["label"]), bool) if mask is None else mask
    return TermInputs(batch, outputs, teacher.apply(teacher.variables, batch), mask)


def test_loss_is_the_weighted_sum_of_masked_means():
    batch = toys.batch_of(6)
    mask = np.array([1, 1, 0, 1, 0, 1], bool)
    inputs = inputs_for(batch, mask)
    first, second = (terms.stateless(lambda x, i=i: x.student.logits[:, i]) for i in (0, 1))
    objective = combine({"a": first, "b": second}, {"a": 2.0, "b": jnp.asarray(0.5)})
    variables = objective.init(jax.random.key(0), inputs)
    loss, _, metrics = objective.apply(variables.params, variables.state, inputs)
    means = np.asarray(inputs.student.logits)[mask].mean(0)
    np.testing.assert_allclose(loss, 2 * means[0] + 0.5 * means[1], rtol=1e-6)
    assert float(metrics["loss/a"][1]) == 4


def test_term_state_is_kept_by_name_and_carried():
    def init(key, inputs):
        return Variables({}, jnp.zeros(()))

    def apply(params, state, inputs):
        return jnp.broadcast_to(state, inputs.mask.shape), state + 1

    objective = combine({"count": Term(init, apply)}, {"count": 1.0})
    batch, model, optimizer = toys.batch_of(4), toys.linear_model(), toys.SGD
    teacher = toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    train_step = step.make_train_step(model, objective, optimizer)
    for _ in range(3):
        state, metrics = train_step(state, batch, outputs)
    assert float(state.term_state["count"]) == 3
    assert float(metrics["loss/count"][0]) == 8


def test_learned_projection_trains_beside_the_student_and_stays_out_of_it():
    batch, model, optimizer = toys.batch_of(8), toys.linear_model(), optax.adam(1e-2)
    teacher = toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    objective = combine({"hint": terms.hint("hidden", "hidden")}, {"hint": 1.0})
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    before = np.asarray(state.params["terms"]["hint"]["kernel"])
    assert before.shape == (6, 9)
    assert set(state.params["student"]) == {"a", "b"}
    train_step = step.make_train_step(model, objective, optimizer)
    losses = []
    for _ in range(60):
        state, metrics = train_step(state, batch, outputs)
        losses.append(float(metrics["loss"][0]))
    assert losses[-1] < 0.2 * losses[0]
    assert np.abs(np.asarray(state.params["terms"]["hint"]["kernel"]) - before).max() > 0.01


def test_partition_gives_terms_their_own_optimizer():
    batch, model = toys.batch_of(8), toys.linear_model()
    teacher = toys.teacher_for(batch)
    outputs = teacher.apply(teacher.variables, batch)
    optimizer = optax.partition(
        {"student": optax.set_to_zero(), "terms": optax.sgd(0.1)},
        {"student": "student", "terms": "terms"},
    )
    objective = combine({"hint": terms.hint("hidden", "hidden")}, {"hint": 1.0})
    state = step.init_train_state(jax.random.key(0), model, objective, optimizer, batch, outputs)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = step.make_train_step(model, objective, optimizer)(state, batch, outputs)
    jax.tree.map(np.testing.assert_array_equal, before["student"], state.params["student"])
    assert np.any(before["terms"]["hint"]["kernel"] != state.params["terms"]["hint"]["kernel"])


def test_misuse_of_combine_and_hint_is_explained():
    with pytest.raises(ValueError, match=r"weights has names \['b'\], expected \['a'\]"):
        combine({"a": terms.cross_entropy()}, {"b": 1.0})
    with pytest.raises(ValueError, match="expected"):
        combine({}, {})
    batch = toys.batch_of(4)
    wrong = combine({"sum": terms.stateless(lambda x: x.student.logits.sum())}, {"sum": 1.0})
    with pytest.raises(ValueError, match=r"term 'sum' returned values of shape \(\)"):
        wrong.apply({"sum": {}}, {"sum": {}}, inputs_for(batch))
    with pytest.raises(ValueError, match="student captured no feature 'nowhere'"):
        terms.hint("nowhere", "hidden").init(jax.random.key(0), inputs_for(batch))


def constant(logits):
    return Teacher(logits, lambda variables, batch: Outputs(variables))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_ensemble_softens_to_the_mean_probability(temperature, weights):
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(4, 5)) * 6, jnp.float32) for _ in range(2)]
    teacher = teachers.ensemble(
        [constant(p) for p in parts], weights=weights, temperature=temperature
    )
    logits = teacher.apply(teacher.variables, {}).logits
    shares = np.array(weights or (1, 1)) / np.sum(weights or (1, 1))
    mean = sum(s * jax.nn.softmax(p / temperature) for s, p in zip(shares, parts, strict=True))
    np.testing.assert_allclose(jax.nn.softmax(logits / temperature), mean, rtol=2e-5)


def test_ensemble_keeps_masked_classes_and_extremes():
    masked = jnp.array([[0.0, 1.0, -jnp.inf]])
    teacher = teachers.ensemble([constant(masked), constant(masked)])
    logits = teacher.apply(teacher.variables, {}).logits
    assert np.isneginf(logits[0, 2])
    far = teachers.ensemble([constant(jnp.array([[1e4, 0.0]])), constant(jnp.array([[0.0, 1e4]]))])
    np.testing.assert_allclose(far.apply(far.variables, {}).logits, np.log([[0.5, 0.5]]), rtol=1e-4)


def test_ensemble_and_stored_explain_misuse():
    one = constant(jnp.zeros((1, 2)))
    for weights, message in [((1.0, 2.0), "2 entries, expected 1"), ((-1.0,), "must be positive")]:
        with pytest.raises(ValueError, match=message):
            teachers.ensemble([one], weights=weights)
    with pytest.raises(ValueError, match="expected at least one"):
        teachers.ensemble([])
    with pytest.raises(ValueError, match="temperature must be positive"):
        teachers.ensemble([one], temperature=0.0)
    with pytest.raises(ValueError, match="no 'teacher_logits'"):
        teachers.stored().apply((), {"image": jnp.zeros(1)})


def featured(shape, seed):
    rng = np.random.default_rng(seed)
    return Outputs(
        jnp.asarray(rng.normal(size=(*shape, 5))), {"f": jnp.asarray(rng.normal(size=(*shape, 3)))}
    )


@pytest.mark.parametrize("weights", [False, True])
def test_losses_of_features_look_at_the_tokens_that_count_alone(weights):
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.array([[2], [6], [3], [0]])
    if weights:
        mask = mask * rng.uniform(0.5, 2, mask.shape).astype(np.float32)
    student, teacher = featured((4, 6), 1), featured((4, 6), 2)
    objective = combine(
        {
            "at": terms.of(losses.projected_feature_loss, student="f", teacher="f"),
            "soft": terms.soft_targets(),
        },
        {"at": 1.0, "soft": 1.0},
    )

    @jax.jit
    def measured(student, teacher):
        batch = {"label": jnp.zeros((4, 6), int)}
        _, _, metrics = objective.apply(
            {"at": {}, "soft": {}},
            {"at": {}, "soft": {}},
            TermInputs(batch, student, teacher, mask),
        )
        return [jnp.divide(*metrics[f"loss/{name}"]) for name in ("at", "soft")]

    found = measured(student, teacher)
    squares = np.square(np.asarray(student.features["f"]) - teacher.features["f"]).mean(-1)
    soft = jax.jit(losses.soft_target_loss)(student.logits, teacher.logits)
    expected = [np.sum(mask * values) / np.sum(mask) for values in (squares, soft)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = jax.tree.map(
        lambda x: jnp.where(jnp.asarray(mask)[..., None] > 0, x, 7), (student, teacher)
    )
    np.testing.assert_array_equal(measured(*other), found)


def test_masks_of_every_grain_stand_in_one_objective():
    """A mask of pixels, features in its size and smaller, of the whole image, and logits."""
    rng = np.random.default_rng(0)
    mask = rng.random((4, 4, 4)) < 0.5
    mask[0], mask[1, 0, 0], mask[2, :2, :2] = False, True, False
    maps = {"f": (4, 4, 3), "small": (2, 2, 3), "pooled": (3,)}

    def outputs():
        features = {n: jnp.asarray(rng.normal(size=(4, *s)), jnp.float32) for n, s in maps.items()}
        return Outputs(jnp.asarray(rng.normal(size=(4, 4, 4, 5)), jnp.float32), features)

    student, teacher = outputs(), outputs()
    at = {"student": "f", "teacher": "f"}
    each = {
        "soft": terms.soft_targets(),
        "cosine": terms.of(losses.cosine_loss, **at),
        "small": terms.of(losses.hint_loss, student="small", teacher="small"),
        "both": terms.of(losses.hint_loss, student=["f", "small"], teacher=["f", "small"]),
        "cwd": terms.of(losses.channel_wise_loss, **at),
        "sp": terms.of(losses.similarity_preserving_loss, **at),
        "pooled": terms.of(losses.hint_loss, student="pooled", teacher="pooled"),
    }
    objective, none = combine(each, dict.fromkeys(each, 1.0)), {name: {} for name in each}
    found = jax.jit(lambda x: objective.apply(none, none, x)[2])
    metrics = found(TermInputs({}, student, teacher, mask))

    some, cells = mask.any((1, 2)), mask.reshape(4, 2, 2, 2, 2).any((2, 4))
    student, teacher = jax.tree.map(np.asarray, (student, teacher))
    one, two = (x.features["f"] for x in (student, teacher))
    squares = {n: np.square(student.features[n] - teacher.features[n]).mean(-1) for n in maps}
    means = [
        np.sum(squares[n] * m, (1, 2)) / np.maximum(m.sum((1, 2)), 1)
        for n, m in (("f", mask), ("small", cells))
    ]
    gone = [np.where(mask[..., None], x, -np.inf) for x in (one, two)]
    zero = [np.where(mask[..., None], x, 0) for x in (one, two)]
    expected = {
        "soft": jax.jit(losses.soft_target_loss)(student.logits, teacher.logits)[mask].mean(),
        "cosine": jax.jit(losses.cosine_loss)(one[mask], two[mask]).mean(),
        "small": squares["small"][cells].mean(),
        "both": sum(means)[some].mean(),
        "cwd": jax.jit(losses.channel_wise_loss)(*gone)[some].mean(),
        "sp": jax.jit(losses.similarity_preserving_loss)(*zero, mask=some)[some].mean(),
        "pooled": squares["pooled"][some].mean(),
    }
    for name, value in expected.items():
        mean = np.divide(*metrics[f"loss/{name}"])
        np.testing.assert_allclose(mean, value, rtol=1e-5, err_msg=name)
    # A mask that leaves nothing out is none.
    full, none = (found(TermInputs({}, student, teacher, np.ones(m.shape[:n], bool)))
                  for m, n in ((mask, 3), (mask, 1)))  # fmt: skip
    for name in each:
        one, two = (np.divide(*x[f"loss/{name}"]) for x in (full, none))
        np.testing.assert_allclose(one, two, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("weights", [np.ones(6, bool), np.array([1, 2, 3, 0, 1, 1.0], np.float32)])
def test_a_label_that_a_term_ignores_does_not_count_in_its_mean(weights):
    batch = {**toys.batch_of(6), "mask": weights}
    batch["label"] = np.array([0, 255, 1, 255, 255, 2], np.uint8)
    inputs = inputs_for(batch, weights)
    known, logits = batch["label"] != 255, inputs.student.logits
    bound = functools.partial(losses.cross_entropy, ignore_label=255)
    both = {
        "hard": terms.of(losses.cross_entropy, ignore_label=255),
        "bound": terms.of(bound),
        "soft": terms.soft_targets(),
    }
    objective = combine(both, dict.fromkeys(both, 1.0))
    nothing = {name: {} for name in both}
    _, _, found = objective.apply(nothing, nothing, inputs)
    values = losses.cross_entropy(logits, np.where(known, batch["label"], 0))
    expected = np.average(values[known], weights=np.float32(weights)[known])
    for name in ("hard", "bound"):
        np.testing.assert_allclose(np.divide(*found[f"loss/{name}"]), expected, rtol=1e-6)
    assert found["loss/soft"][1] == weights.sum() and found["loss/hard"][1] == weights[known].sum()
    assert objective.ignores_labels == ("bound", "hard")
    with pytest.raises(ValueError, match="'bound' ignores a label: of a part of a batch, whole"):
        objective.apply(nothing, nothing, inputs, whole=weights)
    whole = {"mask": jnp.asarray(weights), "label": batch["label"]}
    loss = 0.0
    for at in (slice(0, 2), slice(2, 6)):
        part = jax.tree.map(lambda x, at=at: x[at], inputs)
        loss += objective.apply(nothing, nothing, part, whole=whole)[0]
    np.testing.assert_allclose(loss, objective.apply(nothing, nothing, inputs)[0], rtol=1e-6)


def test_the_label_that_a_loss_ignores_by_default_does_not_count():
    def own(student_logits, labels, ignore_label=255):
        return losses.cross_entropy(student_logits, labels, ignore_label=ignore_label)

    assert terms.of(own).ignore_label == 255
    assert terms.of(own, ignore_label=3).ignore_label == 3
    assert terms.of(losses.cross_entropy).ignore_label is None


def test_parts_of_a_batch_add_up_where_grains_differ():
    """Micro-batches: pixels, cells and images each have a share of their own."""
    rng = np.random.default_rng(3)
    batch = {"image": rng.normal(size=(4, 2, 2, 3)).astype(np.float32)}
    batch["label"] = rng.integers(0, 5, (4, 2, 2)).astype(np.int32)
    batch["mask"] = np.ones((4, 2, 2), bool)
    batch["mask"][0, 0], batch["mask"][1], batch["mask"][2, 1, 1] = False, False, False

    def apply(params, state, inputs, *, train, key=None):
        return Outputs(inputs @ params, {"pooled": jnp.tanh(inputs @ params).mean((1, 2))}), state

    model = Model(lambda key, x: Variables(jax.random.normal(key, (3, 5)), {}), apply)
    teacher = teachers.frozen(model, model.init(jax.random.key(1), batch["image"]))
    at = {"student": "pooled", "teacher": "pooled"}
    objective = combine(
        {"hard": terms.cross_entropy(), "hint": terms.of(losses.hint_loss, **at)},
        {"hard": 1.0, "hint": 3.0},
    )
    found, outputs = [], teacher.apply(teacher.variables, batch)
    for parts in (1, 2):
        made = jax.random.key(0), model, objective, optax.sgd(1.0), batch, outputs
        run = step.make_train_step(model, objective, optax.sgd(1.0), num_micro_batches=parts)
        state, metrics = run(step.init_train_state(*made), batch, outputs)
        found.append((state.params["student"], np.divide(*metrics["loss"])))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("grain", [(4, 4), pytest.param((6,), marks=pytest.mark.slow)])
def test_padding_never_counts_whatever_it_holds(grain):
    """The catalogue in one objective: what padding holds changes no loss, not by a bit."""
    inputs = inputs_of_grain(grain)
    mask = np.random.default_rng(1).random((8, *grain)) < 0.6
    mask[0], mask[1] = False, True
    inputs = inputs._replace(mask=mask)
    each = every_term(inputs)

    def other(x):
        if x.shape[: mask.ndim] == mask.shape and x.ndim > mask.ndim:
            return jnp.where(mask[..., None], x, 3 * x[::-1])
        return jnp.where(mask.any(tuple(range(1, mask.ndim))).reshape(8, *[1] * (x.ndim - 1)), x, 7)

    changed = jax.tree.map(other, (inputs.student, inputs.teacher))
    for name, term in each.items():
        objective = combine({name: term}, {name: 1.0})
        found = jax.jit(lambda x, o=objective: o.apply(*o.init(jax.random.key(0), inputs), x)[2])
        before = found(inputs)[f"loss/{name}"]
        assert np.isfinite(before[0]), name
        after = found(inputs._replace(student=changed[0], teacher=changed[1]))[f"loss/{name}"]
        np.testing.assert_array_equal(before, after, err_msg=name)


def inputs_of_grain(grain):
    """Logits for each position, maps (or hidden states) of its size, and one pooled feature."""
    rng = np.random.default_rng(0)

    def outputs(width):
        shapes = {"map": (*grain, width), "pooled": (width,)}
        features = {
            n: jnp.asarray(rng.normal(size=(8, *s)), jnp.float32) for n, s in shapes.items()
        }
        return Outputs(jnp.asarray(3 * rng.normal(size=(8, *grain, 5)), jnp.float32), features)

    labels = jnp.asarray(rng.integers(0, 5, (8, *grain)), jnp.int32)
    batch = {"label": labels, "index": jnp.arange(8)}
    return TermInputs(batch, outputs(4), outputs(4), jnp.ones((8, *grain), bool))


def every_term(inputs):
    """The terms of the catalogue that take such features."""
    image = inputs.student.logits.ndim == 4
    of_features = [
        losses.angle_relation_loss, losses.channel_wise_loss, losses.affinity_loss,
        losses.cosine_loss, losses.correlation_congruence_loss, losses.distance_relation_loss,
        losses.attention_transfer_loss, losses.hierarchical_context_loss,
        losses.neuron_selectivity_loss, losses.probabilistic_transfer_loss,
        losses.projected_feature_loss, losses.similarity_distribution_loss,
        losses.similarity_score_loss, losses.similarity_preserving_loss,
    ]  # fmt: skip
    of_logits = [
        losses.soft_target_loss, losses.cross_entropy, losses.dkd_loss, losses.dist_loss,
        losses.multi_level_loss, losses.ttm_loss, losses.kl_divergence, losses.sigmoid_kd_loss,
    ]  # fmt: skip
    path = ("map", "map")
    each = {f.__name__: terms.of(f, student="map", teacher="map") for f in of_features}
    each |= {f.__name__: terms.of(f) for f in of_logits}
    each |= {
        "hint": terms.hint(*path),
        "hint_norm": terms.hint(*path, norm=True),
        "pooled": terms.hint("pooled", "pooled"),
        "vid": terms.vid(*path),
        "prime_aware": terms.prime_aware(*path),
        "ab": terms.activation_boundary(*path),
        "overhaul": terms.overhaul(*path, margins=-0.5 * jnp.ones(4)),
        "ickd": terms.inter_channel_correlation(*path),
        "itrd": terms.itrd(*path),
        "cc": terms.consecutive_correlation(*path),
        "crd": terms.crd(*path, num_examples=8, num_negatives=3),
    }
    if image:
        labels = {"student": "map", "teacher": "map", "num_classes": 5}
        each |= {
            "ifv": terms.of(losses.intra_class_variation_loss, **labels),
            "ft": terms.factor_transfer(*path),
            "review": terms.review(["map"], ["map"]),
            "semckd": terms.semantic_calibration(["map"], ["map"]),
        }
    return each
