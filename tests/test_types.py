"""The state of training, whose keys checkpoints hold, and a module that needs jax alone."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kdjax.types import TrainState


def state():
    return TrainState(
        step=jnp.array(0),
        params={"student": {"kernel": jnp.ones(2)}, "terms": {}},
        model_state={"mean": jnp.zeros(1)},
        term_state=(),
        opt_state=(jnp.ones(1),),
        key=jax.random.key(0),
    )


def test_leaves_have_the_keys_that_are_in_checkpoints():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state())]
    names = [".step", ".params['student']['kernel']", ".model_state['mean']", ".opt_state[0]"]
    assert paths == [*names, ".key"]


def test_a_state_is_replaced_and_never_changed():
    assert state().replace(step=5).step == dataclasses.replace(state(), step=5).step == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        state().step = 5


def test_types_and_losses_need_jax_alone():
    code = (
        "import sys, kdjax.types, kdjax.losses; "
        "bad = {'flax', 'optax', 'chex'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
