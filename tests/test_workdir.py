"""Whose a work directory is: by content and not by path, and nothing of it is taken on trust."""

import dataclasses
import json
import os
import shutil
import stat

import jax
import numpy as np
import pytest
import sets

from experiments import online
from kdjax import data, models
from kdjax.runs import (
    compare,
    data_free,
    distill,
    experiment,
    fingerprints,
    generations,
    processes,
    workdir,
)
from kdjax.runs.settings import DataSettings, NetworkSettings, TeacherSettings

SCRIPTS = [distill, compare, generations, data_free, online]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sets of one name and shape in folders of their own; `moved` holds the same as `here`."""
    root = tmp_path_factory.mktemp("sets")

    def prepare(folder, *, train=0, test=1, version="1.0.0", classes=3):
        splits = {
            "train": sets.rows(40, seed=train, classes=classes),
            "test": sets.rows(9, seed=test),
        }
        sets.prepare(root / folder, splits, version=version)

    prepare("here")
    shutil.copytree(root / "here", root / "moved")
    prepare("images", train=5)
    prepare("labels", classes=2)
    prepare("test", test=5)
    prepare("version", version="2.0.0")
    return root


@pytest.fixture(scope="module")
def teacher(folders):
    """A teacher's folder, that of another and a copy of the first."""
    spec = models.NetworkSpec("mlp", (4,), 3, (6, 5, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    for seed, name in enumerate(("teacher", "another")):
        model = models.build(spec)
        variables = model.init(jax.random.key(seed), np.zeros((1, 6, 5, 3), np.uint8))
        models.save_network(folders / name, spec, variables)
    shutil.copytree(folders / "teacher", folders / "copied")
    return folders


def settings(script, folder, directory, **own):
    return script.Settings(
        data=DataSettings(name="toy", dir=folder), workdir=directory, batch_size=8, **own
    )


def opened(asked):
    """Open an experiment; return what it decided of the directory."""
    with experiment.opened(asked) as found:
        return found.run.claim


def refusal(asked):
    with pytest.raises(ValueError) as raised:
        opened(asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_data_may_move_and_not_change(script, folders, tmp_path):
    first = opened(settings(script, folders / "here", tmp_path))
    assert first == workdir.Claim(tmp_path / "config.json", False, first.run)
    assert len(first.run) == 16
    again = opened(settings(script, folders / "moved", tmp_path))
    assert again == first._replace(resumed=True)
    for other, name in (
        ("images", "data.train.images"),
        ("labels", "data.train.labels"),
        ("test", "data.test.images"),
        ("version", "data.version"),
    ):
        error = refusal(settings(script, folders / other, tmp_path))
        assert f"{tmp_path} holds a run on other content: the {name} was " in error


def test_a_set_that_streams_has_a_fingerprint_too(folders):
    found = [
        fingerprints.of_data(data.load("toy", data_dir=folders / name, streaming=True))
        for name in ("here", "moved", "images", "labels", "test")
    ]
    assert found[0] == found[1]
    assert [one == found[0] for one in found[2:]] == [False] * 3
    assert found[0]["train"]["labels"] != found[3]["train"]["labels"]
    assert found[0]["train"]["examples"] == 36


def test_every_label_counts_where_labels_are_in_memory(folders):
    whole = data.load("toy", data_dir=folders / "here")
    label = whole.train.label.copy()
    label[17] = (label[17] + 1) % 3
    other = whole._replace(train=whole.train._replace(label=label))
    assert fingerprints.of_data(whole) != fingerprints.of_data(other)


def test_of_many_large_images_some_are_read():
    # A view of one image: to read all would take minutes.
    image = np.broadcast_to(np.zeros((1, 256, 256, 3), np.uint8), (10**6, 256, 256, 3))
    split = data.Examples(image, np.zeros(10**6, np.int32))
    found = fingerprints._of_split(split, 2**24)
    assert found["examples"] == 10**6


def test_a_teacher_may_move_and_not_change(teacher, tmp_path):
    def asked(name):
        of = TeacherSettings(checkpoint=name and teacher / name)
        return settings(distill, teacher / "here", tmp_path, teacher=of)

    run = opened(asked("teacher")).run
    assert opened(asked("copied")) == (tmp_path / "config.json", True, run)
    assert "holds a run on other content: the teacher was " in refusal(asked("another"))
    assert "--teacher.checkpoint was " in refusal(asked(None))


def test_more_data_is_the_reason_and_not_what_follows_from_it(folders, tmp_path):
    opened(settings(distill, folders / "here", tmp_path))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["sha256"]
    config["data"]["student_examples"] -= 1
    config["content"]["data"]["train"]["images"] = "other"
    path.write_text(json.dumps(workdir.sealed(config)))
    error = refusal(settings(distill, folders / "here", tmp_path))
    assert "holds a run on other content: the data.train.images was other" in error


def test_another_setting_is_refused_before_content(folders, tmp_path):
    opened(settings(distill, folders / "here", tmp_path))
    error = refusal(settings(distill, folders / "images", tmp_path, temperature=2.0))
    assert "--temperature was 4.0, is now 2.0" in error


@pytest.mark.parametrize("script", SCRIPTS[1:], ids=lambda script: script.__name__)
def test_a_directory_of_another_script_is_refused(script, folders, tmp_path):
    opened(settings(script, folders / "here", tmp_path / "other"))
    opened(settings(distill, folders / "here", tmp_path / "distill"))
    lacks = "which this command or version does not have"
    assert lacks in refusal(settings(distill, folders / "here", tmp_path / "other"))
    assert lacks in refusal(settings(script, folders / "here", tmp_path / "distill"))


def edit(directory, change_fn):
    """Write a config.json as a version without seals would have."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change_fn({k: v for k, v in config.items() if k != "sha256"})))


def aged(config):
    """Return what the first format had: settings, and no records beside them."""
    records = ("format", "kdjax", "run", "content", "trained_by")
    return {name: value for name, value in config.items() if name not in records}


def test_an_older_directory_is_read_and_its_unknown_settings_have_their_default(folders, tmp_path):
    here = settings(distill, folders / "here", tmp_path)
    opened(here)
    edit(tmp_path, lambda config: {k: v for k, v in aged(config).items() if k != "temperature"})
    claim = opened(here)
    assert claim == (tmp_path / "config.json", True, None)
    run = experiment.Run(tmp_path, None, None, None, claim)
    assert run.owner("teacher", 0) is None, "its checkpoints do not say whose they are"
    assert "--data.dir was " in refusal(settings(distill, folders / "moved", tmp_path))
    error = refusal(dataclasses.replace(here, temperature=2.0))
    assert "--temperature was None, is now 2.0" in error


def test_a_directory_of_a_newer_version_names_it(folders, tmp_path):
    here = settings(distill, folders / "here", tmp_path)
    opened(here)
    edit(tmp_path, lambda config: workdir.sealed({**config, "format": 9, "kdjax": "7.1.0"}))
    assert "is older than 7.1.0, which wrote it" in refusal(here)


@pytest.mark.parametrize("orphan", ["checkpoints", "metrics.jsonl", "summary.json"])
def test_what_is_left_without_its_config_is_not_taken(folders, tmp_path, orphan):
    (tmp_path / orphan).mkdir()
    error = refusal(settings(distill, folders / "here", tmp_path))
    assert f"{tmp_path} has no config.json to tell whose its {orphan} is" in error
    assert not (tmp_path / "config.json").exists()


DAMAGES = {
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "a number": lambda content: b"17",
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "no UTF-8": lambda content: b"\xff" + content,
    "a key less": lambda content: content.replace(b'"temperature": 4.0,', b"", 1),
    "another value": lambda content: content.replace(b"4.0", b"3.0", 1),
    "no seal": lambda content: content.replace(b'"sha256"', b'"sha255"'),
    "depth": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_one_line(folders, tmp_path, damage):
    here = settings(distill, folders / "here", tmp_path)
    opened(here)
    path = tmp_path / "config.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    error = refusal(here)
    assert error.startswith(f"{path} is damaged (")
    assert error.endswith(f"put a copy of it back, or delete {tmp_path} to start anew")


def test_a_summary_is_shown_again_only_as_it_was_written(folders, tmp_path, capsys):
    here = settings(distill, folders / "here", tmp_path)
    of = {"num_params": 3, **{c: [0.25] for c in ("accuracy", "nll", "ece", "agreement")}}
    summary = {name: {**of, "test_errors": [4]} for name in ("teacher", "scratch", "distilled")}
    path = tmp_path / "summary.json"
    with experiment.opened(here) as found:
        assert not experiment.is_finished(found.run)
        workdir.write_json(path, summary)
        assert not experiment.is_finished(found.run), "it was written and not all that follows"
        (tmp_path / "report.html").write_text("")
        experiment.finish(found.run)
        assert experiment.is_finished(found.run)
        for damage in DAMAGES.values():
            whole = path.read_bytes()
            path.write_bytes(damage(whole).replace(b"0.25", b"0.26"))
            assert not experiment.is_finished(found.run)
            path.write_bytes(whole)
        assert experiment.is_finished(found.run)
    printed = capsys.readouterr().out
    assert printed.count("finished: nothing left to do") == 2
    with experiment.opened(dataclasses.replace(here, workdir=tmp_path / "b")) as other:
        for name in ("summary.json", "finished", "report.html"):
            shutil.copy(tmp_path / name, tmp_path / "b" / name)
        assert not experiment.is_finished(other.run), "it is that of another run"


def test_tables_name_what_trained_and_not_what_made_them(folders, tmp_path, monkeypatch):
    here = settings(distill, folders / "here", tmp_path)
    with experiment.opened(here) as found:
        assert experiment.facts(found.run, "c")["Commit"] == "not known"
        for commit in ("aaa", "aaa", "bbb"):
            monkeypatch.setattr(workdir, "commit", lambda commit=commit: commit)
            found.run.begin()
        monkeypatch.setattr(workdir, "commit", lambda: "ccc")
    with experiment.opened(here) as again:
        facts = experiment.facts(again.run, "c", Seeds="0")
    assert facts["Commit"] == "aaa, bbb"
    assert facts["Versions"].startswith("kdjax ") and "jax " in facts["Versions"]
    assert facts["Training began"][:2] == "20"
    assert len(workdir.trained_by(tmp_path / "config.json")) == 2


def test_a_file_of_the_users_is_replaced_at_once_and_stays_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "real.md").write_text("old")
    (tmp_path / "real.md").chmod(0o640)
    (tmp_path / "link.md").symlink_to(tmp_path / "real.md")
    workdir.write_whole(tmp_path / "link.md", b"new")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real.md").stat().st_mode) == 0o640

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*real\.md: No space left on device"):
        workdir.write_whole(tmp_path / "link.md", b"newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.md", "real.md"]
    assert (tmp_path / "real.md").read_text() == "new"


def test_processes_that_mean_another_run_are_named(monkeypatch):
    known = {"temperature": 4.0, "data": {"dir": "a"}, "distributed": {"process_id": 0}}
    others = [
        {**known, "data": {"dir": "b"}, "distributed": {"process_id": 1}},
        {**known, "temperature": 2.0, "soft_weight": 1.0},
    ]

    def exchange(name, text):
        flat = [workdir.flatten(other) for other in others]
        dropped = ("data.dir", "distributed.process_id")
        return [text, *(json.dumps({k: v for k, v in f.items() if k not in dropped}) for f in flat)]

    monkeypatch.setattr("kdjax.distributed.exchange", exchange)
    with pytest.raises(ValueError, match=r"process 0 has --soft-weight None, process 2 has 1.0: "):
        processes.agree("settings", known, prefix="--")
    others.pop()
    processes.agree("settings", known, prefix="--")


def test_networks_of_a_name_are_not_those_of_its_sizes(folders, tmp_path):
    """What a flag decides is compared, where the data decided it before too."""
    here = settings(distill, folders / "here", tmp_path)
    opened(here)
    other = dataclasses.replace(here, student=NetworkSettings(widths=(7,)))
    assert "--student.widths was [32], is now [7]" in refusal(other)
