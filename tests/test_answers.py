"""What is said of test examples one by one, of every task."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from kdjax import data, metrics, models, sharding
from kdjax.runs import answers, evaluation, tasks, teaching

RNG = np.random.default_rng(0)
NUM = 40
PIXELS = RNG.integers(-1, 3, (NUM, 4, 4))
SEVERAL = RNG.integers(0, 2, (NUM, 3))
SEVERAL[::2, 0] = data.NO_LABEL
NUMBERS = RNG.normal(5, 3, (NUM, 1)).astype(np.float32)
CLASSES = RNG.integers(0, 2, NUM)


def said(monkeypatch, task, labels, shape, *, phases=("scratch", "distilled")):
    """Ask invented students, of two seeds each; the last is the best."""
    students = [
        (phase, SimpleNamespace(model=None, variables=RNG.normal(seed + i, size=(NUM, *shape))))
        for seed in range(2)
        for i, phase in enumerate(phases)
    ]  # fmt: skip
    monkeypatch.setattr(evaluation, "logits_fn", lambda model, variables: lambda batch: variables)
    monkeypatch.setattr(evaluation, "answers", lambda run, answer_fn, test: answer_fn(test))
    test = SimpleNamespace(label=labels, _asdict=dict)
    experiment = SimpleNamespace(
        run=None,
        dataset=SimpleNamespace(test=test),
        task=tasks.SINGLE_LABEL._replace(name=task),
    )
    teacher = SimpleNamespace(test={"teacher_logits": RNG.normal(size=(NUM, *shape))})
    return students, teacher, answers.of(experiment, teacher, students, students[-1][1])


@pytest.mark.parametrize(
    ("task", "labels", "shape"),
    [
        ("single-label", CLASSES, (2,)),
        ("binary", CLASSES, (1,)),
        ("multi-label", SEVERAL, (3,)),
        ("pixels", PIXELS, (4, 4, 3)),
        ("regression", NUMBERS, (1,)),
        ("embeddings", CLASSES, (5,)),
    ],
)
def test_every_task_has_a_gain_with_an_interval(monkeypatch, task, labels, shape):
    students, teacher, found = said(monkeypatch, task, labels, shape)
    logits = [network.variables for _, network in students]
    best = logits[-1].argmax(-1) if task == "pixels" else logits[-1]
    np.testing.assert_array_equal(found.best, best)
    every = np.ones(NUM, bool)
    # The same mean by the measures of the library.
    measured = {
        "single-label": lambda z: 100 * (z.argmax(-1) == labels).mean(),
        "binary": lambda z: 100 * ((z[:, 0] > 0) == labels).mean(),
        "multi-label": lambda z: 100 * np.mean(
            [(z[i] > 0)[y >= 0].__eq__(y[y >= 0]).mean() for i, y in enumerate(labels)]
        ),
        "pixels": lambda z: 100 * np.mean(
            [(z[i].argmax(-1) == y)[y >= 0].mean() for i, y in enumerate(labels)]
        ),
        "regression": lambda z: metrics.value(
            metrics.r_squared(z.astype(np.float32), labels, every)
        ),
        "embeddings": lambda z: np.mean(
            [a @ b / np.linalg.norm(a) / np.linalg.norm(b)
             for a, b in zip(z, teacher.test["teacher_logits"], strict=True)]
        ),
    }[task]  # fmt: skip
    scratch, distilled = (np.mean([measured(z) for z in logits[i::2]]) for i in (0, 1))
    said_of = float(found.gain.split(": ")[1].split()[0])
    assert said_of == pytest.approx(distilled - scratch, abs=0.006)
    assert f"the {NUM} test examples and the 2 seeds" in found.gain
    of_classes = task in ("single-label", "binary")
    assert [*found.judged] == (["teacher", "scratch", "distilled"] if of_classes else [])


def test_without_labels_there_is_no_gain(monkeypatch):
    _, _, found = said(monkeypatch, "embeddings", np.zeros((NUM, 0)), (5,), phases=["distilled"])
    assert found.gain == ""


def test_the_students_shown_are_a_pair(monkeypatch):
    students, _, found = said(monkeypatch, "single-label", CLASSES, (2,))
    scratch = students[2][1].variables
    np.testing.assert_array_equal(found.judged["scratch"].correct, scratch.argmax(-1) == CLASSES)
    assert {*answers._SCORES} == {*tasks.LABELS_FNS}


@pytest.mark.parametrize("most", [0, 2**28])
def test_a_teacher_answers_whether_it_is_kept_or_not(most, monkeypatch):
    monkeypatch.setattr(teaching, "MOST_KEPT", most)
    monkeypatch.setattr(evaluation, "EVAL_BATCH_SIZE", 16)
    model = models.from_linen(nn.Dense(2))
    images, mesh = RNG.normal(size=(NUM, 3)).astype(np.float32), sharding.make_mesh()
    network = models.Network(
        SimpleNamespace(num_classes=2), model, model.init(jax.random.key(0), images)
    )
    test = data.Examples(images, CLASSES)
    experiment = SimpleNamespace(
        run=evaluation.Run(None, mesh, None, None),
        dataset=SimpleNamespace(validation=data.take(test, np.zeros(0, int)), test=test),
        task=tasks.SINGLE_LABEL,
        stored_logits=None,
    )
    teacher = teaching.answered(experiment, network)
    assert callable(teacher.test["teacher_logits"]) == (most == 0)
    students = [("scratch", network), ("distilled", network)]
    found = answers.of(experiment, teacher, students, network)
    np.testing.assert_allclose(found.teacher, images @ network.variables.params["kernel"], 1e-5)
    np.testing.assert_array_equal(found.teacher, found.best)
    eval_step = tasks.eval_step(tasks.SINGLE_LABEL, model)
    measured = evaluation.measure(experiment.run, eval_step, network.variables, teacher.test)
    assert metrics.value(measured["agreement"]) == 1 and measured["agreement"][1] == NUM
