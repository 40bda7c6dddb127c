"""Small networks and batches that the tests of the core share.

What is the same is one object, so that what jax compiles for it is compiled once in a process.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Model, Objective, Outputs, Variables

NUM_CLASSES = 5
sgd = functools.cache(optax.sgd)
SGD = sgd(0.1)


@functools.cache
def linear_model(features: int = 6) -> Model:
    """A network without state: hidden layer, feature `hidden`, logits."""

    def init(key, inputs):
        first, second = jax.random.split(key)
        width = int(np.prod(inputs.shape[1:]))
        params = {
            "a": jax.random.normal(first, (width, features)) / width**0.5,
            "b": jax.random.normal(second, (features, NUM_CLASSES)),
        }
        return Variables(params, {})

    def apply(params, state, inputs, *, train, key=None):
        hidden = jnp.tanh(inputs.reshape(len(inputs), -1) @ params["a"])
        return Outputs(hidden @ params["b"], {"hidden": hidden}), state

    return Model(init, apply)


def batch_of(size: int, seed: int = 0, width: int = 4) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, width)).astype(np.float32),
        "label": rng.integers(0, NUM_CLASSES, size).astype(np.int32),
    }


def teacher_for(batch: dict, seed: int = 7) -> teachers.Teacher:
    return _teacher(batch["image"].shape[1:], seed)


@functools.cache
def _teacher(shape: tuple[int, ...], seed: int) -> teachers.Teacher:
    model = linear_model(9)
    return teachers.frozen(model, model.init(jax.random.key(seed), np.zeros((1, *shape))))


@functools.cache
def taught(model: Model, objective: Objective, optimizer, width: int = 4, **options):
    """Return the step of a student under the teacher of batches of that width."""
    train_step = step.make_train_step(model, objective, optimizer, **options)
    return step.with_teacher(train_step, _teacher((width,), 7))


@functools.cache
def kd_objective(soft_weight: float = 0.9) -> Objective:
    return combine(
        {"soft": terms.soft_targets(temperature=3.0), "hard": terms.cross_entropy()},
        {"soft": soft_weight, "hard": 1 - soft_weight},
    )


@functools.cache
def norm_model() -> Model:
    """BatchNorm and dropout in one network."""
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(16)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
            return nn.Dense(NUM_CLASSES)(x)

    return models.from_linen(Net())
