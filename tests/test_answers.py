"""What is said of test examples one by one, of every task."""

from types import SimpleNamespace

import numpy as np
import pytest

from kdjax import data, metrics
from kdjax.runs import answers, evaluation, tasks

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
    monkeypatch.setattr(evaluation, "predict", lambda run, model, variables, test: variables)
    test = SimpleNamespace(label=labels, _asdict=dict)
    experiment = SimpleNamespace(
        run=None,
        dataset=SimpleNamespace(test=test),
        task=SimpleNamespace(name=task, of_classes=task in ("single-label", "binary")),
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
    assert found.best is logits[-1]
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
