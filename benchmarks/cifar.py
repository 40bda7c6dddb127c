"""One pair of the CIFAR-100 table in one program: resnet32x4 teaches resnet8x4.

From labels, by KD (Hinton, Vinyals & Dean, 2015) and by DKD (Zhao et al., "Decoupled Knowledge
Distillation", 2022, arXiv:2203.08679) with that table's recipe: batches of 64, images padded by
four pixels, cropped and mirrored, SGD with momentum 0.9, weight decay 5e-4 and a rate of 0.05, a
tenth of it from 5/8, 3/4 and 7/8 of the steps on. The three students of a seed start alike and see
the same views, which the teacher answers once. There are 240 epochs in the table; here as many as
fit into the time, with the schedule as long as they are.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import data, losses, many, models, step, teachers, terms
from kdjax.objective import combine
from kdjax.types import Array, Batch, Model, Objective, Variables

Row = dict[str, Any]
PUBLISHED = {"labels": 72.50, "kd": 73.33, "dkd": 76.32}
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
EPOCHS, WARM_UP, CALL = 240, 20, 100
_HIGHEST = 0.9  # of the time that is left is planned for


class Sizes(NamedTuple):
    """Networks, and how they are trained."""

    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    batch_size: int
    most_epochs: int
    steps_per_call: int


class Sets(NamedTuple):
    """Images and labels of training and test."""

    train: Mapping[str, Any]
    test: Mapping[str, Any]
    num_classes: int


X4, FEW = {"widths": (32, 64, 128, 256)}, {"widths": (4, 4, 4, 4)}
FULL = Sizes({"depth": 8, **X4}, {"depth": 32, **X4}, 64, EPOCHS, CALL)
TINY = Sizes({"depth": 8, **FEW}, {"depth": 8, **FEW}, 4, 2, 2)


def read(data_dir: str | None) -> Sets:
    """Read CIFAR-100, all of its training images."""
    found = data.load("cifar100", data_dir=data_dir, validation_fraction=0.0)
    train, test = ({"image": x.image, "label": x.label} for x in (found.train, found.test))
    return Sets(train, test, found.num_classes)


def drawn() -> Sets:
    """Draw a few small images."""
    rng = np.random.default_rng(0)

    def of(count: int) -> dict[str, np.ndarray]:
        images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
        return {"image": images, "label": rng.integers(0, 5, count).astype(np.int32)}

    return Sets(of(16), of(8), 5)


def network(sizes: Mapping[str, Any], num_classes: int) -> Model:
    """Make a network of raw images, in bfloat16 where that is fast."""
    own = dict(sizes)
    dtype = None if jax.default_backend() == "cpu" else jnp.bfloat16
    made = models.resnet(own.pop("depth"), num_classes, dtype=dtype, **own)
    return models.normalized(made, MEAN, STD)


def objectives(warm_up: Array) -> dict[str, Objective]:
    """Return what each student minimizes; DKD's term grows over the first steps."""
    hard = terms.cross_entropy()
    grown: dict[str, Any] = {"hard": 1.0, "dkd": lambda at: jnp.minimum(at / warm_up, 1.0)}
    return {
        "labels": combine({"hard": hard}, {"hard": 1.0}),
        "kd": combine({"kd": terms.kd(temperature=4.0, soft_weight=0.9)}, {"kd": 1.0}),
        "dkd": combine({"hard": hard, "dkd": terms.of(losses.dkd_loss, temperature=4.0)}, grown),
    }


def optimizer(num_steps: Array) -> optax.GradientTransformation:
    """Return the table's, for a number of steps that may be traced."""

    def rate(at: Array) -> Array:
        passed = sum(jnp.float32(at >= share * num_steps) for share in (5 / 8, 3 / 4, 7 / 8))
        return 0.05 * jnp.float32(0.1) ** passed

    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, 0.9))


def program(student: Model, teacher: Model | None, names: list[str]) -> Any:
    """Compile calls of several steps, of the students of all seeds at once.

    Returns:
        `(states, rows, count, num_steps, examples, variables) -> (states, metrics)`; the arrays of
        the states and of rows, [seeds, steps, batch], have a leading axis.
    """
    view_fn = data.augment(data.pad_and_crop, data.flip)

    def member(
        states: Any, rows: Array, count: Array, num_steps: Array, examples: Batch, held: Any
    ) -> tuple[Any, Any]:
        learning, goals = optimizer(num_steps), objectives(num_steps * WARM_UP / EPOCHS)
        steps = {n: step.make_train_step(student, goals[n], learning) for n in names}

        def one(states: Any, rows: Batch) -> tuple[Any, Any]:
            first = states[names[0]]
            key = jax.random.fold_in(jax.random.fold_in(first.key, first.step), 1)
            view = view_fn(key, {name: x[rows["index"]] for name, x in examples.items()})
            outputs = None if teacher is None else teachers.frozen(teacher, held).apply(held, view)
            found = {n: take(states[n], view, outputs) for n, take in steps.items()}
            return {n: x[0] for n, x in found.items()}, {n: x[1] for n, x in found.items()}

        return many.take_steps(one, states, {"index": rows}, count)

    return many.make_sweep_step(member, in_axes=(0, 0, None, None, None, None))


class Lesson:
    """Students of some seeds that learn together."""

    def __init__(
        self,
        *networks: Any,
        names: list[str],
        sets: Sets,
        sizes: Sizes,
        seeds: list[int],
        held: Variables | None = None,
    ):
        self.student, teacher = networks
        self._size, self._most = sizes.batch_size, sizes.steps_per_call
        self._seeds, self._names, self._held = seeds, names, held
        self._examples, self._test = jax.device_put((dict(sets.train), dict(sets.test)))
        self.steps_per_epoch = -(-len(sets.train["label"]) // self._size)
        self._run = program(self.student, teacher, names)
        self.states = self._fresh()

    def _fresh(self) -> Any:
        """Make the states that all start from."""
        batch = {name: x[:2] for name, x in self._examples.items()}
        learning, goals = optimizer(jnp.float32(1)), objectives(jnp.float32(1))
        init = step.init_train_state
        return many.stack([
            {n: init(jax.random.key(seed), self.student, goals[n], learning, batch, None)
             for n in self._names}
            for seed in self._seeds
        ])  # fmt: skip

    def seconds_per_step(self) -> float:
        """Compile, and time a call; then start anew."""
        for _ in range(2):
            begin = time.perf_counter()
            self._call(0, self._most, self._most)
            seconds = (time.perf_counter() - begin) / self._most
        self.states = self._fresh()
        return seconds

    def train(self, num_epochs: int) -> None:
        """Take all steps."""
        total = num_epochs * self.steps_per_epoch
        for at in range(0, total, self._most):
            self._call(at, min(self._most, total - at), total)

    def _call(self, at: int, count: int, total: int) -> None:
        """Take some steps from a step on."""
        num_examples, steps = len(self._examples["label"]), range(at, at + self._most)
        rows = np.stack([
            np.stack([data.batch_indices(seed, i, batch_size=self._size, num_examples=num_examples)
                      for i in steps])
            for seed in self._seeds
        ])  # fmt: skip
        rest = np.int32(count), np.float32(total), self._examples, self._held
        self.states, metrics = self._run(self.states, rows.astype(np.int32), *rest)
        jax.block_until_ready(metrics)

    def teach_by(self, variables: Variables) -> None:
        """Take another teacher of the same network."""
        self._held = variables

    def variables(self, name: str) -> Variables:
        """Return trained variables, whose arrays have a leading axis [seeds]."""
        state = self.states[name]
        return Variables(state.params["student"], state.model_state)

    def accuracies(self, name: str) -> list[float]:
        """Return the share of the test images that each seed's network has right, in percent."""
        images, labels = self._test["image"], self._test["label"]
        hits = _hits(self.student, self.variables(name), images, labels)
        return [100 * float(x) / len(labels) for x in hits]


def _hits(model: Model, variables: Variables, images: Array, labels: Array) -> Array:
    """Count right answers of each member, a thousand images at a time."""

    @jax.jit
    def count(variables: Variables, images: Array, labels: Array) -> Array:
        def own(variables: Variables) -> Array:
            outputs, _ = model.apply(*variables, images, train=False)
            return jnp.sum(jnp.argmax(outputs.logits, axis=-1) == labels)

        return jax.vmap(own)(variables)

    parts = range(0, len(labels), 1000)
    counted = [count(variables, images[i : i + 1000], labels[i : i + 1000]) for i in parts]
    return jnp.sum(jnp.stack(counted), axis=0)


def table(sets: Sets, sizes: Sizes, *, num_seeds: int, seconds: float) -> Iterator[Row]:
    """Train the teacher, then the students, for as many epochs as fit.

    Args:
        sets: what they learn from and are measured on.
        sizes: of the networks.
        num_seeds: students of each kind.
        seconds: how long all of it may take.

    Yields:
        What the teacher has right, then for each way to learn the mean over seeds at the last
        epoch, with the sample standard deviation, beside what is published for 240 epochs.
    """
    begin = time.monotonic()
    student, teacher = (network(x, sets.num_classes) for x in (sizes.student, sizes.teacher))
    alone = Lesson(teacher, None, names=["labels"], sets=sets, sizes=sizes, seeds=[0])
    held = many.member(alone.variables("labels"), 0)
    seeds = list(range(num_seeds))
    options: dict[str, Any] = {"names": [*PUBLISHED], "sets": sets, "sizes": sizes, "seeds": seeds}
    # On a teacher that knows nothing yet: what a step takes does not depend on that.
    trial = Lesson(student, teacher, held=held, **options)
    per_step = alone.seconds_per_step() + trial.seconds_per_step()
    left = seconds - (time.monotonic() - begin)
    fitting = int(_HIGHEST * left / (per_step * alone.steps_per_epoch))
    epochs = max(1, min(sizes.most_epochs, fitting))
    alone.train(epochs)
    yield {"what": f"teacher, {epochs} epochs", "accuracy %": alone.accuracies("labels")[0]}
    trial.teach_by(many.member(alone.variables("labels"), 0))
    trial.train(epochs)
    for name, published in PUBLISHED.items():
        found = trial.accuracies(name)
        yield {
            "what": f"student, {name}, {epochs} epochs, {num_seeds} seeds",
            "accuracy %": statistics.fmean(found),
            "deviation": statistics.stdev(found) if num_seeds > 1 else 0.0,
            f"published, {EPOCHS} epochs": published,
            "ms a step of all": per_step * 1e3,
        }
