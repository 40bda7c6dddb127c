"""The script for language models: what it writes, how it goes on, what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import scripts

from kdjax import checkpoint, data, models
from kdjax.runs import lm

TEXT = "the cat sat on the mat, and the dog sat on the cat; what a day it was.\n" * 60
SMALL = [
    "--data.tokenizer", "characters", "--data.length", "16", "--batch-size", "8", "--epochs", "2",
    "--teacher.epochs", "2", "--teacher.width", "16", "--teacher.num-heads", "2",
    "--teacher.depth", "1", "--student.width", "8", "--student.num-heads", "2",
    "--student.depth", "1", "--num-seeds", "1", "--log-every", "20", "--chunk-size", "64",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cat.txt"
    path.write_text(TEXT)
    return path


def run(text, directory, *flags):
    lm.main([*map(str, ["--data.file", text, "--workdir", directory, *SMALL, *flags])])


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def refused(capsys, text, directory, *flags):
    with pytest.raises(SystemExit) as caught:
        run(text, directory, *flags)
    line = capsys.readouterr().err
    assert caught.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """Return the work directory of a whole run."""
    directory = tmp_path_factory.mktemp("lm") / "whole"
    run(text, directory, "--keep-best")
    return directory


def test_the_table_has_a_row_for_each_network(finished):
    summary = summary_of(finished)
    assert [*summary] == ["teacher", "scratch", "distilled"]
    for entry in summary.values():
        numbers = {name: entry[name] for name in ("bits_per_byte", "nll", "kl", "agreement", "ece")}
        assert all(len(x) == 1 and np.isfinite(x[0]) for x in numbers.values())
        # A character is a byte here.
        assert entry["bits_per_byte"][0] == pytest.approx(entry["nll"][0] / np.log(2), rel=1e-6)
        assert entry["tokens_per_second"][0] > 0
    assert summary["teacher"]["kl"][0] == pytest.approx(0, abs=1e-5)
    assert summary["teacher"]["nll"][0] < summary["scratch"]["nll"][0]
    assert summary["distilled"]["kl"][0] > 0
    page = (finished / "report.html").read_text()
    for words in ("What they write", "▸", "word by word", "--divergence kl, T = 1"):
        assert words in page
    # The error of all tokens is that of the table, beside what chance makes of it.
    shown = re.findall(r'"row">(\w[^<]*)</th><td data-name="Error \(%\)">([\d.]+)<', page)
    for (name, error), entry in zip(shown, summary.values(), strict=True):
        assert float(error) == pytest.approx(100 * entry["ece"][0], abs=0.006), name


def test_the_best_by_validation_has_the_least_loss(finished):
    rows = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    measured = {
        row["step"]: row["loss"]
        for row in rows
        if (row["phase"], row["split"]) == ("distilled", "validation")
    }
    kept = finished / "checkpoints" / "distilled-0"
    best = checkpoint.best_step(kept)
    assert best == min(measured, key=measured.get) and len(measured) > 2
    manifest = json.loads((kept / str(best) / "record.json").read_text())
    assert manifest["metadata"]["score"] == pytest.approx(-measured[best])


def test_what_is_exported_is_what_was_measured(finished):
    model, variables, _ = models.load_decoder(finished / "student")
    count = summary_of(finished)["distilled"]["num_params"]
    assert models.num_params(variables.params) == count
    own = data.text.tokenizer_from(finished / "student" / "tokenizer.json")
    tokens = np.asarray([own.encode("the cat")], np.int32)
    assert own.decode(tokens[0]) == "the cat"
    logits = model.apply(*variables, tokens, train=False)[0].logits
    assert logits.shape == (1, 7, len(set(TEXT)) + 1)


def test_a_finished_run_says_so(finished, text, capsys):
    run(text, finished)
    said = capsys.readouterr().out
    assert "finished: nothing left to do" in said and "bits per byte" in said


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes_wherever_the_text_lies(finished, text, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    for name in ("summary.json", "finished", "report.html"):
        (again / name).unlink()
    shutil.rmtree(again / "checkpoints" / "distilled-0")
    whole = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(x for x in whole if '"distilled"' not in x))
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT)
    run(moved, again)
    for phase, entry in summary_of(again).items():
        assert entry["params_sha256"] == summary_of(finished)[phase]["params_sha256"]


@pytest.mark.slow
def test_a_teacher_that_is_given_teaches_the_same(finished, text, tmp_path):
    given = tmp_path / "given"
    flags = "--teacher.checkpoint", finished / "teacher", "--teacher.store", finished
    run(text, given, *flags)
    ours, before = summary_of(given), summary_of(finished)
    assert ours["scratch"]["params_sha256"] == before["scratch"]["params_sha256"]
    assert ours["distilled"]["params_sha256"] == before["distilled"]["params_sha256"]
    assert not [*given.glob("hidden-*")]  # found where they were


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--on-policy-fraction 0.5",
        "--sequence-level --soft-weight 0 --sampling-temperature 0",
        "--student.embedding teacher --data.vocabulary text --divergence logit-mse",
        "--student.checkpoint STUDENT --batch-size 16 --num-micro-batches 2",
        "--average 0.9 --audit --soft-weight 0.5 --divergence jsd",
    ],
)
def test_other_lessons_run_to_their_end(finished, text, tmp_path, capsys, flags):
    words = flags.replace("STUDENT", str(finished / "student")).split()
    run(text, tmp_path, "--teacher.checkpoint", finished / "teacher", *words)
    entry, before = (summary_of(x)["distilled"] for x in (tmp_path, finished))
    assert 0 < entry["kl"][0] < 5 and entry["nll"][0] < np.log(len(set(TEXT)) + 1)
    if "--student.checkpoint" in words:
        assert entry["nll"][0] < before["nll"][0]  # it began where that one ended
    if "--average" in words:
        scratch, plain = (summary_of(x)["scratch"] for x in (tmp_path, finished))
        assert scratch["params_sha256"] != plain["params_sha256"]
        said = capsys.readouterr().out
        assert "audit of distilled" in said and re.search("soft +zero at equality +ok", said)


@pytest.mark.slow
def test_a_run_is_extended(finished, text, tmp_path, capsys):
    longer = tmp_path / "longer"
    shutil.copytree(finished, longer)
    run(text, longer, "--extend", "--epochs", 3)
    said = capsys.readouterr().out
    assert "extended from 2 to 3 epochs" in said and "goes on from step 61" in said
    assert summary_of(longer)["scratch"]["nll"] < summary_of(finished)["scratch"]["nll"]


@pytest.mark.slow
def test_several_devices_learn_the_same(finished, text, tmp_path):
    flags = ["--data.file", text, "--workdir", tmp_path, *SMALL]
    mesh = "--mesh.fsdp", 2, "--mesh.tensor", 2
    eight = "--xla_force_host_platform_device_count=8"
    done = scripts.run("experiments.lm", *flags, *mesh, XLA_FLAGS=eight)
    assert done.returncode == 0, done.stderr
    for phase, entry in summary_of(tmp_path).items():
        assert entry["nll"][0] == pytest.approx(summary_of(finished)[phase]["nll"][0], abs=2e-3)


def test_what_does_not_fit_is_one_line(finished, text, tmp_path, capsys):
    assert "--temperature was 1.0, is now 2.0" in refused(
        capsys, text, finished, "--temperature", "2"
    )
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("dog", "cow"))
    assert "holds a run on other content: the text." in refused(capsys, other, finished)
    for flags, line in {
        ("--data.file", tmp_path / "no.txt"): "there is no file",
        ("--data.tokenizer", "no.json"): "there is no tokenizer no.json",
        ("--batch-size", "4096"): "--batch-size is 4096, but the training text has",
        ("--student.num-heads", "3"): "--student: heads are 2 wide (width 8, num_heads 3)",
        ("--prompt-length", "40"): "--prompt-length is 40, more than the 16 tokens of a row",
        ("--teacher.checkpoint", tmp_path / "none"): "there is no such folder",
        (
            "--teacher.checkpoint",
            finished / "teacher",
            "--data.tokenizer",
            "bytes",
        ): "knows 20 ids; this text is read with bytes, 257 ids: give its --data.tokenizer",
        ("--soft-weight", "0", "--on-policy-fraction", "1"): "leaves labels alone",
        ("--divergence", "logit-mse", "--temperature", "2"): "limit of high temperatures",
        (
            "--teacher.checkpoint",
            finished / "teacher",
            "--data.length",
            "40",
        ): "--data.length is 40, but --teacher.checkpoint",
        ("--divergence", "kld"): "kl",
    }.items():
        assert line in refused(capsys, text, tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):  # no folder is given, and none is made
        lm.main(["--data.file", str(tmp_path / "no.txt")])
    assert "there is no file" in capsys.readouterr().err
