"""Language models in a run: what is minimized and measured is what logits would give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import generation, losses, metrics, models, step
from kdjax.runs.language import lessons, networks
from kdjax.runs.language.settings import LanguageSettings
from kdjax.types import TermInputs, Variables

VOCAB, BATCH, LENGTH = 61, 4, 12
RNG = np.random.default_rng(0)
TOKENS, LABEL = (RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32) for _ in range(2))
MASK = RNG.random((BATCH, LENGTH)) < 0.7
BATCHED = {"tokens": TOKENS, "label": LABEL, "mask": MASK}
HIDDEN = {
    name: (RNG.normal(size=(BATCH, LENGTH, width)), RNG.normal(size=(VOCAB, width)))
    for name, width in (("student", 6), ("teacher", 9))
}


def answers(name):
    hidden, head = HIDDEN[name]
    return lessons.answer_of(jnp.float32(hidden), jnp.float32(head))


def logits_of(name):
    hidden, head = HIDDEN[name]
    return jnp.float32(hidden @ head.T)


def of_logits(settings, student, teacher, progress):
    """Return the divergence of the flags by its formula, in float64."""
    t, b, s = settings.temperature, settings.beta, settings.skew

    def softmax(x):
        return np.exp(x - np.logaddexp.reduce(x, -1, keepdims=True))

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    p, q = softmax(teacher / t), softmax(student / t)
    mix = b * p + (1 - b) * q
    r = softmax((1 - progress) * student / t + progress * teacher / t)
    gap = student - teacher
    return {
        "kl": t**2 * kl(p, q),
        "reverse-kl": t**2 * kl(q, p),
        "jsd": t**2 * (b * kl(p, mix) + (1 - b) * kl(q, mix)),
        "skew-kl": t**2 * kl(p, s * p + (1 - s) * q),
        "skew-reverse-kl": t**2 * kl(q, s * q + (1 - s) * p),
        "symmetric-kl": t**2 * (kl(p, q) + kl(q, p)) / 2,
        "total-variation": np.abs(p - q).sum(-1) / 2,
        "taid": -(t**2) * (r * np.log(q)).sum(-1),
        "logit-mse": gap.var(-1),
    }[settings.divergence]


@pytest.mark.parametrize(
    "name",
    ["kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "symmetric-kl", "total-variation",
     "taid", "logit-mse"],
)  # fmt: skip
def test_what_is_minimized_is_the_flags_formula_over_the_tokens_that_count(name):
    settings = LanguageSettings(
        divergence=name, temperature=1.5, soft_weight=0.7, beta=0.3, skew=0.2, chunk_size=7
    )
    objective = lessons.distilled(settings, num_steps=10)
    student, teacher = (HIDDEN[x][0] @ HIDDEN[x][1].T for x in ("student", "teacher"))
    soft = of_logits(settings, student, teacher, 0.4 + 0.6 * 0.3)
    log_probs = student - np.logaddexp.reduce(student, -1, keepdims=True)
    hard = -np.take_along_axis(log_probs, LABEL[..., None], -1)[..., 0]
    for of_data in (1.0, 0.0):
        inputs = TermInputs(
            {**BATCHED, "of_data": of_data}, answers("student"), answers("teacher"), MASK
        )
        loss, _, found = objective.apply({}, {}, inputs, step=3)
        expected = (0.7 * soft + of_data * 0.3 * hard)[MASK].mean()
        np.testing.assert_allclose(loss, expected, rtol=2e-5)
        assert found["loss"][1] == MASK.sum()


@pytest.mark.parametrize("name", ["jsd", "logit-mse"])
def test_what_is_audited_is_what_is_minimized(name):
    settings = LanguageSettings(divergence=name, soft_weight=0.7, beta=0.3)
    given = BATCHED, answers("student"), answers("teacher")
    loss, _, _ = lessons.distilled(settings, num_steps=10).apply({}, {}, TermInputs(*given, MASK))
    objective, (batch, student, teacher) = lessons.of_logits(settings, *given)
    assert student.logits.shape == (BATCH * LENGTH, VOCAB) and {*batch} == {"label", "mask"}
    inputs = TermInputs(batch, student, teacher, jnp.asarray(batch["mask"]))
    same, _, _ = objective.apply(*objective.init(jax.random.key(0), inputs), inputs)
    np.testing.assert_allclose(loss, same, rtol=1e-5)


@pytest.mark.parametrize("size", [BATCH, VOCAB - 1])
def test_micro_batches_are_the_whole_batch_and_leave_heads_alone(size):
    """Of as many rows as there are words, too: a head is no batch."""
    model = models.transformer(size, width=8, depth=1, num_heads=2, features=("norm",))
    tokens = RNG.integers(0, size, (size, 5)).astype(np.int32)
    batch = {"tokens": tokens, "label": tokens[::-1].copy(), "mask": RNG.random((size, 5)) < 0.7}
    teacher = networks.live(networks.Network(model, model.init(jax.random.key(1), tokens)))
    objective = lessons.distilled(LanguageSettings(chunk_size=64), num_steps=4)
    parts = lessons.without_logits(model), objective, optax.sgd(1.0)
    new = []
    for count in (1, 2):
        outputs = teacher.apply(teacher.variables, batch)
        made = step.init_train_state(
            jax.random.key(0), *parts, batch, outputs, inputs_fn=lessons.inputs_of
        )
        train_step = step.make_train_step(
            *parts, num_micro_batches=count, inputs_fn=lessons.inputs_of
        )
        new.append(step.with_teacher(train_step, teacher)(made, batch))
    for x, y in zip(*map(jax.tree.leaves, ((s.params, m) for s, m in new)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_labels_alone_and_parts_of_a_batch():
    objective = lessons.from_labels(5)
    inputs = TermInputs(BATCHED, answers("student"), None, MASK)
    loss, _, _ = objective.apply({}, {}, inputs)
    plain = losses.cross_entropy(logits_of("student"), LABEL)
    np.testing.assert_allclose(loss, plain[MASK].mean(), rtol=1e-5)
    # Half of a batch weighs what it has of the whole.
    half = jax.tree.map(lambda x: x[:2] if len(x) == BATCH else x, inputs)
    part, _, _ = objective.apply({}, {}, half, whole=jnp.asarray(MASK))
    np.testing.assert_allclose(part, plain[:2][MASK[:2]].sum() / MASK.sum(), rtol=1e-5)


MODEL = models.transformer(VOCAB, width=16, depth=1, num_heads=2, context=40, features=("norm",))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), TOKENS)
OTHER = jax.jit(MODEL.init)(jax.random.key(1), TOKENS)


def test_measures_are_those_of_all_logits():
    teacher = networks.live(networks.Network(MODEL, OTHER))
    own = lessons.without_logits(MODEL)
    kept = []
    step = lessons.make_eval_step(
        own, chunk_size=7, teacher=teacher, keep_fn=lambda *own: kept.append(own)
    )
    found = step(VARIABLES, BATCHED)
    z, v = (MODEL.apply(*x, TOKENS, train=False)[0].logits for x in (VARIABLES, OTHER))
    expected = {
        "nll": metrics.nll(z, LABEL, MASK),
        "accuracy": metrics.accuracy(z, LABEL, MASK),
        "agreement": metrics.agreement(z, v, MASK),
        "ece": metrics.calibration(z, LABEL, MASK),
        "kl": metrics.masked_sum(losses.soft_target_loss(z, v, temperature=1.0), MASK),
    }
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        np.testing.assert_allclose(found[name][0], metric[0], rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[name][1], metric[1])
    ((same, tokens),) = kept
    sure, right, counts = np.asarray(tokens).reshape(*LABEL.shape, 3).transpose(2, 0, 1)
    np.testing.assert_allclose(sure, jax.nn.softmax(z).max(-1), rtol=1e-5)
    np.testing.assert_array_equal(right, z.argmax(-1) == LABEL)
    assert same is found and (counts == np.broadcast_to(MASK, counts.shape)).all()


def test_a_step_has_no_logits_and_stored_states_are_the_teacher():
    settings = LanguageSettings(soft_weight=0.5, chunk_size=8)
    own, objective = lessons.without_logits(MODEL), lessons.distilled(settings, num_steps=10)
    parts = own, objective, optax.sgd(0.1)
    live = networks.live(networks.Network(MODEL, OTHER))
    said = jax.jit(live.apply)(live.variables, BATCHED)
    states = np.float16(said.features["hidden"])
    stored = networks.stored(models.head_of(OTHER).kernel)
    assert said.logits.shape == (BATCH, LENGTH, 0)
    new = {}
    for name, teacher, more in (("live", live, {}), ("stored", stored, {"teacher_hidden": states})):
        batch = {**BATCHED, **more}
        outputs = teacher.apply(teacher.variables, batch)
        state = step.init_train_state(
            jax.random.key(0), *parts, batch, outputs, inputs_fn=lessons.inputs_of
        )
        train_step = step.make_train_step(*parts, inputs_fn=lessons.inputs_of)
        new[name], found = step.with_teacher(train_step, teacher)(state, batch)
        assert found.keys() == {"loss"}
    for x, y in zip(*(jax.tree.leaves(new[n].params) for n in ("live", "stored")), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4)


def test_what_a_student_continues_is_its_own_and_judged_behind_the_prompt():
    continued = generation.continued(
        MODEL, VARIABLES, jax.random.key(3), {**BATCHED, "mask": np.ones_like(MASK)},
        prompt_length=5, temperature=1.0,
    )  # fmt: skip
    own, _ = generation.sample(
        MODEL, VARIABLES, jax.random.key(3), TOKENS[:, :5], length=LENGTH - 4, temperature=1.0
    )
    np.testing.assert_array_equal(continued["tokens"], own[:, :-1])
    np.testing.assert_array_equal(continued["label"], own[:, 1:])
    np.testing.assert_array_equal(
        continued["mask"], np.broadcast_to(np.arange(LENGTH) >= 4, (BATCH, LENGTH))
    )
    short = np.arange(LENGTH)[None, :] < np.array([12, 3, 4, 0])[:, None]
    masked = generation.continued(
        MODEL, VARIABLES, jax.random.key(3), {**BATCHED, "mask": short}, prompt_length=5
    )["mask"]
    # A prompt of five tokens is there where four labels are.
    np.testing.assert_array_equal(masked.any(1), [True, False, True, False])
    with pytest.raises(ValueError, match="prompt_length is 13, expected 1 to 12"):
        generation.continued(MODEL, VARIABLES, jax.random.key(3), BATCHED, prompt_length=13)


def test_a_part_of_the_vocabulary_answers_as_all_of_it_does_there():
    kept = np.array([3, 7, 20, 21, 60])
    small = networks.restricted(networks.Network(MODEL, OTHER), kept, None)
    assert small.variables.params["tokens"]["embedding"].shape == (5, 16)
    tokens = np.array([[0, 2, 4, 1]])
    few = small.model.apply(*small.variables, tokens, train=False)[0].logits
    every = MODEL.apply(*OTHER, kept[tokens], train=False)[0].logits
    np.testing.assert_allclose(few, every[..., kept], atol=1e-6)


def test_a_student_with_the_teachers_table_leaves_it_alone():
    settings = LanguageSettings()
    own = dataclasses.replace(settings.student, embedding="teacher", width=8, num_heads=2)
    settings = dataclasses.replace(settings, student=own)
    student = networks.student_of(settings, VOCAB, networks.Network(MODEL, OTHER))
    parts = lessons.without_logits(student.model), lessons.from_labels(8), optax.adam(0.1)
    state = step.init_train_state(
        jax.random.key(0), *parts, BATCHED, None,
        variables=student.start, inputs_fn=lessons.inputs_of,
    )  # fmt: skip
    table = models.head_of(OTHER).kernel
    new, _ = step.make_train_step(*parts, inputs_fn=lessons.inputs_of)(state, BATCHED, None)
    variables = Variables(new.params["student"], new.model_state)
    np.testing.assert_array_equal(models.head_of(variables).kernel, table)
    assert models.num_params(variables.params) < table.size + 3000
    few = networks.restricted(networks.Network(student.model, variables), np.arange(5), None)
    assert models.head_of(few.variables).kernel.shape == (5, 16)
