"""The experiment from the command line: what it writes, how it resumes, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scripts
from scripts import environment, killable
from xla import EIGHT_DEVICES, QUICK_COMPILATION

from kdjax import checkpoint, models
from kdjax.runs import distill, evaluation, flags, resolved, settings, workdir
from kdjax.runs import page as page_of

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SMALL = [
    "--epochs", "40", "--teacher.epochs", "3", "--num-seeds", "2", "--teacher.widths", "32",
    "--student.widths", "8", "--log-every", "10", "--eval-every", "20", "--checkpoint-every", "15",
]  # fmt: skip


def command(directory, *flags):
    head = [sys.executable, "-m", "experiments.distill"]
    return [*map(str, [*head, "--workdir", directory, *SMALL, *flags])]


def run(directory, *flags, **env):
    return subprocess.run(
        command(directory, *flags),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(**env),
    )


def hashes(directory):
    summary = json.loads((directory / "summary.json").read_text())
    return {name: entry["params_sha256"] for name, entry in summary.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the work directory of a whole small run, and what it printed."""
    directory = tmp_path_factory.mktemp("run") / "whole"
    done = run(directory, JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    (directory.parent / "compiled").write_text(done.stderr)
    return directory, done.stdout


def test_work_directory_holds_everything(finished):
    directory, printed = finished
    for name in ("config.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (directory / name).stat().st_size > 0, name
    for name in ("student", "teacher", "checkpoints"):
        assert (directory / name).is_dir()
    assert list(directory.glob("*.png"))
    assert "scratch" in printed
    assert "distilled" in printed
    config = json.loads((directory / "config.json").read_text())
    assert config["data"]["student_examples"] == 100
    assert config["augment"] == []
    assert config["batch_size"] == 64


def test_seeds_share_their_programs(finished):
    compiled = (finished[0].parent / "compiled").read_text()
    # The teacher's, and one for each kind of student, of which there are two seeds.
    for name in ("_made", "take_steps"):
        assert compiled.count(f"Finished XLA compilation of jit({name})") == 3, name


def test_summary_has_one_entry_per_network(finished):
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert set(summary) == {"teacher", "scratch", "distilled"}
    for name, entry in summary.items():
        assert isinstance(entry["num_params"], int)
        for key in ("test_errors", "accuracy", "nll", "ece", "agreement", "params_sha256"):
            assert len(entry[key]) == (1 if name == "teacher" else 2), (name, key)
        for errors, accuracy in zip(entry["test_errors"], entry["accuracy"], strict=True):
            assert errors == round((1 - accuracy) * 450)
    assert summary["teacher"]["agreement"] == [1.0]
    assert len(set(summary["distilled"]["params_sha256"])) == 2


def test_metrics_have_phase_step_and_time(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"teacher", "scratch", "distilled"}
    assert all({"phase", "seed", "step", "split", "loss", "wall_time"} <= set(row) for row in rows)
    assert all(
        "loss/soft" in r for r in rows if r["phase"] == "distilled" and r["split"] == "train"
    )


def test_the_student_loads_with_one_call(finished):
    from kdjax.checkpoint import params_sha256
    from kdjax.models import load_network

    network = load_network(finished[0] / "student")
    images = np.zeros((3, 8, 8, 1), np.uint8)
    outputs, _ = network.model.apply(*network.variables, images, train=False)
    assert outputs.logits.shape == (3, 10)
    assert params_sha256(network.variables.params) in hashes(finished[0])["distilled"]


@pytest.mark.slow
def test_a_set_that_streams_is_learned_as_one_in_memory(finished, tmp_path):
    done = run(tmp_path / "run", "--data.streaming")
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = hashes(tmp_path / "run"), hashes(finished[0])
    # The distilled students' teacher answers live, which differs by rounding.
    assert (found["teacher"], found["scratch"]) == (expected["teacher"], expected["scratch"])
    assert (tmp_path / "run" / "report.html").exists()


def test_crops_of_whole_images_need_streaming(tmp_path, capsys):
    base = ["--workdir", tmp_path / "w"]
    error = fails(capsys, *base, "--augment", "resized-crop")
    assert "--augment resized-crop needs --data.streaming" in error


def test_examples_that_stream_come_one_step_a_call(tmp_path, capsys):
    base = ["--workdir", tmp_path / "w", "--data.streaming"]
    error = fails(capsys, *base, "--steps-per-call", "8")
    assert "--steps-per-call 8: examples that stream are on no device" in error


def test_a_finished_directory_says_so(finished, capsys):
    distill.main([*map(str, ["--workdir", finished[0], *SMALL])])
    assert "finished" in capsys.readouterr().out


def test_any_other_setting_is_refused_by_name(finished, capsys):
    error = fails(capsys, "--workdir", finished[0], *SMALL, "--temperature", "2")
    assert error.startswith("error: ")
    assert "--temperature was 4.0, is now 2.0" in error


@pytest.mark.slow
def test_killed_anywhere_and_run_again_ends_in_the_same_bytes(finished, tmp_path):
    directory = tmp_path / "killed"
    kills = 0
    for after in (5, 20, 35):
        process = subprocess.Popen(
            command(directory), cwd=ROOT, env=killable(), stdout=subprocess.DEVNULL
        )
        metrics = directory / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= after:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills
    done = run(directory, "--log-every", "7")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    assert hashes(directory) == hashes(finished[0])
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    validations = [(r["phase"], r["seed"], r["step"]) for r in rows if r["split"] == "validation"]
    assert len(validations) == len(set(validations))


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_saves_and_prints_the_command_that_goes_on(number, tmp_path):
    directory = tmp_path / "stopped"
    process = subprocess.Popen(
        command(directory, "--epochs", "4000"),
        cwd=ROOT,
        env=killable(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and '"scratch"' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--workdir {directory}" in errors
    assert "saved; go on with: python -m experiments.distill" in errors
    assert errors.count("\n") == 1
    assert any((directory / "checkpoints" / "scratch-0").iterdir())


def test_checkpoints_of_others_are_refused_by_one_line(finished, tmp_path, capsys):
    def tried(play_fn):
        directory = tmp_path / play_fn.__name__
        shutil.copytree(finished[0], directory)
        (directory / "finished").unlink()
        play_fn(directory)
        flags = ["--workdir", directory, *SMALL]
        with (
            pytest.raises(SystemExit),
            pytest.warns(checkpoint.CheckpointWarning),
        ):
            distill.main([*map(str, flags)])
        return capsys.readouterr().err.splitlines()

    def of_another_seed(directory):
        shutil.rmtree(directory / "checkpoints" / "scratch-1")
        shutil.copytree(
            directory / "checkpoints" / "scratch-0", directory / "checkpoints/scratch-1"
        )

    def of_another_phase(directory):
        shutil.rmtree(directory / "checkpoints" / "scratch-1")
        source = directory / "checkpoints" / "teacher-0"
        shutil.copytree(source, directory / "checkpoints" / "scratch-1")

    for play, reason in (
        (of_another_seed, "its seed is 0, not 1"),
        (of_another_phase, "its phase"),
    ):
        (line,) = tried(play)
        assert line.startswith("error: ") and "all checkpoints in" in line and reason in line


@pytest.mark.slow
def test_another_mesh_resumes_and_agrees(finished, tmp_path):
    directory = tmp_path / "mesh"
    flags = f"{QUICK_COMPILATION} {EIGHT_DEVICES}"
    mesh = ["--mesh.fsdp", "2", "--mesh.tensor", "2", "--mesh.split-teacher"]
    done = run(directory, *mesh, XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr
    assert "8 x cpu" in done.stdout
    one, eight = (json.loads((d / "summary.json").read_text()) for d in (finished[0], directory))
    np.testing.assert_allclose(one["teacher"]["nll"], eight["teacher"]["nll"], rtol=0.05)
    (directory / "summary.json").unlink()
    again = run(directory)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout
    assert hashes(directory) == {k: e["params_sha256"] for k, e in eight.items()}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bogus", "3"], "Unrecognized options: --bogus"),
        (["--data.nam", "x"], "perhaps you meant --data.name"),
        (["--student.name", "resnet9"], "invalid choice 'resnet9'"),
        (["--epochs", "many"], "--epochs"),
        (["--temperature", "0"], "--temperature must be positive"),
        (["--temperature", "nan"], "--temperature must be positive"),
        (["--soft-weight", "1.5"], "--soft-weight must be in [0, 1], got 1.5"),
        (["--data.validation-fraction", "1"], "--data.validation-fraction must be in [0, 1)"),
        (["--epochs", "0"], "--epochs must be positive"),
        (["--steps-per-call", "0"], "--steps-per-call must be positive, got 0"),
        (["--student.widths", "0"], "--student.widths must be positive"),
        (["--student.patch-size", "0"], "--student.patch-size must be positive"),
        (["--mesh.data", "0"], "--mesh.data must be positive, or -1 for all, got 0"),
        (["--mesh.fsdp", "0"], "--mesh.fsdp must be positive"),
        (["--mesh.tensor", "-1"], "--mesh.tensor must be positive"),
        (
            ["--method", "kd+nothing"],
            "--method must be made of known methods ('nothing' is none; ch",
        ),
        (["--method", "rdk"], "('rdk' is none; did you mean rkd or "),
        (["--method", "kd+"], "('' is none; a + has a method on both sides), got kd+"),
        (["--method", "scratch"], "--method must be one that teaches"),
        (["--seed", "-1"], "--seed must be from 0 to 2,147,483,647, got -1"),
        (["--workdir", ""], "argument --workdir: expected a value, got ''"),
        (["--profil"], "perhaps you meant --profile ("),
        (["--student.name", "resnet20", "--student.widths", "4"], "--student.widths are those of"),
        (["--teacher.name", "resnet20", "--teacher.widths", "4"], "--teacher.widths are those of"),
        (["--data.student-examples", "5"], "is 5, but there are 10 classes: at least one example"),
        (["--batch-size", "100000"], "--batch-size is 100000, more than the 100 that the examples"),
        (["--batch-size", "1000000000"], "--batch-size is 1000000000, more than the 100"),
        (["--method", "at"], "--method at needs feature maps"),
        (["--keep-last", "1"], "--keep-last must be 2 or more"),
        (["--rematerialise"], "computes blocks again, and --student.name mlp has none"),
        (["--on-nonfinite", "ignore"], "invalid choice 'ignore'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        distill.main([*flags, "--workdir", str(tmp_path / "w")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("ascii", marks=pytest.mark.slow)])
def test_a_wrong_flag_has_no_frame(encoding):
    found = subprocess.run(
        [sys.executable, "-m", "experiments.distill", "--bogus", "3"],
        env=environment(PYTHONIOENCODING=encoding),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    advice = "(see python -m experiments.distill --help)"
    assert found.stderr == f"error: Unrecognized options: --bogus, 3 {advice}\n"


def fails(capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        distill.main([*map(str, flags)])
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.count("\n") == 1
    return error


def test_data_that_is_not_there(capsys, data_dir, tmp_path):
    base = ["--data.dir", data_dir, "--workdir", tmp_path / "w"]
    assert "did you mean" in fails(capsys, *base, "--data.name", "mnits")
    missing = fails(capsys, *base, "--data.name", "fashion_mnist")
    assert str(data_dir) in missing
    assert "download_and_prepare" in missing


def test_sizes_that_do_not_fit(capsys, tmp_path):
    base = ["--workdir", tmp_path / "w"]
    assert "sizes that fit: 64 and 72" in fails(capsys, *base, "--batch-size", 70)
    assert "there are 1212 training examples" in fails(
        capsys, *base, "--data.student-examples", 5000
    )
    assert "does not fit on 8 devices" in fails(capsys, *base, "--mesh.data", 9)
    error = fails(capsys, *base, "--mesh.fsdp", 3)
    assert "--mesh.data -1, --mesh.fsdp 3, --mesh.tensor 1: a mesh of" in error
    assert "sizes that fit: 64 and 68" in fails(
        capsys, *base, "--batch-size", 66, "--mesh.tensor", 2
    )
    flags = ["--student.name", "vit_mu", "--student.patch-size", 3]
    assert "--student.patch-size is 3, which does not divide images of 8 x 8" in fails(
        capsys, *base, *flags
    )


@pytest.mark.parametrize("place", ["file/w", "file", "/proc/w"])
def test_a_work_directory_that_cannot_be_written(place, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    where = tmp_path / place
    error = fails(capsys, "--workdir", where)
    assert error.startswith(f"error: --workdir {where}: /") and "Errno" not in error


def test_a_folder_of_something_else_is_not_taken_for_digits(capsys, tmp_path):
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    (tmp_path / "sets" / "mnist" / "dataset_info.json").write_text("{}")
    error = fails(capsys, "--data.dir", tmp_path / "sets", "--workdir", tmp_path / "w")
    assert "(there: mnist) holds no digits" in error and "--data.name" in error
    assert [path.name for path in tmp_path.iterdir()] == ["sets"]


def test_steps_that_cannot_be_counted(finished, capsys, tmp_path):
    base = ["--workdir", tmp_path / "w", "--teacher.checkpoint", finished[0] / "teacher"]
    assert "--epochs 1000000000000 are" in fails(capsys, *base, "--epochs", 10**12)


def test_teacher_checkpoints_that_do_not_fit(finished, capsys, tmp_path):
    base = ["--workdir", tmp_path / "w", *SMALL[:6]]
    teacher = finished[0] / "teacher"
    assert "holds mlp" in fails(
        capsys, *base, "--teacher.checkpoint", teacher, "--teacher.name", "resnet8"
    )
    assert "holds (32,)" in fails(
        capsys, *base, "--teacher.checkpoint", teacher, "--teacher.widths", 64
    )
    assert f"holds no network; try {teacher}" in fails(
        capsys, *base, "--teacher.checkpoint", finished[0]
    )
    assert "nothing at" in fails(capsys, *base, "--teacher.checkpoint", tmp_path / "no.npz")
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((16, 3, 3, 3), np.float32)})
    error = fails(
        capsys, *base, "--teacher.checkpoint", tmp_path / "other.npz", "--teacher.name", "resnet8"
    )
    assert "is not a resnet8" in error
    other = finished[0] / "checkpoints" / "teacher-0"
    error = fails(capsys, *base, "--teacher.checkpoint", other)
    assert "something else than a network" in error
    variables = models.load_network(teacher).variables
    checkpoint.save_variables(tmp_path / "bare", variables, {"seconds": 1.0})
    error = fails(capsys, *base, "--teacher.checkpoint", tmp_path / "bare")
    assert "holds no network of a work directory" in error
    larger = ["--data.image-size", 16, "--teacher.checkpoint", teacher]
    assert "takes images of (8, 8, 1)" in fails(capsys, *base, *larger)
    assert not (tmp_path / "w").exists()


def test_the_page_says_how_long_trainings_took_and_what_they_were(finished):
    log = workdir.MetricsLog(finished[0] / "metrics.jsonl")
    page = (finished[0] / "report.html").read_text()
    assert f"{log.total_seconds():.0f} s in the steps of all trainings" in page
    assert "Teacher: mlp [32]. Student: mlp [8]." in page
    assert page_of._named("resnet20", ()) == "resnet20"


def test_a_short_run_is_not_mostly_validation(finished):
    rows = workdir.MetricsLog(finished[0] / "metrics.jsonl").rows()
    validation = {"validation": {"label": np.zeros(5000)}}
    assert evaluation.least_steps_between(validation, batch_size=64) == 105
    assert evaluation.least_steps_between({}, batch_size=64) == 1
    assert {r["step"] for r in rows if r["split"] == "validation" and r["phase"] == "teacher"} == {
        20, 40, 57
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_without_a_home(tmp_path):
    flags = ["--epochs", "2", "--teacher.epochs", "1", "--num-seeds", "1", "--profile"]
    (tmp_path / "file").write_text("")
    done = scripts.run(
        "experiments.distill", *flags, "--workdir", tmp_path / "w", HOME=str(tmp_path / "file")
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    # Of the students, who take four steps each; Python says the same once.
    assert [line for line in lines if "no trace" in line] == lines
    assert lines == ["warning: after 4 steps there is no trace: it begins behind the first 10"]


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line(tmp_path):
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d))\n"
    limited += "sys.argv[0] = 'x'; runpy.run_module('experiments.distill', run_name='__main__')"
    for size, every, file in (
        (9000, 5, "checkpoints"),
        (6000, 500, "metrics.jsonl"),
        (100, 500, "config.json"),
    ):
        directory = tmp_path / str(size)
        words = command(directory, "--log-every", 1, "--checkpoint-every", every)[3:]
        done = subprocess.run(
            [sys.executable, "-c", limited % (size, size), *words],
            cwd=ROOT, env=killable(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: --workdir {directory}: "), done.stderr
        assert file in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_a_transformer_learns_from_a_split_teacher_of_its_own_precision(tmp_path, capsys):
    from kdjax.models import load_network

    flags = ["--workdir", tmp_path / "w", "--method", "kd+rkd+hint"]
    flags += ["--teacher.name", "vit_mu", "--student.name", "vit_mu", "--student.dropout", 0.1]
    flags += ["--mesh.fsdp", 2, "--mesh.split-teacher", "--teacher.precision", "bfloat16"]
    flags += ["--teacher.epochs", 1, "--epochs", 2, "--num-seeds", 1]
    distill.main([*map(str, flags)])
    assert "distilled" in capsys.readouterr().out
    network = load_network(tmp_path / "w" / "student")
    assert (network.spec.name, network.spec.patch_size) == ("vit_mu", 2)
    assert network.variables.params["tokens"]["position"].shape == (1, 17, 32)
    teacher = load_network(tmp_path / "w" / "teacher")
    assert teacher.variables.params["head"]["kernel"].dtype == np.float32


def test_help_is_quick_and_lists_the_flags():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.distill", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(COLUMNS="120"),
    )
    assert done.returncode == 0
    assert time.perf_counter() - start < 10
    for flag in ("--data.name", "--teacher.checkpoint", "--soft-weight", "--mesh.data"):
        assert flag in done.stdout


def test_help_ends_quietly_where_its_reader_has_seen_enough():
    command = [sys.executable, "-m", "experiments.distill", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment()
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


class FakeData:
    """What `resolve` looks at."""

    def __init__(self, name, shape, names, size):
        self.name, self.version, self.unlabelled = name, "1", None
        self.image_shape, self.label_names = shape, names
        self.train = type("Examples", (), {"label": np.zeros(size)})


@pytest.mark.parametrize(
    ("name", "shape", "labels", "augment", "teacher_augment"),
    [
        ("digits", (8, 8, 1), ("0", "1"), (), ()),
        ("mnist", (28, 28, 1), ("0", "1"), (), ("jitter",)),
        ("svhn_cropped", (32, 32, 3), ("0", "1"), ("crop",), ("crop",)),
        ("cifar10", (32, 32, 3), ("cat", "dog"), ("crop", "flip"), ("crop", "flip")),
    ],
)
def test_defaults_follow_the_data_and_digits_are_never_flipped(
    name, shape, labels, augment, teacher_augment
):
    asked = distill.Settings(data=settings.DataSettings(name=name), workdir=Path("w"))
    found = resolved.resolve(asked, FakeData(name, shape, labels, 50_000))
    assert found.augment == augment
    assert found.teacher.augment == teacher_augment
    assert found.data.student_examples == (100 if name == "digits" else 50_000)
    kept = resolved.resolve(
        distill.Settings(augment=("none",), epochs=3, batch_size=32, workdir=Path("w")),
        FakeData(name, shape, labels, 500),
    )
    assert (kept.augment, kept.teacher.augment, kept.epochs, kept.batch_size) == (
        ("none",),
        ("none",),
        3,
        32,
    )


def test_balanced_subset_takes_from_every_class():
    from kdjax.runs.teaching import balanced_subset

    labels = np.array([0] * 50 + [1] * 5 + [2] * 30)
    chosen = balanced_subset(labels, 20)
    assert len(set(chosen.tolist())) == 20
    assert np.bincount(labels[chosen]).tolist() == [8, 5, 7]
    assert len(balanced_subset(labels, 85)) == 85


def test_metrics_log_survives_a_torn_line(tmp_path):
    log = workdir.MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append(phase="teacher", seed=0, step=step)
    with log.path.open("a") as file:
        file.write('{"phase": "tea')
    assert [row["step"] for row in log.rows()] == [1, 2, 3]
    log.rewind("teacher", 0, 2)
    log.append(phase="teacher", seed=0, step=3)
    assert [row["step"] for row in log.rows()] == [1, 2, 3]


def test_a_diverging_run_exits_with_status_1(capsys):
    from kdjax import loop

    with pytest.raises(SystemExit) as stop, flags.plain_errors(resume_with="again"):
        raise loop.NonFiniteLoss("the loss is nan at step 3; non-finite terms: soft")
    assert stop.value.code == 1
    assert "step 3; non-finite terms: soft" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason="the PyTorch teacher is not beside the checkout")
def test_the_pytorch_teacher_needs_its_architecture_and_classes(capsys, tmp_path):
    teacher = SHARED / "teachers" / "cifar100_resnet20.npz"
    error = fails(
        capsys, "--workdir", tmp_path / "w",
        "--teacher.checkpoint", teacher,
        "--teacher.name", "resnet20",
    )  # fmt: skip
    assert f"{teacher} is for images of 3 channels, the data has 1" in error


def test_a_trained_teacher_is_used_again_and_the_audit_stops_what_does_not_hold(
    finished, undrawn, tmp_path, capsys, monkeypatch
):
    flags = ["--epochs", 2, "--num-seeds", 1, "--audit"]
    flags += ["--teacher.checkpoint", finished[0] / "teacher", "--workdir"]
    distill.main([*map(str, [*flags, tmp_path / "good"])])
    printed = capsys.readouterr().out
    assert "soft targets at T = 4, times T^2, times 1" in printed
    assert "FAIL" not in printed
    assert printed.index("T^2 slope") < printed.index("scratch, seed 0")
    assert hashes(tmp_path / "good")["teacher"] == hashes(finished[0])["teacher"]
    page = (tmp_path / "good" / "report.html").read_text()
    assert "The teacher was given, both students learn from 100 of them, balanced" in page
    assert "training examples" in page and "2 epochs in batches" in page and "three" not in page
    from kdjax import losses, terms

    def without_t_squared(*, temperature):
        return terms.stateless(
            lambda x: (
                losses.soft_target_loss(x.student.logits, x.teacher.logits, temperature=temperature)
                / temperature**2
            )
        )

    monkeypatch.setattr(terms, "soft_targets", without_t_squared)
    error = fails(capsys, *flags, tmp_path / "bad")
    assert "--audit: does not hold: soft: T^2 slope" in error
    assert not (tmp_path / "bad" / "student").exists()


@pytest.mark.slow
def test_a_student_under_its_teachers_classifier_goes_out_whole(tmp_path):
    flags = ["--epochs", "1", "--teacher.epochs", "1", "--num-seeds", "1", "--method", "simkd"]
    flags += ["--teacher.name", "resnet8", "--student.name", "resnet8", "--workdir", tmp_path]
    flags += ["--rematerialise"]
    command = [sys.executable, "-m", "experiments.distill", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["distilled"]["num_params"] > summary["scratch"]["num_params"]
    student, teacher = (models.load_network(tmp_path / name) for name in ("student", "teacher"))
    assert student.spec.reused_width == 64
    for name, kept in student.variables.state["classifier"].items():
        np.testing.assert_array_equal(kept, teacher.variables.params["head"][name])
    images = np.zeros((2, 8, 8, 1), np.uint8)
    logits = student.model.apply(*student.variables, images, train=False)[0].logits
    assert logits.shape == (2, 10) and np.all(np.isfinite(logits))


def test_rematerialise_reaches_the_networks(tmp_path, capsys, monkeypatch):
    from kdjax import models

    def seen(model):
        raise ValueError("seen")

    monkeypatch.setattr(models, "rematerialized", seen)
    flags = ["--teacher.name", "resnet8", "--student.name", "resnet8"]
    error = fails(capsys, *flags, "--rematerialise", "--workdir", tmp_path / "w")
    assert error == "error: seen\n"


def test_one_run_per_directory(tmp_path, capsys):
    from kdjax.checkpoint import lock

    with lock(tmp_path / "w"):
        error = fails(capsys, "--workdir", tmp_path / "w", *SMALL)
    assert error == (
        f"error: --workdir {tmp_path / 'w'}: {tmp_path / 'w'} is in use by process {os.getpid()} "
        f"on {os.uname().nodename}\n"
    )
    assert not (tmp_path / "w" / "config.json").exists()


@pytest.mark.slow
def test_the_best_is_kept_and_skipping_may_be_switched_on_later(finished, tmp_path):
    from kdjax import checkpoint

    directory = tmp_path / "kept"
    shutil.copytree(finished[0], directory)
    (directory / "summary.json").unlink()
    for folder in (directory / "checkpoints").glob("scratch-*"):
        shutil.rmtree(folder)
    flags = ["--keep-best", "--keep-last", "3", "--on-nonfinite", "skip"]
    done = run(directory, *flags)
    assert done.returncode == 0, done.stderr
    assert hashes(directory)["scratch"] == hashes(finished[0])["scratch"]
    folder = directory / "checkpoints" / "scratch-0"
    steps = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    accuracy = {
        row["step"]: row["accuracy"]
        for row in rows
        if (row["phase"], row["seed"], row["split"]) == ("scratch", 0, "validation")
    }
    best = max(accuracy, key=accuracy.get)
    assert checkpoint.best_step(folder) == best
    assert best in steps
    assert len(steps) in (3, 4)
    trained = [r for r in rows if r["phase"] == "scratch" and r["split"] == "train"]
    assert {row["skipped"] for row in trained} == {0.0}
