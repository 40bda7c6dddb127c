"""Saving beside the training, what is kept, who may write, and what a full disk does."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import checkpoint
from kdjax.checkpoint import _digests, _saving

ROOT = Path(__file__).parents[1]
LIKE = {"a": jnp.zeros(4), "key": jax.random.key(0)}


def tree(value):
    return {"a": jnp.full(4, value, jnp.float32), "key": jax.random.key(int(value))}


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def restored(directory, **which):
    step, found = checkpoint.restore(directory, LIKE, **which)
    return step, found["a"].tolist()


def test_what_is_saved_is_the_state_of_the_call_though_it_is_donated_at_once(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 2, x), donate_argnums=0)
    state, plain = {"a": jnp.arange(4.0)}, np.ones(2, np.float32)
    with checkpoint.saving(tmp_path) as save:
        save(1, {**state, "plain": plain})
        plain[:] = 7
        state = step(state)
        state["a"].block_until_ready()
    like = {"a": jnp.zeros(4), "plain": np.zeros(2, np.float32)}
    step_at, found = checkpoint.restore(tmp_path, like)
    assert (step_at, found["a"].tolist(), found["plain"].tolist()) == (1, [0, 1, 2, 3], [1, 1])


def test_the_call_returns_before_the_checkpoint_is_written(tmp_path, monkeypatch):
    go_on, write = threading.Event(), _saving.write

    def slow(*args):
        assert go_on.wait(60)
        write(*args)

    monkeypatch.setattr(_saving, "write", slow)
    with checkpoint.saving(tmp_path) as save:
        save(1, tree(1))
        assert names(tmp_path) == []
        go_on.set()
    assert restored(tmp_path) == (1, [1] * 4)


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 5: None, 6: 0.2}
    with checkpoint.saving(tmp_path, keep=2, keep_best=True) as save:
        for step, score in scores.items():
            save(step, tree(step), score=score)
    assert names(tmp_path) == ["2", "5", "6"]
    assert checkpoint.best_step(tmp_path) == 2
    assert restored(tmp_path, step=2) == (2, [2] * 4)
    assert restored(tmp_path) == (6, [6] * 4)
    checkpoint.save(tmp_path, 7, tree(7), keep_best=False)
    assert names(tmp_path) == ["6", "7"]


def test_more_than_two_are_kept_on_demand_and_less_refused(tmp_path):
    with checkpoint.saving(tmp_path, keep=3) as save:
        for step in range(5):
            save(step, tree(step))
    assert names(tmp_path) == ["2", "3", "4"]
    with pytest.raises(ValueError, match="saving: keep is 1, expected 2"):
        checkpoint.saving(tmp_path, keep=1).__enter__()
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 9"):
        checkpoint.restore(tmp_path, LIKE, step=9)


def test_a_damaged_record_has_no_score(tmp_path):
    for step, score in ((1, 0.5), (2, 0.9)):
        checkpoint.save(tmp_path, step, tree(step), score=score, keep_best=True)
    (tmp_path / "2" / "record.json").write_text("{")
    assert checkpoint.best_step(tmp_path) == 1
    assert checkpoint.best_step(tmp_path / "absent") is None


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    with checkpoint.saving(tmp_path, keep=2, keep_best=True) as save:
        for step, score in {1: float("nan"), 2: 0.9, 3: 0.1, 4: float("inf")}.items():
            save(step, tree(step), score=score)
    assert checkpoint.best_step(tmp_path) == 2
    assert names(tmp_path) == ["2", "3", "4"]


@pytest.mark.parametrize("where", ["the next call", "the end"])
def test_an_error_of_the_thread_is_raised_in_one_line(tmp_path, monkeypatch, where):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint.save(tmp_path, 1, tree(1))
    with (
        pytest.raises(OSError, match=r"cannot write .*2: .*No space left on device") as raised,
        monkeypatch.context() as patch,
        checkpoint.saving(tmp_path) as save,
    ):
        patch.setattr(Path, "write_text", fail)
        save(2, tree(2))
        if where == "the next call":
            save(3, tree(3))
            pytest.fail("the error was not raised")
    assert "\n" not in str(raised.value)
    assert restored(tmp_path) == (1, [1] * 4)


def test_what_ended_the_training_is_not_hidden_by_its_last_checkpoint(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("full")

    monkeypatch.setattr(_saving, "write", fail)
    with pytest.raises(ArithmeticError, match="nan"), checkpoint.saving(tmp_path) as save:
        save(1, tree(1))
        raise ArithmeticError("nan")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_takes_no_more_bytes(tmp_path, capfd, caplog):
    """The limit is the operating system's, and TensorStore's C++ is who meets it."""
    big = {"a": jax.random.normal(jax.random.key(0), (256, 256)), "key": jax.random.key(0)}
    checkpoint.save(tmp_path, 1, tree(1))
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, previous[1]))
    try:
        with (
            pytest.raises(OSError, match=r"cannot write .*2: ") as raised,
            checkpoint.saving(tmp_path) as save,
        ):
            save(2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(raised.value)
    assert restored(tmp_path) == (1, [1] * 4)
    checkpoint.save(tmp_path, 2, tree(2))
    assert names(tmp_path) == ["1", "2"]
    assert (capfd.readouterr().err, caplog.text) == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else and come back")
def test_a_directory_that_may_not_be_written(tmp_path):
    checkpoint.save(tmp_path / "w", 1, tree(1))
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o555)
    os.seteuid(65534)
    try:
        for write in (checkpoint.save, lambda d, *_: checkpoint.saving(d).__enter__()):
            with pytest.raises(OSError, match="Permission denied") as raised:
                write(tmp_path / "w", 2, tree(2))
            assert str(tmp_path / "w") in str(raised.value)
            assert "\n" not in str(raised.value)
    finally:
        os.seteuid(0)
    assert restored(tmp_path / "w") == (1, [1] * 4)


HOLD = """
import sys, time
from kdjax import checkpoint
with checkpoint.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_directory_and_one_that_died(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(checkpoint.InUse, match=f"in use by process {holder.pid} on "):
            checkpoint.lock(tmp_path).__enter__()
        with pytest.raises(OSError, match="in use by process"):
            checkpoint.saving(tmp_path).__enter__()
        holder.kill()
    assert (tmp_path / ".lock").read_text() == f"process {holder.pid} on {os.uname().nodename}"
    with checkpoint.saving(tmp_path) as save:
        save(1, tree(1))
    assert restored(tmp_path)[0] == 1


def test_a_second_lock_in_one_process_is_refused_and_frees_nothing(tmp_path):
    with checkpoint.lock(tmp_path):
        for same in (tmp_path, tmp_path / ".." / tmp_path.name):
            with pytest.raises(checkpoint.InUse, match=f"in use by process {os.getpid()} on "):
                checkpoint.lock(same).__enter__()
        held = subprocess.run(
            [sys.executable, "-c", HOLD.replace("600", "0"), str(tmp_path)],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert "InUse" in held.stderr, "another process is still kept out"
    with checkpoint.lock(tmp_path):
        pass


def test_what_a_lock_that_is_a_link_leads_to_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"\.lock is a symbolic link, expected a file: remove it"):
        checkpoint.lock(tmp_path).__enter__()
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.warns(UserWarning, match="cannot be locked .*No locks"), checkpoint.lock(tmp_path):
        pass


class Split:
    """An array of which no process holds all, as one of two processes sees it."""

    def __init__(self, whole, half):
        mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
        self.sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
        self.array = jax.device_put(whole, self.sharding)
        self.dtype, self.shape, self.ndim = whole.dtype, whole.shape, whole.ndim
        self.addressable_shards = [self.array.addressable_shards[half]]


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(_digests, "is_whole", lambda x: not isinstance(x, Split))
    monkeypatch.setattr(
        _digests, "gathered", lambda x: np.asarray(x.array if isinstance(x, Split) else x)
    )


def test_parts_that_no_process_holds_together_have_a_digest_each(two_processes):
    whole = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    halves = [{"w": Split(whole, half), "s": np.ones(2)} for half in (0, 1)]
    leaves = _digests.merged([_digests.describe(half) for half in halves])
    assert set(leaves["w"]["shards"]) == {"0:2,0:2", "2:4,0:2"}
    assert "sha256" in leaves["s"]
    for same in (*halves, {"w": whole, "s": np.ones(2)}):
        assert _digests.disagreement(same, leaves) is None
    for at, seen_by in ((0, 0), (3, 1)):
        wrong = whole.copy()
        wrong[at, 1] = np.nextafter(wrong[at, 1], 9)
        found = [_digests.disagreement({**halves[h], "w": Split(wrong, h)}, leaves) for h in (0, 1)]
        assert found == [("w" if h == seen_by else None) for h in (0, 1)]
        assert _digests.disagreement({"w": wrong, "s": np.ones(2)}, leaves) == "w"


def test_a_whole_digest_is_held_against_parts(two_processes):
    whole = np.arange(8, dtype=np.int32)
    leaves = _digests.describe({"w": whole})
    assert _digests.disagreement({"w": Split(whole, 1)}, leaves) is None
    assert _digests.disagreement({"w": Split(whole[::-1].copy(), 1)}, leaves) == "w"


def tear(content, harm):
    size = len(content)
    cuts = {"one byte": 1, "a quarter": size // 4, "half": size // 2, "all but one": size - 1}
    if harm in cuts:
        return content[: cuts[harm]]
    if harm == "zeros behind half":
        return content[: size // 2] + bytes(size - size // 2)
    return content + b"\0"


@pytest.mark.parametrize(
    "harm", ["one byte", "a quarter", "half", "all but one", "zeros behind half", "one more"]
)
def test_a_torn_file_is_passed_over_for_the_checkpoint_before(tmp_path, harm):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tree(step))
    for path in [p for p in (tmp_path / "2").rglob("*") if p.is_file()]:
        content = path.read_bytes()
        torn = tear(content, harm)
        if torn == content:
            continue
        path.write_bytes(torn)
        with pytest.warns(checkpoint.CheckpointWarning, match="step 2 .* is damaged") as caught:
            assert restored(tmp_path) == (1, [1] * 4), path
        assert len(caught) == 1
        assert "\n" not in str(caught[0].message)
        path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", checkpoint.CheckpointWarning)
        assert restored(tmp_path)[0] == 2


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bytes():
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes at the end: yes" in done.stdout
    assert not done.stdout.startswith("0 kills")


@pytest.mark.long
def test_killed_fifty_times_it_ends_in_the_same_bytes():
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "50"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 of them in the write" not in done.stdout
