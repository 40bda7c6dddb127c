"""Objectives, terms and teachers: weights, masks, learned parts, ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from kdjax import losses, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Outputs, Teacher, Term, TermInputs, Variables


def inputs_for(batch, mask=None, seed=1):
    student, teacher = toys.linear_model(), toys.teacher_for(batch)
    variables = student.init(jax.random.key(seed), batch["image"])
    outputs, _ = student.apply(variables.params, {}, batch["image"], train=False)
    mask = np.ones(len(batch["label"]), bool) if mask is None else mask
    return TermInputs(batch, outputs, teacher.apply(teacher.variables, batch), mask)


ALL_TERMS = {
    "kd": (terms.kd(temperature=2.0, soft_weight=0.5), False),
    "soft_targets": (terms.soft_targets(temperature=2.0), False),
    "cross_entropy": (terms.cross_entropy(), False),
    "hint": (terms.hint("hidden", "hidden"), True),
}


@pytest.mark.parametrize("name", ALL_TERMS)
def test_every_term_conforms(name):
    term, learns = ALL_TERMS[name]
    batch = toys.batch_of(6)
    inputs = inputs_for(batch)
    params, state = term.init(jax.random.key(0), inputs)
    assert bool(jax.tree.leaves(params)) == learns
    values, new_state = jax.jit(term.apply)(params, state, inputs)
    assert values.shape == (6,)
    assert values.dtype == jnp.float32
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert np.all(np.isfinite(values))
    one = jax.tree.map(lambda x: x[2:3], inputs)
    np.testing.assert_allclose(term.apply(params, state, one)[0], values[2:3], rtol=1e-5)

    def total(params, student, teacher):
        changed = inputs._replace(student=student, teacher=teacher)
        return term.apply(params, state, changed)[0].sum()

    grads = jax.grad(total, argnums=(0, 1, 2))(params, inputs.student, inputs.teacher)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads[1]))
    assert not any(np.any(g) for g in jax.tree.leaves(grads[2]))
    assert not learns or any(np.any(g) for g in jax.tree.leaves(grads[0]))


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
    batch, model, optimizer = toys.batch_of(4), toys.linear_model(), optax.sgd(0.1)
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

    def measured(student, teacher):
        batch = {"label": jnp.zeros((4, 6), int)}
        _, _, metrics = objective.apply(
            {"at": {}, "soft": {}},
            {"at": {}, "soft": {}},
            TermInputs(batch, student, teacher, mask),
        )
        return [float(np.divide(*metrics[f"loss/{name}"])) for name in ("at", "soft")]

    found = measured(student, teacher)
    squares = np.square(np.asarray(student.features["f"]) - teacher.features["f"]).mean(-1)
    soft = losses.soft_target_loss(student.logits, teacher.logits)
    expected = [np.sum(mask * values) / np.sum(mask) for values in (squares, soft)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = jax.tree.map(
        lambda x: jnp.where(jnp.asarray(mask)[..., None] > 0, x, 7), (student, teacher)
    )
    np.testing.assert_array_equal(measured(*other), found)


def test_losses_of_maps_are_averaged_over_images_where_pixels_are_masked():
    mask = np.random.default_rng(0).random((4, 2, 2)) < 0.5
    mask[0], mask[1, 0, 0] = False, True
    student, teacher = featured((4, 2, 2), 1), featured((4, 2, 2), 2)
    objective = combine(
        {
            "at": terms.of(losses.attention_transfer_loss, student="f", teacher="f"),
            "sp": terms.of(losses.similarity_preserving_loss, student="f", teacher="f"),
            "soft": terms.soft_targets(),
        },
        {"at": 1.0, "sp": 1.0, "soft": 1.0},
    )
    none = {"at": {}, "sp": {}, "soft": {}}
    _, _, metrics = objective.apply(none, none, TermInputs({}, student, teacher, mask))
    one, two, some = student.features["f"], teacher.features["f"], mask.any((1, 2))
    expected = {
        "at": losses.attention_transfer_loss(one, two)[some].mean(),
        "sp": losses.similarity_preserving_loss(one, two, mask=some)[some].mean(),
        "soft": losses.soft_target_loss(student.logits, teacher.logits)[mask].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.divide(*metrics[f"loss/{name}"]), value, rtol=1e-5)
