"""The paper's experiments, tried on the embedded digits; what their helpers compute."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scripts

from experiments.hinton2015 import all as everything
from experiments.hinton2015 import (
    gradient,
    networks,
    regulariser,
    report,
    teacher,
    temperature,
    unseen_digit,
)
from experiments.hinton2015.study import (
    Claim,
    Findings,
    Recipe,
    StudySettings,
    claim_rows,
    opened,
    write,
)
from kdjax import checkpoint, data, models
from kdjax.loop import Stopped
from kdjax.runs import evaluation, workdir
from kdjax.runs.numbers import mean_and_deviation

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    name for name in report.SECTIONS if (Path(report.__file__).parent / f"{name}.py").exists()
]


def run(name, *args, check=True):
    return scripts.run(f"experiments.hinton2015.{name}", *args, check=check)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """All scripts, in trial form, in one work directory."""
    workdir = tmp_path_factory.mktemp("hinton2015")
    first = {name: run(name, "--quick", "--workdir", workdir).stdout for name in SCRIPTS[:-1]}
    rest = run("all", "--quick", "--workdir", workdir).stdout
    return workdir, {**first, SCRIPTS[-1]: rest}


@pytest.mark.slow
def test_every_script_leaves_a_result_and_a_page(tried):
    workdir, outputs = tried
    for name in SCRIPTS:
        result = json.loads((workdir / name / "result.json").read_text())
        assert result["claims"] and result["notes"][0].startswith("A trial, of few steps")
        assert ">wanted</th>" not in (workdir / name / "report.html").read_text()
        assert result["facts"]["Command"].startswith(f"python -m experiments.hinton2015.{name}")
        for claim in result["claims"]:
            assert np.all(np.isfinite(claim["ours"])), claim
            assert claim["bar"] is None and claim["paper"] == "", "a trial has no bars"
        for figure in result["figures"]:
            assert (workdir / name / f"{figure}.png").stat().st_size > 1000
        assert result["title"] in (workdir / name / "report.html").read_text()
        assert "report:" in outputs[name]


@pytest.mark.slow
def test_a_finished_script_reads_what_it_trained(tried):
    workdir, outputs = tried
    again = run("gradient", "--quick", "--workdir", workdir).stdout
    assert "steps in" in outputs["gradient"] and "steps in" not in again
    assert again.splitlines()[-5:] == outputs["gradient"].splitlines()[-5:]


@pytest.mark.slow
def test_all_does_what_is_left(tried):
    workdir, outputs = tried
    rest = outputs[SCRIPTS[-1]]
    assert f"finished already: {', '.join(SCRIPTS[:-1])}\n" in rest
    assert f"to do: {SCRIPTS[-1]}; a trial" in rest and f"page: {workdir}" in rest
    again = run("all", "--quick", "--workdir", workdir).stdout
    assert "to do" not in again and "steps in" not in again


def test_all_states_its_time_and_the_command_of_a_section(tmp_path):
    whole = everything.Settings()
    assert set(everything.MINUTES) == set(SCRIPTS)
    assert everything.duration(whole, SCRIPTS).startswith("about 7.1 hours")
    narrow = dataclasses.replace(whole, widths=(30, 100, 300))
    assert everything.duration(narrow, ["temperature"]).startswith("about 0.5 hours")
    wide = dataclasses.replace(whole, widths=(800,))
    assert everything.duration(wide, ["temperature"]).startswith("about 1.5 hours")
    half = dataclasses.replace(wide, temperatures=(8, 20, 40, 8))
    assert everything.duration(half, ["temperature"]).startswith("about 0.7 hours")
    command = (
        "python -m experiments.hinton2015.all --data.dir /d --teacher f --sections mnist record"
    )
    own = "python -m experiments.hinton2015"
    assert everything.command_of("mnist", command) == f"{own}.mnist --data.dir DIR"
    last = "regulariser_cifar100"
    expected = f"{own}.{last} --data.dir DIR --teacher FILE"
    assert everything.command_of(last, command) == expected
    command = f"{command} --widths 30 800 --temperatures 8 2.5 --quick"
    assert everything.command_of(last, command) == f"{expected} --quick"
    expected = f"{own}.temperature --data.dir DIR --widths 30 800 --temperatures 8 2.5 --quick"
    assert everything.command_of("temperature", command) == expected
    asked = dataclasses.replace(whole, sections=("mnist", "mnits"), workdir=tmp_path)
    with pytest.raises(ValueError, match="--sections: no mnits; there are mnist, record"):
        everything.run(asked, command, lambda: False)


def test_some_temperatures_are_judged_by_what_there_is():
    errors = {w: np.array([[20.0, 30.0], [22.0, 33.0]]) for w in (30, 300)}
    high = temperature.claims(errors, (8.0, 20.0))
    best, other, over = high
    assert (best.what, best.ours) == ("best temperature, 30 units", (8.0,))
    assert other.what == "best temperature, 300 units"
    assert over.what == "T = 20 over T = 8, 300 units"
    np.testing.assert_allclose(over.ours, (10, 10))
    (table,) = temperature.intervals(high)
    assert [row[:2] for row in table.rows] == [(over.what, "+10.0 %")]
    low = temperature.claims(errors, (4.0, 20.0))
    assert [c.what for c in low[1:]] == [
        "T = 20 over 2.5 to 4, 30 units",
        "best temperature, 300 units",
    ]
    none = temperature.claims({100: errors[30]}, (8.0, 20.0))
    assert temperature.intervals(none) == []


@pytest.mark.slow
def test_report_collects_all(tried, tmp_path):
    workdir, _ = tried
    results = tmp_path / "RESULTS.md"
    results.write_text(f"# Results\n\n{report.BEGIN}\nSTALE\n{report.END}\n\nafter\n")
    run("report", "--workdir", workdir, "--page", tmp_path / "page.html", "--results", results)
    text, page = results.read_text(), (tmp_path / "page.html").read_text()
    assert text.startswith("# Results") and text.endswith("\n\nafter\n") and "STALE" not in text
    assert text.count("### Section") == page.count("<h2>Section") == len(SCRIPTS)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_report_leaves_what_it_has_not_found(tmp_path):
    claim = Claim("right", "1 %", (2.0, 4.0), unit="%", bar=1.0, at_least=True)
    facts = {"Commit": "c", "Device": "d", "Training time": "1 s"}
    command = {"Command": "python -m experiments.hinton2015.ensemble --data.dir DIR"}
    result = {
        "title": "Section 4: new",
        "section": "ensemble",
        "claims": [dataclasses.asdict(claim)],
        "tables": [],
        "figures": {},
        "notes": ["<em>once</em> &amp; again"],
        "facts": facts | command,
    }
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "result.json").write_text(json.dumps(result))
    old = "\n\n".join(
        f"### Section {number}: old\n\n`python -m experiments.hinton2015.{name} --x`\n\ntext"
        for number, name in ((6, "regulariser"), (4, "ensemble"), (3, "mnist"))
    )
    results, summary = tmp_path / "RESULTS.md", tmp_path / "README.md"
    results.write_text(f"{report.BEGIN}\n\n{old}\n\n{report.END}\n")
    rows = (
        "| `mnist` | a | 1 | **2** |\n| `mnist` | b | 3 | **4** |\n| `ensemble` | c | 5 | **6** |"
    )
    summary.write_text(f"{report.BEGIN}\n\n| h |\n| - |\n{rows}\n\n{report.END}\nafter")
    for _ in range(2):
        report.run(report.Settings(workdir=tmp_path, results=results, summary=summary))
        headings = re.findall("### (.*)", results.read_text())
        assert headings == ["Section 3: old", "Section 4: new", "Section 6: old"]
        assert summary.read_text().split("\n")[2:-3] == [
            "| script | what | paper | kdjax |",
            "| --- | --- | --- | --- |",
            "| `mnist` | a | 1 | **2** |",
            "| `mnist` | b | 3 | **4** |",
            "| `ensemble` | right | 1 % | **3.0 ± 1.4 %** |",
        ]


@pytest.fixture
def one_result(tmp_path):
    """A work directory with one result, as a script would have written it."""
    claim = Claim("right", "1 %", (2.0, 4.0), unit="%", bar=1.0, at_least=True)
    facts = {"Commit": "c", "Device": "d", "Training time": "1 s", "Command": "python"}
    of = {"title": "Section 4: new", "section": "ensemble", "facts": facts}
    result = {**of, "claims": [dataclasses.asdict(claim)], "tables": [], "figures": {}, "notes": []}
    (tmp_path / "ensemble").mkdir()
    path = tmp_path / "ensemble" / "result.json"
    workdir.write_json(path, workdir.sealed(result))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: b"\xff",
        lambda content: content[:-40],
        lambda content: content.replace(b"4.0", b"1.0"),
        lambda content: content.replace(b"4.0", b"1.0").replace(b"sha256", b"sha255"),
        lambda content: b'{"section": "ensemble"}',
        lambda content: b'{"section": "ensemble", "claims": [{}]}',
        lambda content: json.dumps({**json.loads(content), "section": "mnist"}).encode(),
        lambda content: b'{"section": "mnist"}',
    ],
)
def test_a_damaged_result_is_one_line(one_result, damage):
    one_result.write_bytes(damage(one_result.read_bytes()))
    with pytest.raises(
        ValueError, match=r"result\.json is damaged .*: run python -m .*ensemble"
    ) as e:
        report.run(report.Settings(workdir=one_result.parents[1]))
    assert "\n" not in str(e.value)


def test_a_file_of_the_users_is_replaced_whole_and_in_its_own_lines(one_result, monkeypatch):
    results = one_result.parents[1] / "RESULTS.md"
    whole = f"a\r\n{report.BEGIN}\n{report.END}\r\nb\r\n".encode()
    results.write_bytes(whole)
    settings = report.Settings(workdir=one_result.parents[1], results=results)

    def fail(path, content):
        if path == results:
            raise OSError("cannot write")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cannot write"):
        patch.setattr(workdir, "write_whole", fail)
        report.run(settings)
    assert results.read_bytes() == whole
    report.run(settings)
    found = results.read_bytes()
    assert found.startswith(b"a\r\n<!--") and found.endswith(b"-->\r\nb\r\n")
    assert b"3.0 \xc2\xb1 1.4" in found
    results.write_bytes(b"\xff" + whole)
    with pytest.raises(ValueError, match=r"RESULTS\.md .*expected text in UTF-8"):
        report.run(settings)


def test_wrong_use_is_one_line(tmp_path):
    missing = run("report", "--workdir", tmp_path, check=False)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert "holds no results" in missing.stderr
    wrong = run("mnist", "--quick", "--num-seeds", "0", check=False)
    assert wrong.returncode == 2 and "--num-seeds must be positive" in wrong.stderr


def make_study(tmp_path, stop_fn=lambda: False):
    settings = StudySettings(workdir=tmp_path, quick=True)
    return opened(settings, "test", "digits", stop_fn)


def train(study, seeds=(0, 1)):
    recipe = Recipe(epochs=10, batch_size=64)
    spec = networks.mlp_spec(study, (8,), dropout=0.2)
    cohort = networks.Cohort(study, spec, recipe, study.train._asdict(), seeds)
    return networks.train(cohort, "group")


@pytest.mark.slow
def test_interrupted_group_ends_in_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(make_study(tmp_path / "a"))
    with pytest.raises(Stopped):
        train(make_study(tmp_path / "b", lambda: True))
    assert (tmp_path / "b" / "group" / "state").exists()
    resumed = train(make_study(tmp_path / "b"))
    for ours, theirs in zip(
        jax.tree.leaves(whole.variables), jax.tree.leaves(resumed.variables), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_group_whose_asking_is_gone_is_not_taken(tmp_path):
    with pytest.raises(Stopped):
        train(make_study(tmp_path, lambda: True))
    (tmp_path / "group" / "asked.json").unlink()
    with pytest.raises(ValueError, match=r"has no asked\.json to tell whose its state is"):
        train(make_study(tmp_path))


def test_a_group_begun_for_another_directory_does_not_go_on(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with pytest.raises(Stopped):
            train(make_study(tmp_path / name, lambda: True))
    shutil.rmtree(tmp_path / "b" / "group" / "state")
    shutil.copytree(tmp_path / "a" / "group" / "state", tmp_path / "b" / "group" / "state")
    with (
        pytest.warns(checkpoint.CheckpointWarning),
        pytest.raises(checkpoint.CheckpointError, match=r"its run is .*: delete that folder"),
    ):
        train(make_study(tmp_path / "b"))


def test_networks_are_measured_on_the_data_that_they_were_trained_for(tmp_path, monkeypatch):
    make_study(tmp_path)
    load = data.load

    def other(*args, **kwargs):
        found = load(*args, **kwargs)
        return found._replace(test=found.test._replace(label=found.test.label[::-1]))

    monkeypatch.setattr(data, "load", other)
    with pytest.raises(ValueError, match=r"the data\.test\.labels was "):
        make_study(tmp_path)


def test_a_work_directory_of_distill_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"to tell whose its config\.json is"):
        make_study(tmp_path)


def test_tables_name_the_commit_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "commit", lambda: "aaa")
    train(make_study(tmp_path))
    monkeypatch.setattr(workdir, "commit", lambda: "bbb")
    study = make_study(tmp_path)
    train(study)
    write(study, "Title", Findings([Claim("right", "", (1.0,))]), command="python")
    facts = json.loads((tmp_path / "test" / "result.json").read_text())["facts"]
    assert facts["Commit"] == "aaa" and facts["Training began"].startswith("20")


def test_group_of_another_recipe_is_not_reused(tmp_path):
    train(make_study(tmp_path))
    with pytest.raises(ValueError, match="trained otherwise"):
        train(make_study(tmp_path), seeds=(0,))


def distil(study, name, teacher_logits):
    examples = {**study.train._asdict(), "teacher_logits": teacher_logits}
    spec, recipe = networks.mlp_spec(study, (8,)), Recipe(epochs=2, batch_size=64)
    cohort = networks.Cohort(study, spec, recipe, examples, [0])
    return networks.distil(cohort, name, temperature=4.0)


def test_students_of_another_teacher_are_not_reused(tmp_path):
    study = make_study(tmp_path)
    logits = np.random.default_rng(0).normal(size=(len(study.train.label), 10)).astype(np.float32)
    distil(study, "student", logits)
    distil(study, "student", logits * np.float32(1 + 1e-6))  # as another device computes them
    with pytest.raises(ValueError, match="trained otherwise"):
        distil(study, "student", logits + 1)


def test_an_interrupted_group_does_not_go_on_with_another_recipe(tmp_path):
    with pytest.raises(Stopped):
        train(make_study(tmp_path, lambda: True))
    with pytest.raises(ValueError, match="trained otherwise"):
        train(make_study(tmp_path), seeds=(0, 5))


def test_a_group_whose_write_was_cut_short_goes_on(tmp_path):
    (tmp_path / "group" / "trained" / "0.unfinished" / "arrays").mkdir(parents=True)
    assert networks.kept(tmp_path / "group" / "trained") is None
    assert len(jax.tree.leaves(train(make_study(tmp_path)).variables)) == 4
    (tmp_path / "group" / "asked.json").unlink()
    with pytest.raises(ValueError, match=r"no asked\.json to tell whose its trained/0 is"):
        train(make_study(tmp_path))


def test_two_runs_do_not_train_one_group(tmp_path):
    held = "import sys, time; from kdjax import checkpoint\n"
    held += "with checkpoint.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", held, str(tmp_path / "group")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(checkpoint.InUse, match="is in use by process"):
            train(make_study(tmp_path))
        other.kill()


@pytest.mark.slow
def test_a_learning_curve_survives_an_interruption(tmp_path):
    def learn(folder, stop_fn):
        folder.mkdir(exist_ok=True)
        study = make_study(folder, stop_fn)
        few = regulariser.pick_few(study)
        examples = {key: x[few] for key, x in study.train._asdict().items()}
        recipe, spec = Recipe(epochs=200, batch_size=16), networks.mlp_spec(study, (8,))
        cohort = networks.Cohort(study, spec, recipe, examples, [0, 1])
        return regulariser.learn(cohort, "curve", few, None)

    whole = learn(tmp_path / "a", lambda: False)
    for _ in range(3):
        with pytest.raises(Stopped):
            learn(tmp_path / "b", lambda: True)
    resumed = learn(tmp_path / "b", lambda: False)
    assert len(whole.steps) > 4 and resumed.steps == whole.steps
    np.testing.assert_array_equal(resumed.test, whole.test)
    assert resumed.stopped_early() == whole.stopped_early()
    (tmp_path / "b" / "curve" / "curve.json").unlink()
    with pytest.raises(FileNotFoundError, match="to train again"):
        learn(tmp_path / "b", lambda: False)


def test_numbers_are_written_before_figures_are_drawn(tmp_path, capsys):
    def draw():
        raise RuntimeError("no ink")

    claim = Claim("right", "", (float("nan"), 2.0))
    found = Findings([claim], figures={"lines": (draw, "Lines.")})
    study = make_study(tmp_path)
    with pytest.raises(RuntimeError, match="no ink"):
        write(study, "Title", found, command="python")
    result = json.loads((tmp_path / "test" / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["claims"][0]["ours"] == [None, 2.0]
    assert "right" in capsys.readouterr().out
    assert claim_rows(result)[0][2] == "nan"


def test_members_do_not_depend_on_their_company(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pair, single = train(make_study(tmp_path / "a")), train(make_study(tmp_path / "b"), seeds=(1,))
    for ours, theirs in zip(
        jax.tree.leaves(pair.member(1)), jax.tree.leaves(single.member(0)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


def test_claims_are_judged_by_their_mean():
    assert Claim("", "", (70.0, 80.0), bar=75.0).met
    assert not Claim("", "", (70.0, 82.0), bar=75.0).met
    assert Claim("", "", (81.0,), bar=80.0, at_least=True).met
    assert Claim("", "", (81.0,)).met is None


def test_mean_and_deviation():
    assert mean_and_deviation([141.0]) == "141"
    assert mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_deviation([0.001, 0.002]) == "0.0015 ± 0.0007"


def test_best_offset_is_the_middle_of_the_best():
    logits = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, -4.0]], np.float32)
    labels = np.array([2, 2, 1])
    found = unseen_digit.best_offset(logits, labels, [2])
    np.testing.assert_allclose(found, [0, 0, 3.0], atol=0.06)


def test_mean_of_is_the_mean_of_softened_probabilities():
    logits = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32) * 4
    softened = np.exp(evaluation.mean_of(logits, 2.0) / 2)
    parts = np.exp(logits / 2) / np.exp(logits / 2).sum(-1, keepdims=True)
    np.testing.assert_allclose(softened / softened.sum(-1, keepdims=True), parts.mean(0), rtol=1e-5)


def test_copies_are_answered_as_the_teacher_answers_them(tmp_path):
    study = make_study(tmp_path)
    inside = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1))
    images = np.pad(inside, ((0, 0), (3, 3), (3, 3), (0, 0))).astype(np.uint8)
    spec = networks.mlp_spec(study, (16,))
    model = models.build(spec)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    none = np.zeros((0, 10), np.float32)
    big = teacher.Trained(study.run, model, variables, none, none, none, around=1)
    copied = big.answered_shifts({"image": images, "label": np.arange(3)}, max_shift=1)
    assert copied["image"].shape == (27, 8, 8, 1)
    np.testing.assert_array_equal(copied["label"], np.tile(np.arange(3), 9))
    expected = teacher.look_around(study.run, model, variables, copied["image"], max_shift=1)
    softened, wanted = (
        jax.nn.softmax(z / teacher.TEMPERATURE) for z in (copied["teacher_logits"], expected)
    )
    np.testing.assert_allclose(softened, wanted, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01


def test_gradient_approaches_its_limit_and_keeps_its_scale():
    rng = np.random.default_rng(1)
    z, v = rng.normal(size=(2, 50, 10)).astype(np.float32) * 3
    measured = gradient.measure(z, v, rng.integers(0, 10, 50))
    errors = measured["error"]
    assert errors[-1] < 0.01 < 0.1 < errors[0]
    np.testing.assert_allclose(errors[-2] / errors[-1], 2, rtol=0.1)
    np.testing.assert_allclose(measured["scaled"][-1] / measured["scaled"][-3], 1, rtol=0.02)
    np.testing.assert_allclose(measured["scale"][-2] / measured["scale"][-1], 4, rtol=0.02)


def test_share_recovered():
    np.testing.assert_allclose(
        regulariser.recovered((110.0, 90.0), (40.0, 10.0), (10.0,)), (60 / 0.9, 100.0)
    )
