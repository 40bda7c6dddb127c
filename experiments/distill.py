"""A thin run: digits, a teacher, a student from labels alone and the same student distilled."""

import json
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from kdjax.losses import kd_loss


class MLP(nn.Module):
    """A multilayer perceptron."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """Return logits."""
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def train(model, key, images, labels, soft_logits, soft_weight, steps=600):
    """Train on whole batches and return the parameters."""
    params = model.init(key, images)
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            logits = model.apply(params, images)
            return kd_loss(logits, soft_logits, labels, soft_weight=soft_weight).mean()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(steps):
        params, opt_state = step(params, opt_state)
    return params


def main():
    """Train the three networks and write summary.json."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = jnp.asarray(digits.data[order] / 16, jnp.float32), jnp.asarray(digits.target[order])
    train_x, train_y, test_x, test_y = x[:1347], y[:1347], x[1347:], y[1347:]
    teacher, student = MLP((256, 256)), MLP((32,))
    teacher_params = train(teacher, jax.random.key(0), train_x, train_y, jnp.zeros((1347, 10)), 0.0)
    logits = teacher.apply(teacher_params, train_x)
    few = slice(0, 100)
    errors = {"teacher": [], "scratch": [], "distilled": []}

    def count(model, params):
        return int((model.apply(params, test_x).argmax(-1) != test_y).sum())

    errors["teacher"].append(count(teacher, teacher_params))
    for seed in range(5):
        for name, weight in (("scratch", 0.0), ("distilled", 0.9)):
            key = jax.random.key(seed)
            params = train(student, key, train_x[few], train_y[few], logits[few], weight)
            errors[name].append(count(student, params))
    summary = {name: {"test_errors": values} for name, values in errors.items()}
    workdir = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
