"""What is restored is what was saved, bit for bit, or a clear message says why not."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import checkpoint
from kdjax.types import TrainState, Variables

VARIABLES = Variables(
    {"Dense_0": {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4)}, "Dropout_0": {}},
    {"BatchNorm_0": {"mean": np.asarray(jnp.array([0.1, -2.0], jnp.bfloat16))}},
)


class Bank(NamedTuple):
    vectors: jax.Array
    position: jax.Array
    unused: tuple = ()


def make_state(width=4, scale=1.0):
    kernel = scale * jnp.arange(8.0 * width).reshape(8, width)
    student = {"dense": {"kernel": kernel, "bias": jnp.full(width, 0.1, jnp.bfloat16)}, "drop": {}}
    params = {"student": student, "terms": {}}
    return TrainState(
        step=jnp.array(7, jnp.int32),
        params=params,
        model_state={"mean": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45])},
        term_state={"bank": Bank(jnp.ones((4, 2)), jnp.array(3, jnp.uint8))},
        opt_state=optax.adam(optax.constant_schedule(1e-3)).init(params),
        key=jax.random.key(5),
    )


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def as_bytes(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert as_bytes(found) == as_bytes(wanted)


def files_of(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())


def flip(path, offset, bit=0):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(bytes(content))


def damage(directory):
    flip(files_of(directory)[-1], 0)


def on_mesh(num_devices, *axes):
    mesh = jax.make_mesh((num_devices,), ("data",), devices=jax.devices()[:num_devices])
    return NamedSharding(mesh, PartitionSpec(*axes))


def test_state_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 7, state)
    step, restored = checkpoint.restore(tmp_path, state)
    assert step == 7
    assert_same(restored, state)
    assert_same(jax.random.normal(restored.key, (3,)), jax.random.normal(state.key, (3,)))


def test_shapes_without_arrays_are_enough(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 1, state)
    assert_same(checkpoint.restore(tmp_path, abstract(state))[1], state)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.restore(tmp_path, {"a": jnp.ones(2)}) is None
    assert checkpoint.restore(tmp_path / "absent", {"a": jnp.ones(2)}) is None


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_stacked_keys(tmp_path, impl):
    tree = {"keys": jax.random.split(jax.random.key(1, impl=impl), 3)}
    checkpoint.save(tmp_path, 1, tree)
    assert_same(checkpoint.restore(tmp_path, tree)[1], tree)


def test_arrays_move_to_another_mesh(tmp_path):
    values = {"w": jnp.arange(64.0).reshape(16, 4)}
    checkpoint.save(tmp_path, 1, jax.device_put(values, on_mesh(8, "data")))
    for target in (on_mesh(2, None, "data"), on_mesh(4), on_mesh(1)):
        _, restored = checkpoint.restore(tmp_path, abstract(values, target))
        assert_same(restored, values)
        assert restored["w"].sharding.is_equivalent_to(target, 2)


def test_a_replicated_state_moves_from_eight_devices_to_one(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 1, jax.device_put(state, on_mesh(8)))
    _, restored = checkpoint.restore(tmp_path, abstract(state, on_mesh(1)))
    assert_same(restored, state)
    assert len(restored.key.devices()) == 1


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 20):
        checkpoint.save(tmp_path, step, {"a": jnp.full(2, step)})
        newest = checkpoint.restore(tmp_path, {"a": jnp.zeros(2, jnp.int32)})
        assert newest[0] == step
        assert newest[1]["a"].tolist() == [step, step]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_a_longer_history_can_be_kept(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, {"a": jnp.ones(2)}, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def test_keeping_fewer_than_two_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save: keep is 1, expected 2 or more"):
        checkpoint.save(tmp_path, 1, {"a": jnp.ones(2)}, keep=1)


def test_a_damaged_checkpoint_falls_back_with_one_warning(tmp_path):
    old, new = make_state(scale=1.0), make_state(scale=2.0)
    checkpoint.save(tmp_path, 5, old)
    checkpoint.save(tmp_path, 10, new)
    damage(tmp_path / "10")
    with pytest.warns(checkpoint.CheckpointWarning) as caught:
        step, restored = checkpoint.restore(tmp_path, old)
    assert step == 5
    assert_same(restored, old)
    (warning,) = caught
    assert re.search(r"step 10 in .* is damaged and not used: .+", str(warning.message))
    assert "\n" not in str(warning.message)


def test_saving_after_a_fallback_is_not_undone_by_the_damaged_ones(tmp_path):
    like = {"a": jnp.zeros(2)}
    for step in (5, 10):
        checkpoint.save(tmp_path, step, like)
    damage(tmp_path / "10")
    checkpoint.save(tmp_path, 7, like)
    assert checkpoint.restore(tmp_path, like)[0] == 7


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 5, {"a": jnp.zeros(2)})
    damage(tmp_path / "5")
    checkpoint.save(tmp_path, 5, {"a": jnp.ones(2)})
    assert checkpoint.restore(tmp_path, {"a": jnp.zeros(2)})[1]["a"].tolist() == [1, 1]


def test_all_damaged_is_an_error_that_says_what_to_delete(tmp_path):
    state = make_state()
    for step in (5, 10):
        checkpoint.save(tmp_path, step, state)
        damage(tmp_path / str(step))
    with pytest.warns(checkpoint.CheckpointWarning), pytest.raises(ValueError) as raised:
        checkpoint.restore(tmp_path, state)
    assert isinstance(raised.value, checkpoint.CheckpointError)
    assert str(tmp_path) in str(raised.value)
    assert "steps 5, 10" in str(raised.value)
    assert "delete that folder to start anew" in str(raised.value)


def test_a_damaged_checkpoint_that_was_asked_for_condemns_no_other(tmp_path):
    state = {"a": jnp.arange(3.0)}
    for step in (5, 10):
        checkpoint.save(tmp_path, step, state)
    damage(tmp_path / "5")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 5 in .* is damaged: "):
        checkpoint.restore(tmp_path, state, step=5)
    assert checkpoint.restore(tmp_path, state)[0] == 10


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, rename, fsync = [], Path.rename, os.fsync

    def named(path, target):
        events.append(("named", Path(target)))
        return rename(path, target)

    def written(descriptor):
        events.append(("on disk", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", named)
    monkeypatch.setattr(os, "fsync", written)
    checkpoint.save(tmp_path, 5, {"a": jnp.ones(2)})
    at = events.index(("named", tmp_path / "5"))
    before = {path.name for event, path in events[:at] if event == "on disk"}
    assert {path.name for path in (tmp_path / "5").rglob("*")} | {"5.unfinished"} <= before
    assert events[at + 1] == ("on disk", tmp_path)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sealed")
    checkpoint.save(directory / "state", 3, make_state())
    checkpoint.save_variables(directory / "network", VARIABLES, {"name": "mlp"})
    return directory


def assert_damage_is_noticed(directory):
    with pytest.warns(checkpoint.CheckpointWarning), pytest.raises(checkpoint.CheckpointError):
        checkpoint.restore(directory / "state", abstract(make_state()))


def assert_network_damage_is_noticed(directory, path):
    with pytest.raises(checkpoint.CheckpointError, match=r"the network in .* damaged") as raised:
        checkpoint.load_variables(directory / "network")
    assert path.name in str(raised.value) or "record.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["state", "network"])
def test_every_flipped_bit_is_noticed(sealed, tmp_path, name, capfd):
    rng = random.Random(0)
    directory = shutil.copytree(sealed, tmp_path / "copy")
    for path in files_of(directory / name):
        content = path.read_bytes()
        for _ in range(12 if content else 0):
            flip(path, rng.randrange(len(content)), rng.randrange(8))
            if name == "state":
                assert_damage_is_noticed(directory)
            else:
                assert_network_damage_is_noticed(directory, path)
            path.write_bytes(content)
    assert_same(checkpoint.restore(directory / "state", make_state())[1], make_state())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["state", "network"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "missing"])
def test_every_torn_or_missing_file_is_noticed(sealed, tmp_path, name, harm):
    for index, source in enumerate(files_of(sealed / name)):
        directory = shutil.copytree(sealed, tmp_path / str(index))
        path = directory / source.relative_to(sealed)
        content = path.read_bytes()
        if harm == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
        if path.exists() and not content:
            continue
        if name == "state":
            assert_damage_is_noticed(directory)
        else:
            assert_network_damage_is_noticed(directory, path)


def test_an_empty_folder_is_no_checkpoint_to_go_on_from(tmp_path):
    checkpoint.save(tmp_path, 5, {"a": jnp.ones(2)})
    (tmp_path / "10").mkdir()
    with pytest.warns(checkpoint.CheckpointWarning, match="step 10"):
        assert checkpoint.restore(tmp_path, {"a": jnp.ones(2)})[0] == 5


def test_leaves_are_checked_too(tmp_path, monkeypatch):
    """Files in order do not help if the reader makes something else of them."""
    checkpoint.save(tmp_path, 1, {"a": jnp.ones(2), "b": jnp.ones(2)})
    restore = ocp.Checkpointer.restore
    monkeypatch.setattr(
        ocp.Checkpointer, "restore", lambda *args, **kw: {**restore(*args, **kw), "b": jnp.zeros(2)}
    )
    with (
        pytest.warns(checkpoint.CheckpointWarning, match="b does not match its digest"),
        pytest.raises(checkpoint.CheckpointError),
    ):
        checkpoint.restore(tmp_path, {"a": jnp.ones(2), "b": jnp.ones(2)})


def test_another_shape_is_named_with_both_shapes(tmp_path):
    checkpoint.save(tmp_path, 1, make_state(width=4))
    message = (
        r"restore: .*1 holds opt_state/0/mu/student/dense/bias as bfloat16\[4\], "
        r"expected bfloat16\[6\]"
    )
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path, make_state(width=6))


def test_another_dtype_and_other_leaves_are_named(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"a as float32\[2\], expected int32\[2\]"):
        checkpoint.restore(tmp_path, {"a": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"b/c as nothing, expected float32\[1\]"):
        checkpoint.restore(tmp_path, {"a": jnp.ones(2), "b": {"c": jnp.ones(1)}})
    with pytest.raises(ValueError, match=r"a as float32\[2\], expected nothing"):
        checkpoint.restore(tmp_path, {})


OWNER = {"run": "a1", "phase": "distilled", "seed": 1}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({**OWNER, "run": "b2"}, "its run is b2, not a1"),
        ({**OWNER, "phase": "scratch"}, "its phase is scratch, not distilled"),
        ({**OWNER, "seed": 0}, "its seed is 0, not 1"),
        (None, "its run is None, not a1"),
    ],
)
@pytest.mark.parametrize("save", ["now", "soon"])
def test_a_checkpoint_of_another_training_is_not_taken(tmp_path, other, reason, save):
    like = {"a": jnp.zeros(2)}
    checkpoint.save(tmp_path / "own", 3, {"a": jnp.ones(2)}, owner=OWNER)
    if save == "now":
        checkpoint.save(tmp_path / "other", 9, {"a": jnp.full(2, 9.0)}, owner=other)
    else:
        with checkpoint.saving(tmp_path / "other", owner=other) as save_fn:
            save_fn(9, {"a": jnp.full(2, 9.0)})
    shutil.copytree(tmp_path / "other" / "9", tmp_path / "own" / "9")
    message = f"step 9 in .* is of another training and not used: {reason}"
    with pytest.warns(checkpoint.CheckpointWarning, match=message):
        step, found = checkpoint.restore(tmp_path / "own", like, owner=OWNER)
    assert (step, found["a"].tolist()) == (3, [1, 1])
    assert checkpoint.restore(tmp_path / "own", like)[0] == 9, "whoever does not ask gets it"
    with (
        pytest.warns(checkpoint.CheckpointWarning),
        pytest.raises(checkpoint.CheckpointError, match=f"{reason}: delete that folder to start"),
    ):
        checkpoint.restore(tmp_path / "other", like, owner=OWNER)


def test_a_checkpoint_under_the_name_of_another_step_is_not_taken(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"a": jnp.full(2, step)})
    (tmp_path / "10").rename(tmp_path / "20")
    like = {"a": jnp.zeros(2, jnp.int32)}
    with pytest.warns(checkpoint.CheckpointWarning, match="its step is 10, not 20"):
        assert checkpoint.restore(tmp_path, like)[0] == 5
    with pytest.raises(checkpoint.CheckpointError, match="its step is 10, not 20"):
        checkpoint.restore(tmp_path, like, step=20)


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"3", b"", b"{", b"{}", b"\xff{}", b'{"sha256": 1}', b"[" * 10**5]
)
def test_a_record_that_is_something_else_falls_back_too(tmp_path, content):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"a": jnp.ones(2)}, score=0.5)
    (tmp_path / "10" / "record.json").write_bytes(content)
    with pytest.warns(checkpoint.CheckpointWarning, match=r"step 10 .* record\.json") as caught:
        assert checkpoint.restore(tmp_path, {"a": jnp.ones(2)})[0] == 5
    assert "\n" not in str(caught[0].message)
    assert checkpoint.best_step(tmp_path) == 5


def test_a_file_in_place_of_the_directory_is_an_os_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*taken"):
        checkpoint.save(tmp_path / "taken", 1, {"a": jnp.ones(2)})
    with pytest.raises(OSError, match=r"cannot write .*taken"):
        checkpoint.save_variables(tmp_path / "taken" / "student", VARIABLES, {})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("where", ["arrays", "record"])
def test_a_failed_write_names_the_directory_and_loses_nothing(tmp_path, monkeypatch, code, where):
    checkpoint.save(tmp_path / "state", 1, {"a": jnp.ones(2)})
    checkpoint.save_variables(tmp_path / "student", VARIABLES, {"name": "first"})

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    owner, name = {"arrays": (ocp.Checkpointer, "save"), "record": (Path, "write_text")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        for step in (1, 2):
            with pytest.raises(OSError, match=f"cannot write .*state.*{os.strerror(code)}"):
                checkpoint.save(tmp_path / "state", step, {"a": jnp.zeros(2)})
        with pytest.raises(OSError, match=f"cannot write .*student.*{os.strerror(code)}"):
            checkpoint.save_variables(tmp_path / "student", VARIABLES, {"name": "second"})
    step, restored = checkpoint.restore(tmp_path / "state", {"a": jnp.zeros(2)})
    assert (step, restored["a"].tolist()) == (1, [1, 1])
    assert checkpoint.load_variables(tmp_path / "student")[1] == {"name": "first"}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["1"]


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from kdjax import checkpoint
for step in range(1, 100_000):
    tree = {"a": jnp.full((64, 64), step, jnp.float32), "b": {"c": jnp.array(step)}}
    checkpoint.save(sys.argv[1], step, tree)
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    like = {"a": jnp.zeros((64, 64)), "b": {"c": jnp.array(0)}}
    rng = random.Random(1)
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        command = [sys.executable, "-c", SAVE_FOREVER, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "1\n"
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            reported = [1, *map(int, process.stdout.read().split())]
        step, restored = checkpoint.restore(directory, like)
        assert step in (reported[-1], reported[-1] + 1)
        assert restored["b"]["c"] == step
        assert (np.asarray(restored["a"]) == step).all()


def test_what_a_kill_left_behind_is_removed_by_the_next_save(tmp_path):
    for name in ("3.unfinished", "2.removed"):
        (tmp_path / name / "arrays").mkdir(parents=True)
    assert checkpoint.restore(tmp_path, {"a": jnp.ones(2)}) is None
    checkpoint.save(tmp_path, 4, {"a": jnp.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


def test_saving_and_restoring_print_nothing(tmp_path):
    code = (
        "import sys, jax.numpy as jnp; from kdjax import checkpoint\n"
        "checkpoint.save(sys.argv[1], 1, {'a': jnp.ones(2)})\n"
        "checkpoint.restore(sys.argv[1], {'a': jnp.ones(2)})\n"
        "import jax; checkpoint.restore(sys.argv[1], {'a': jax.ShapeDtypeStruct((2,), 'float32')})"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_variables_come_back_with_their_metadata(tmp_path):
    metadata = {"name": "mlp", "widths": [32, 32], "mean": 0.1307, "none": None}
    checkpoint.save_variables(tmp_path / "student", VARIABLES, metadata)
    variables, found = checkpoint.load_variables(tmp_path / "student")
    assert isinstance(variables, Variables)
    assert_same(variables, VARIABLES)
    assert found == metadata


def test_sharded_and_stateless_variables(tmp_path):
    params = jax.device_put({"w": jnp.arange(16.0)}, on_mesh(8, "data"))
    checkpoint.save_variables(tmp_path / "student", Variables(params, {}), {})
    assert_same(checkpoint.load_variables(tmp_path / "student")[0], Variables(params, {}))


def test_variables_are_replaced(tmp_path):
    for name in ("first", "second"):
        checkpoint.save_variables(tmp_path / "student", VARIABLES, {"name": name})
    assert checkpoint.load_variables(tmp_path / "student")[1] == {"name": "second"}
    assert len(list((tmp_path / "student").iterdir())) == 1


def test_no_variables_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent holds no network"):
        checkpoint.load_variables(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no network"):
        checkpoint.load_variables(tmp_path)


def test_a_record_that_was_edited_is_noticed(tmp_path):
    checkpoint.save_variables(tmp_path, VARIABLES, {"name": "mlp"})
    (record,) = tmp_path.rglob("record.json")
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "metadata": {"name": "resnet"}}))
    with pytest.raises(checkpoint.CheckpointError, match=r"record\.json does not match"):
        checkpoint.load_variables(tmp_path)


def test_digest_depends_on_bytes_paths_dtypes_and_shapes():
    tree = {"a": {"w": jnp.ones((2, 3))}, "k": jax.random.key(0)}
    variants = [
        tree,
        {"a": {"v": jnp.ones((2, 3))}, "k": jax.random.key(0)},
        {"a": {"w": jnp.ones((3, 2))}, "k": jax.random.key(0)},
        {"a": {"w": jnp.ones((2, 3), jnp.bfloat16)}, "k": jax.random.key(0)},
        {"a": {"w": jnp.ones((2, 3)).at[0, 0].set(np.nextafter(1, 2))}, "k": jax.random.key(1)},
        {"a": {"w": jnp.ones((2, 3)).at[0, 0].multiply(-1)}, "k": jax.random.key(0)},
        {"a": {"w": jnp.ones((2, 3))}},
    ]
    digests = [checkpoint.params_sha256(variant) for variant in variants]
    assert len(set(digests)) == len(variants)
    assert re.fullmatch("[0-9a-f]{64}", digests[0])
    assert checkpoint.params_sha256(jax.device_put(tree, on_mesh(8))) == digests[0]
    assert checkpoint.params_sha256({"k": jax.random.key(0), "a": dict(tree["a"])}) == digests[0]


def test_digest_is_the_same_on_every_machine():
    tree = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7, np.int32)}
    expected = "3c1d7698c4238e87cf8f60b9a37d3a561bc88e2aa61ac20f9dfc244f5ca5a1cb"
    assert checkpoint.params_sha256(tree) == expected
    assert checkpoint.params_sha256({**tree, "b": np.asfortranarray(tree["b"])}) == expected


def test_no_warnings_for_a_sound_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, make_state())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint.restore(tmp_path, make_state())
    assert not [w for w in caught if issubclass(w.category, checkpoint.CheckpointWarning)]
