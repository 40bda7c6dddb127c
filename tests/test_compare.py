"""Comparing methods: what is trained, what is chosen on which examples, what is written."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripts

from kdjax import loop, metrics, models
from kdjax.data import Examples
from kdjax.runs import compare, flags, presets, teaching, training, workdir
from kdjax.runs.compare import Entry, Trial

ROOT = Path(__file__).parents[1]


def run(*flags):
    return scripts.run("experiments.compare", *flags)


@pytest.mark.slow
def test_a_comparison_is_written_and_goes_on(tmp_path):
    flags = ["--epochs", "2", "--teacher.epochs", "2", "--num-best", "1", "--num-seeds", "2"]
    flags += ["--scales", "3", "--workdir", tmp_path]
    done = run("--methods", "kd", "rkd", *flags)
    assert done.returncode == 0, done.stderr
    entries = {e.method: e for e in compare.read(tmp_path / "comparison.json")}
    assert set(entries) == {"scratch", "kd", "rkd"}
    assert sorted(len(e.last) for e in entries.values()) == [1, 2, 2]
    assert all(0 <= x <= 100 for e in entries.values() for x in (*e.last, *e.best, *e.validation))
    assert all(b >= x for e in entries.values() for b, x in zip(e.best, e.last, strict=True))
    assert re.search(r"<td[^>]*>[+-][\d.]+ to [+-]", (tmp_path / "report.html").read_text())
    best = max((e for e in entries.values() if e.method != "scratch"), key=lambda e: e.validation)
    assert f"student: {tmp_path / 'student'}, of {best.method}" in done.stdout
    assert models.load_network(tmp_path / "student").spec.name == "mlp"
    again = run("--methods", "kd", "rkd", *flags)
    assert again.returncode == 0 and " steps in " not in again.stdout
    assert again.stdout.splitlines()[-6:] == done.stdout.splitlines()[-6:]


def test_wrong_use_is_one_line(tmp_path, capsys):
    for args, message in (
        (["--methods", "kd+nothing"], "('nothing' is none; choose from scratch, kd"),
        (["--scales", "0"], "--scales must be positive"),
        (["--num-best", "-1"], "--num-best must be zero or more"),
        (["--data.validation-fraction", "0"], "--num-best must be 0 where --data.validation"),
        (["--methods", "at", "--workdir", tmp_path], "--method at needs feature maps"),
    ):
        assert message in scripts.refusal(compare.main, args, capsys)


def fake(accuracies, trained):
    """Stand in for training: validation accuracy by (method, scale)."""

    def train(experiment, teacher, examples, trial):
        trained.append(trial)
        value = accuracies[trial.method, trial.scale]
        count = len(trial.seeds)
        # The test set prefers what validation does not.
        return Entry(trial.method, trial.scale, (100 - value,) * count, (99.0,) * count,
                     (value,) * count)  # fmt: skip

    return train


def test_the_best_by_validation_are_tuned_and_repeated(monkeypatch):
    trained = []
    accuracies = {("scratch", 1): 50, ("a", 1): 60, ("b", 1): 70, ("c", 1): 65}
    accuracies |= {("b", 3): 69, ("b", 0.3): 71, ("c", 3): 66, ("c", 0.3): 64}
    monkeypatch.setattr(compare, "_train", fake(accuracies, trained))
    monkeypatch.setattr(teaching, "with_answers", lambda *_: {})
    monkeypatch.setattr(teaching, "student_examples", lambda _: {})
    experiment = SimpleNamespace(settings=SimpleNamespace(seed=4, seeds=range(4, 7)))
    entries = compare.train_all(experiment, None, ["a", "b", "c", "b"], num_best=2, scales=(0.3, 3))
    assert trained[:4] == [Trial(name, 1, (4,)) for name in ("scratch", "a", "b", "c")]
    assert {(e.method, e.scale, len(e.last)) for e in entries} == {
        ("scratch", 1, 3), ("a", 1, 1), ("b", 0.3, 3), ("c", 3, 3),
    }  # fmt: skip
    assert [e.method for e in entries] == ["scratch", "a", "c", "b"], "sorted by the test set"


def test_rows_state_the_gain_over_labels_alone():
    entries = [
        Entry("kd", 3.0, (52.0, 54.0), (53.0, 55.0), (50.0, 51.0)),
        Entry("scratch", 1.0, (50.0, 51.0), (50.0, 51.0), (49.0, 49.0)),
    ]
    kd, scratch = compare.rows(entries, {"kd": "+1.00 to +4.00"})
    assert kd == (
        "kd", "x 3", "2", "53.00 ± 1.41", "+2.50", "+1.00 to +4.00", "54.00 ± 1.41", "50.50 ± 0.71",
    )  # fmt: skip
    assert scratch[1] == scratch[4] == scratch[5] == ""


def test_gains_have_intervals_where_the_seeds_are_those_of_labels_alone(tmp_path):
    log, rng = workdir.MetricsLog(tmp_path / "metrics.jsonl"), np.random.default_rng(0)
    rates = {"scratch": (0.6, 0.62), "kd x 3": (0.7, 0.72), "rkd": (0.7,), "at": (0.61, None)}
    right = {}
    for phase, own in rates.items():
        for seed, rate in enumerate(own, 4):
            more = {}
            if rate is not None:
                right[phase, seed] = rng.permutation(301) < rate * 301
                more[compare.RIGHT] = np.packbits(right[phase, seed]).tobytes().hex()
            log.append(phase=phase, seed=seed, step=9, split="finished", **more)
    experiment = SimpleNamespace(
        settings=SimpleNamespace(seeds=range(4, 6)),
        run=Run(log),
        dataset=SimpleNamespace(test=Examples((), np.zeros(301))),
    )
    names = (("scratch", 1.0), ("kd", 3.0), ("rkd", 1.0), ("at", 1.0))
    counts = (2, 2, 1, 2)
    entries = [Entry(*own, *((0.0,) * n,) * 3) for own, n in zip(names, counts, strict=True)]
    both = ([100.0 * right[name, seed] for seed in (4, 5)] for name in ("scratch", "kd x 3"))
    _, low, high = metrics.paired_bootstrap(*both)
    assert compare.intervals(experiment, entries) == {"kd": f"{low:+.2f} to {high:+.2f}"}
    assert 0 < low < 10 < high


@pytest.fixture
def ended(tmp_path):
    """The log of a training of three epochs that has ended."""
    run = Run(workdir.MetricsLog(tmp_path / "metrics.jsonl"))
    for at, test, validation in ((10, 0.3, 0.2), (20, 0.5, 0.1), (30, 0.4, 0.6)):
        own = {"phase": "kd x 3", "seed": 0, "step": at}
        run.log.append(**own, split="test", accuracy=test)
        run.log.append(**own, split="validation", accuracy=validation)
    run.log.append(phase="kd x 3", seed=0, step=30, split=compare.FINISHED)
    return run


TRIAL = Trial("kd", 3.0, (0,))


def test_the_log_tells_the_last_epoch_from_the_best(ended):
    assert compare._entry(ended, TRIAL) == Entry("kd", 3.0, (40.0,), (50.0,), (60.0,))


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize(
    "harm",
    [
        lambda line: b"",
        lambda line: line[: len(line) // 2] + b"\n",
        lambda line: line.replace(b"0.", b"0.9"),
        lambda line: b"\xff" + line,
        lambda line: b"[]\n",
        lambda line: b"null\n",
        lambda line: line + line,
    ],
)
def test_no_figure_stands_in_for_one_that_is_lost(ended, at, harm):
    path = ended.log.path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:at], harm(lines[at]), *lines[at + 1 :]]))
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl has lost lines of kd x 3, seed 0: .*delete"
    ):
        compare._entry(Run(workdir.MetricsLog(path)), TRIAL)


def test_a_lost_line_is_not_made_up_for_by_the_next(ended):
    path = ended.log.path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:-1]]))
    again = Run(workdir.MetricsLog(path))
    again.log.append(phase="kd x 3", seed=0, step=30, split=compare.FINISHED)
    with pytest.raises(ValueError, match="has lost lines"):
        compare._entry(again, TRIAL)
    again.log.rewind("kd x 3", 0, 0)
    assert again.log.rows() == []


def test_the_lines_of_another_run_are_none_of_this_one(ended):
    path = ended.log.path
    for run in ("a1", "b0"):
        workdir.MetricsLog(path, run=run).append(phase="kd", seed=0, step=1, of=run)
        (row,) = (r for r in workdir.MetricsLog(path, run=run).rows() if r["phase"] == "kd")
        assert row["of"] == run
    assert len(workdir.MetricsLog(path).rows()) == 9, "whoever does not ask gets all"


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"entries": [{}]}', '{"entries": 3}'])
def test_a_damaged_comparison_is_one_line(tmp_path, content):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"comparison\.json is damaged .*: run python -m"
    ) as raised:
        compare.read(tmp_path / "comparison.json")
    assert "\n" not in str(raised.value)


def test_a_training_that_diverges_is_tabled_and_not_tried_again(monkeypatch, tmp_path):
    trained, diverging = [], {"a"}

    def train(run, plan, seed):
        trained.append((plan.phase, seed))
        run.log.append(phase=plan.phase, seed=seed, split="test", step=1, accuracy=0.5)
        if plan.phase in diverging:
            raise loop.NonFiniteLoss("the loss is nan at step 2")

    def plan(experiment, teacher, method, examples, *, phase, scale):
        return Plan(phase)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(compare, "_right", lambda experiment, network: "80")
    monkeypatch.setattr(teaching, "plan_method", plan)
    monkeypatch.setattr(teaching, "with_answers", lambda *_: {})
    monkeypatch.setattr(teaching, "student_examples", lambda _: {})
    experiment = SimpleNamespace(
        settings=SimpleNamespace(seed=0, seeds=range(1), epochs=1, on_nonfinite="raise"),
        run=Run(workdir.MetricsLog(tmp_path / "metrics.jsonl")),
        dataset=SimpleNamespace(test=Examples((), ())),
    )
    for _ in range(2):
        entries = compare.train_all(experiment, None, ["a", "b"], num_best=1, scales=())
        assert [e.method for e in entries][-1] == "a"
        assert np.isnan([*entries[-1].last, *entries[-1].best, *entries[-1].validation]).all()
    assert trained == [("scratch", 0), ("a", 0), ("b", 0)]
    assert compare.rows(entries, {})[-1][3:5] == ("nan", "nan")
    experiment.settings.on_nonfinite = "skip"
    diverging.clear()
    for _ in range(2):
        entries = compare.train_all(experiment, None, ["a", "b"], num_best=1, scales=())
        assert all(entry.last == (50.0,) for entry in entries)
    assert trained == [("scratch", 0), ("a", 0), ("b", 0), ("a", 0)], "skipping is another try"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `comparison` looks at of a training."""

    phase: str
    watched: dict = dataclasses.field(default_factory=dict)
    num_steps: int = 2
    batch_size: int = 64

    def network(self, variables):
        return variables


@dataclasses.dataclass(frozen=True)
class Run:
    """What `compare` looks at of a run."""

    log: workdir.MetricsLog
    eval_every: int | None = None


@pytest.mark.parametrize("pair", presets.PAIRS)
def test_the_preset_is_what_the_tables_used(pair):
    given = compare.Settings(preset="repdistiller", pair=pair, num_seeds=5)
    settings = presets.repdistiller(given, pair)
    assert (settings.epochs, settings.batch_size, settings.num_seeds) == (240, 64, 5)
    assert settings.optimizer.name == "sgd" and settings.optimizer.weight_decay == 5e-4
    assert settings.optimizer.nesterov is False
    slow = settings.student.name in ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
    assert settings.optimizer.learning_rate == (0.01 if slow else 0.05)
    assert settings.teacher.learning_rate == 0.05
    assert f"{settings.teacher.name}-{settings.student.name}" == pair
    flags.check(settings)
    compare.check(settings)
    json.dumps(workdir.plain(dataclasses.asdict(settings)))
