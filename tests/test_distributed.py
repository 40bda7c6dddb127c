"""Several processes train like one, notice who is missing, and go on from what was saved."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import sets
from hosts import NUM_STEPS, TIMEOUT

from kdjax import data, distributed, sharding
from kdjax.distributed import _watchdog
from kdjax.runs import distill

ROOT = Path(__file__).parents[1]
MISSING = distributed.MISSING
pytestmark = pytest.mark.slow


def has_a_name():
    """Whether this machine's name resolves: JAX's collectives on CPUs look it up."""
    try:
        return bool(socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return False


NAMED = pytest.mark.skipif(not has_a_name(), reason="the name of this machine does not resolve")


def play(out, *names):
    """Run scenarios of `tests/hosts.py`, one after the other, in one process that forks theirs."""
    command = [sys.executable, str(ROOT / "tests" / "hosts.py"), str(out), *names]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    names = ["one", "two", "one dies", "resumed by two", "zero dies", "resumed by one"]
    names += ["two without a store", "two by calls", "one leaves", "preempted", "resumed by four"]
    return play(tmp_path_factory.mktemp("hosts"), *names)


def said(result, process=0):
    """Return what a process printed at its end."""
    assert result["status"][process] in (0, 130), result["err"][process]
    return json.loads(result["out"][process].splitlines()[-1])


def blame(result, process):
    """Return the line of the watchdog."""
    (line,) = [x for x in result["err"][process].splitlines() if x.startswith("error: process")]
    return line


def assert_close(result, expected):
    found, wanted = said(result)["values"], said(expected)["values"]
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=2e-5, err_msg=name)


@NAMED
def test_two_processes_end_like_one(results):
    assert_close(results["two"], results["one"])
    first, second = (said(results["two"], i) for i in (0, 1))
    assert first["sha256"] == second["sha256"]
    assert (first["leader"], second["leader"]) == (True, False)
    assert first["split"] > 0 == said(results["one"])["split"]


@NAMED
def test_two_processes_may_take_several_steps_a_call(results):
    assert_close(results["two by calls"], results["two"])
    first, second = (said(results["two by calls"], i) for i in (0, 1))
    assert first["sha256"] == second["sha256"]


@NAMED
def test_with_a_jax_that_has_no_such_store_training_goes_on_without_a_watchdog(results):
    result = results["two without a store"]
    assert said(result)["sha256"] == said(results["two"])["sha256"]
    for process in (0, 1):
        lines = [line for line in result["err"][process].splitlines() if "watchdog" in line]
        assert lines == [
            f"warning: no watchdog: JAX {jax.__version__} does not have the store that it uses"
        ]


@pytest.mark.parametrize("parts", [{}, {"global_state": None}, {"global_state": object()}])
def test_private_parts_of_jax_that_have_moved_are_not_an_error(parts, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, _watchdog._PRIVATE, SimpleNamespace(**parts))
    assert _watchdog.client() is None
    _watchdog.start(60.0)
    assert capsys.readouterr().err.count("\n") == 1
    assert not _watchdog._watching.is_set()


@NAMED
def test_processes_of_other_flags_or_data_do_not_train_together(tmp_path):
    for me in (0, 1):
        splits = {"train": sets.rows(40, seed=me), "test": sets.rows(9)}
        sets.prepare(tmp_path / f"data{me}", splits)
    found = play(tmp_path, "other flags", "other data")
    for name, said in (
        ("other flags", "process 0 has --temperature 2.0, process 1 has 3.0"),
        ("other data", "process 0 has data.train.images "),
    ):
        lines = "".join(found[name]["err"])
        assert f"error: {said}" in lines and "start all processes of a run alike" in lines
        assert 2 in found[name]["status"] and 0 not in found[name]["status"]
        assert found[name]["out"] == ["", ""] and "Traceback" not in lines
    assert not list(tmp_path.glob("*/config.json")), "nothing is claimed"


@NAMED
def test_every_example_is_measured_once(results):
    for name in ("one", "two"):
        assert set(said(results[name])["measured"].values()) == {21.0}


@NAMED
def test_a_process_that_is_killed_is_named_by_the_other_in_time(results):
    result = results["one dies"]
    assert result["status"] == [MISSING, -9]
    assert "error: process 1 (" in blame(result, 0)
    assert "has given no sign of life for" in blame(result, 0)
    # From its death to the line, on a machine that may be busy.
    assert result["seconds"][0] - result["seconds"][1] < 3 * TIMEOUT


@NAMED
def test_the_same_command_goes_on_to_the_same_bytes(results):
    again = said(results["resumed by two"])
    assert 0 < again["start"] < NUM_STEPS
    assert again["sha256"] == said(results["two"])["sha256"]


@NAMED
def test_the_death_of_the_coordinator_is_named_before_the_runtime_aborts(results):
    result = results["zero dies"]
    assert result["status"] == [-9, MISSING]
    assert "error: process 0, the coordinator, " in blame(result, 1)
    assert result["seconds"][1] - result["seconds"][0] < 3 * TIMEOUT


@NAMED
def test_one_process_goes_on_where_two_were(results):
    assert said(results["resumed by one"])["start"] > 0
    assert_close(results["resumed by one"], results["one"])


@NAMED
def test_a_process_that_fails_takes_the_others_along_at_once(results):
    result = results["one leaves"]
    assert result["status"] == [MISSING, 2]
    assert "process 1 ended with status 2, see its own output" in blame(result, 0)
    assert result["seconds"][0] - result["seconds"][1] < TIMEOUT


@pytest.mark.long
def test_a_process_that_hangs_is_missing_too(tmp_path):
    result = play(tmp_path, "one hangs")["one hangs"]
    assert result["status"] == [MISSING, -9]
    assert "process 1 (" in blame(result, 0)


@NAMED
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one sleeps", "process 1 ("),
        pytest.param("zero sleeps", "process 0 (", marks=pytest.mark.long),
        pytest.param("one is late", "process 1 (", marks=pytest.mark.long),
    ],
)
def test_a_process_whose_main_thread_hangs_ends_all_in_time(name, words, tmp_path):
    result = play(tmp_path, name)[name]
    assert result["status"] == [MISSING, MISSING]
    for process in (0, 1):
        assert f"error: {words}" in blame(result, process)
        assert "hangs: the others have waited for it for" in blame(result, process)
        assert result["seconds"][process] < 60


def test_a_process_that_never_joins_ends_the_others_in_time(tmp_path):
    result = play(tmp_path, "one never comes")["one never comes"]
    assert result["status"] == [MISSING] * 3
    for error in result["err"]:
        assert error.startswith("error: not all processes have joined within 8 s: start those")
        assert error.count("\n") == 1
    assert max(result["seconds"]) < 8 + 10


@NAMED
def test_preemption_of_one_saves_and_stops_all_at_the_same_step(results):
    result = results["preempted"]
    assert result["status"] == [130, 130]
    at = said(result)["stopped"]
    assert said(result, 1)["stopped"] == at
    four = said(results["resumed by four"])
    assert four["start"] == at
    assert_close(results["resumed by four"], results["one"])


@pytest.mark.long
def test_four_processes_end_like_one_and_survive_a_death(tmp_path):
    results = play(tmp_path, "one", "four", "one of four dies", "four again")
    assert_close(results["four"], results["one"])
    assert results["one of four dies"]["status"] == [MISSING, MISSING, -9, MISSING]
    for process in (0, 1, 3):
        assert "process 2 (" in blame(results["one of four dies"], process)
    assert said(results["four again"])["sha256"] == said(results["four"])["sha256"]


@pytest.mark.long
def test_distill_in_two_processes_agrees_with_one(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = [sys.executable, "-m", "experiments.distill"]
    base += ["--epochs", "20", "--teacher.epochs", "2", "--num-seeds", "1"]
    base += ["--augment", "jitter", "--student.dropout", "0.1", "--workdir"]

    def start(devices, directory, *flags):
        flag = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"}
        return subprocess.Popen(
            [*base, str(tmp_path / directory), *flags],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    several = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", "2"]
    processes = [start(2, "two", *several, "--distributed.process-id", str(i)) for i in (0, 1)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "4 x cpu (cpu) in 2 processes" in outputs[0][0]
    assert outputs[1][0] == ""
    alone = start(4, "one")
    assert alone.wait() == 0, alone.communicate()
    one, two = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(one[name]["nll"], two[name]["nll"], rtol=2e-3)
    rows = [(tmp_path / d / "metrics.jsonl").read_text().count("\n") for d in ("one", "two")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["coordinator", "host:1"], "--distributed.num-processes must be given with"),
        (
            ["coordinator", "host", "num-processes", "2", "process-id", "0"],
            "--distributed.coordinator must be HOST:PORT, got host",
        ),
        (
            ["coordinator", "host:1", "num-processes", "2", "process-id", "2"],
            "--distributed.process-id must be from 0 to 2 - 1, got 2",
        ),
        (
            ["coordinator", "host:1", "num-processes", "0", "process-id", "0"],
            "--distributed.num-processes must be positive, got 0",
        ),
        (["timeout", "1"], "--distributed.timeout must be 3 or more"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, words, capsys):
    named = [f"--distributed.{x}" if i % 2 == 0 else x for i, x in enumerate(flags)]
    with pytest.raises(SystemExit) as stop:
        distill.main(named)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert error.count("\n") == 1


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no\ncluster")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(SystemExit):
        distill.main(["--distributed"])
    assert capsys.readouterr().err == "error: the processes cannot be joined: no\n"


def test_alone_there_is_nothing_to_agree_on():
    assert distributed.exchange("name", "text") == ["text"]
    assert distributed.is_leader()
    with pytest.raises(SystemExit), distributed.leaving():
        raise SystemExit(2)


def test_the_message_that_a_process_leaves_with_is_printed(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(_watchdog, "_leave", left.append)
    monkeypatch.setattr(_watchdog._watching, "is_set", lambda: True)
    with distributed.leaving():
        raise SystemExit("no data in DIR")
    assert left == [1] and capsys.readouterr().err == "no data in DIR\n"


def test_rows_of_a_mesh_are_those_of_its_devices(monkeypatch):
    mesh = sharding.make_mesh(data=4, fsdp=1, tensor=2)
    np.testing.assert_array_equal(sharding.local_rows(mesh, 8), np.arange(8))
    wanted = {"image": np.arange(16.0).reshape(8, 2)}
    expected = sharding.shard_batch(wanted, mesh)["image"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = sharding.shard_batch(wanted, mesh)["image"]
    np.testing.assert_array_equal(found, expected)
    assert found.sharding == expected.sharding


def test_batches_of_chosen_rows():
    arrays = {"label": np.arange(10)}
    rows = np.array([0, 1, 4, 5])
    whole = next(data.train_batches(arrays, seed=1, batch_size=8))
    part = next(data.train_batches(arrays, seed=1, batch_size=8, rows=rows))
    np.testing.assert_array_equal(part["label"], whole["label"][rows])
    whole = list(data.eval_batches(arrays, batch_size=8))
    parts = list(data.eval_batches(arrays, batch_size=8, rows=rows))
    for all_rows, some in zip(whole, parts, strict=True):
        for name in all_rows:
            np.testing.assert_array_equal(some[name], all_rows[name][rows])
