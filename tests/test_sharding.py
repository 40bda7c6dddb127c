"""Meshes, and the sizes of batches that fit them."""

import jax
import numpy as np
import pytest

from kdjax import sharding


def test_a_mesh_takes_all_devices_unless_told():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert sharding.make_mesh(data=2).size == 2


@pytest.mark.parametrize("sizes", [{"data": 9}, {"data": 0}, {"fsdp": 3}, {"data": 4, "tensor": 4}])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="does not fit on 8 devices"):
        sharding.make_mesh(**sizes)


def test_a_mesh_that_leaves_a_process_without_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"a mesh of 8 x 1 x 1 .* has no device of process 1"):
        sharding.make_mesh()


def test_batches_are_split_and_states_copied():
    mesh = sharding.make_mesh()
    batch = sharding.shard_batch({"image": np.zeros((16, 3), np.float32)}, mesh)
    assert {s.data.shape for s in batch["image"].addressable_shards} == {(2, 3)}
    state = sharding.replicate({"w": jax.numpy.ones((4, 4))}, mesh)
    assert {s.data.shape for s in state["w"].addressable_shards} == {(4, 4)}


@pytest.mark.parametrize(
    ("batch_size", "parts", "words"),
    [
        (100, 1, "a batch of 100 does not divide over 8 devices; sizes that fit: 96 and 104"),
        (5, 1, "sizes that fit: 8 and its multiples"),
        (24, 2, "over 8 devices in 2 micro-batches; sizes that fit: 16 and 32"),
    ],
)
def test_a_batch_that_does_not_divide_names_sizes_that_do(batch_size, parts, words):
    with pytest.raises(ValueError, match=words):
        sharding.check_batch_size(batch_size, sharding.make_mesh(), num_micro_batches=parts)
    sharding.check_batch_size(32, sharding.make_mesh(), num_micro_batches=parts)
