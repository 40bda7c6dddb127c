"""Distil other tasks than one class of many: labels by themselves, numbers, embeddings, pixels.

    python -m experiments.tasks --task multi-label
    python -m experiments.tasks --task segmentation --num-seeds 5 --workdir runs/pixels

A teacher learns from all training examples; for every seed a student learns from a few of them by
labels alone, and the same student with the teacher's answers beside the labels. Each task has its
losses, its measures and a small set of real data:

    multi-label   the digits of scikit-learn: even, above four, prime, with a loop
    binary        the same digits: even or odd, one logit
    regression    the diabetes set of scikit-learn, one number
    embedding     the digits: 16 numbers each, close for one class and apart for others
    segmentation  collages of the digits: the class of each pixel, faint ones ignored
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

import kdjax
from kdjax import runs
from kdjax.runs import flags
from kdjax.runs.flags import flag
from kdjax.runs.settings import COUNTED, POSITIVE, SEED

if TYPE_CHECKING:
    from kdjax.types import Array, Model, Objective, Teacher, Term, TermInputs, Variables

TaskName = Literal["multi-label", "binary", "regression", "embedding", "segmentation"]
KINDS = ("teacher", "labels alone", "distilled")
Examples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which task, how long and how often, and where the results go."""

    task: TaskName = flag("What is learned.", default="multi-label")
    num_steps: int = flag("Steps of every training.", COUNTED, default=300)
    num_seeds: int = flag("Students of each kind.", POSITIVE, default=3)
    seed: int = flag("The first of the seeds.", SEED, default=0)
    workdir: Path | None = flag("Where table and page go. Default: runs/tasks-TASK.")


class Task(NamedTuple):
    """Data, networks, losses with their weights, and how a network is measured on the test set."""

    train: Examples
    few: int
    teacher: Model
    student: Model
    hard: Term
    soft: Mapping[str, tuple[Term, float]]
    measure: Callable[[Model, Variables], dict[str, float]]


def run(settings: Settings, command: str) -> None:
    """Train the teacher and both kinds of students, write `summary.json`, table and page."""
    task = TASKS[settings.task]()
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    absent = kdjax.teachers.absent()
    labels = kdjax.objective.combine({"hard": task.hard}, {"hard": 1.0})
    variables = trained(settings, task.teacher, labels, absent, task.train, settings.seed)
    found["teacher"].append(task.measure(task.teacher, variables))
    teacher = kdjax.teachers.frozen(task.teacher, variables)
    terms = {name: term for name, (term, _) in task.soft.items()}
    weights = {name: weight for name, (_, weight) in task.soft.items()}
    both = kdjax.objective.combine({"hard": task.hard, **terms}, {"hard": 1.0, **weights})
    lessons = {"labels alone": (labels, absent), "distilled": (both, teacher)}
    for seed in range(settings.seed, settings.seed + settings.num_seeds):
        order = np.random.default_rng(seed).permutation(len(task.train["image"]))[: task.few]
        few = {name: x[order] for name, x in task.train.items()}
        for kind, lesson in lessons.items():
            student = trained(settings, task.student, *lesson, few, seed)
            found[kind].append(task.measure(task.student, student))
    report(settings, found, command)


def main(args: list[str] | None = None, program: str = "python -m experiments.tasks") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__ or "", args)
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
        run(settings, command)


def trained(
    settings: Settings,
    model: Model,
    objective: Objective,
    teacher: Teacher,
    examples: Examples,
    seed: int,
) -> Variables:
    """Train a network from a seed and return its variables."""
    # Here and not above: flags are read before the seconds that these imports take.
    import jax
    import optax

    size = min(32, len(examples["image"]))
    schedule = optax.cosine_decay_schedule(3e-3, settings.num_steps)
    parts = model, objective, optax.adamw(schedule, weight_decay=1e-4)
    first = {name: x[:size] for name, x in examples.items()}
    outputs = teacher.apply(teacher.variables, first)
    state = kdjax.step.init_train_state(jax.random.key(seed), *parts, first, outputs)
    step = kdjax.step.with_teacher(kdjax.step.make_train_step(*parts), teacher)
    batches = kdjax.data.train_batches(examples, seed=seed, batch_size=size)
    state = kdjax.loop.fit(step, state, batches, num_steps=settings.num_steps)
    return kdjax.types.Variables(state.params["student"], state.model_state)


def report(settings: Settings, found: Mapping[str, list[dict[str, float]]], command: str) -> None:
    """Write `summary.json` and the page; print the table."""
    formatted, names = runs.numbers.mean_and_deviation, list(found["teacher"][0])
    rows = [
        [kind, *(formatted([one[name] for one in own], 4) for name in names)]
        for kind, own in found.items()
    ]
    table = runs.report.Table(["", *names], rows, note="mean ± sample standard deviation")
    directory = settings.workdir or Path("runs") / f"tasks-{settings.task}"
    directory.mkdir(parents=True, exist_ok=True)
    means = [np.mean([one[names[0]] for one in found[kind]]) for kind in KINDS[1:]]
    lede = f"{names[0]} from labels alone {means[0]:.4g}, distilled {means[1]:.4g}."
    facts = {"Command": command, "Version": kdjax.__version__}
    runs.report.publish(
        directory,
        found,
        table,
        lambda: runs.report.results_page(f"Task: {settings.task}", lede, table, {}, facts),
    )


def evaluated(test: Examples, **measures: Any) -> Callable[[Model, Variables], dict[str, float]]:
    """Return what measures a network on test examples, by measures of `kdjax.metrics`."""

    def measure(model: Model, variables: Variables) -> dict[str, float]:
        step = kdjax.step.make_eval_step(model, metrics=measures)
        batches = kdjax.data.eval_batches(test, batch_size=150)
        metrics = kdjax.loop.evaluate(step, variables, batches)
        return {name: kdjax.metrics.value(metrics[name]) for name in measures}

    return measure


def digits() -> tuple[Examples, Examples]:
    """Return the digits of 8x8 pixels in [0, 1] to train and to test on."""
    found = kdjax.data.load("digits", validation_fraction=0.0)
    return tuple(  # type: ignore[return-value]
        {"image": np.float32(x.image) / 255, "label": np.asarray(x.label)}
        for x in (found.train, found.test)
    )


def multi_label() -> Task:
    """Four labels of a digit, each true or false by itself."""
    rows = np.array([[n % 2 == 0, n > 4, n in (2, 3, 5, 7), n in (0, 6, 8, 9)] for n in range(10)])
    return _of_labels(rows.astype(np.int32))


def binary() -> Task:
    """Even or odd: one logit."""
    return _of_labels(np.array([[n % 2 == 0] for n in range(10)], np.int32))


def _of_labels(rows: np.ndarray) -> Task:
    losses, of, metrics = kdjax.losses, kdjax.terms.of, kdjax.metrics
    train, test = ({**x, "label": rows[x["label"]]} for x in digits())
    measure = evaluated(
        test,
        mean_average_precision=metrics.of(metrics.mean_average_precision),
        binary_accuracy=metrics.of(metrics.binary_accuracy),
    )
    teacher, student = (kdjax.models.mlp(rows.shape[1], widths=w) for w in ((256, 256), (32,)))
    soft = {"soft": (of(losses.sigmoid_kd_loss, temperature=1.0), 20.0)}
    return Task(train, 100, teacher, student, of(losses.binary_cross_entropy), soft, measure)


def regression() -> Task:
    """How far diabetes has come in a year, in standard deviations, from ten measurements."""
    from sklearn.datasets import load_diabetes

    losses, of, metrics = kdjax.losses, kdjax.terms.of, kdjax.metrics
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (20 * x[order]).astype(np.float32), ((y[order] - 152) / 77).astype(np.float32)
    train, test = ({"image": x[i], "label": y[i]} for i in (slice(0, 300), slice(300, None)))
    measure = evaluated(
        test,
        r_squared=metrics.of(metrics.r_squared),
        root_mean_squared_error=metrics.of(metrics.root_mean_squared_error),
    )
    # A teacher of a few numbers: a large one would learn 300 examples by heart.
    teacher, student = kdjax.models.mlp(1, widths=()), kdjax.models.mlp(1, widths=(32,))
    soft = {
        "bound": (of(losses.bounded_regression_loss), 0.5),
        "match": (of(losses.logit_mse_loss), 4.0),
    }
    return Task(train, 40, teacher, student, of(losses.squared_error), soft, measure)


def embedding() -> Task:
    """Sixteen numbers for a digit; measured by whether its nearest other is of its class."""
    import jax
    import jax.numpy as jnp

    losses, stateless = kdjax.losses, kdjax.terms.stateless
    # Under another name: the numbers are no logits of these classes.
    train, test = ({"image": x["image"], "digit": x["label"]} for x in digits())

    def unit(x: Array) -> Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def neighbors(x: TermInputs) -> Array:
        """Return -log of the share that an example's own class has among its neighbors."""
        z, own = unit(x.student.logits), x.batch["digit"]
        scores = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T / 0.1)
        same = jax.nn.logsumexp(jnp.where(own[:, None] == own[None, :], scores, -1e4), axis=1)
        return jax.nn.logsumexp(scores, axis=1) - same

    def like(loss: Callable[..., Array]) -> Term:
        def values(x: TermInputs) -> Array:
            assert x.teacher is not None
            return loss(x.student.logits, x.teacher.logits, mask=x.mask)

        return stateless(values, couples_batch=True)

    def measure(model: Model, variables: Variables) -> dict[str, float]:
        z = unit(model.apply(*variables, test["image"], train=False)[0].logits)
        every = jnp.ones(len(z), bool)
        scores = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T)
        same = jnp.asarray(test["digit"][:, None] == test["digit"])
        return {
            f"recall at {k}": kdjax.metrics.value(
                kdjax.metrics.recall_at_k(scores, same, every, k=k)
            )
            for k in (1, 5)
        }

    teacher, student = (kdjax.models.mlp(16, widths=w) for w in ((256, 256), (32,)))
    soft = {
        "scores": (like(losses.similarity_score_loss), 10.0),
        "neighbors": (like(losses.similarity_distribution_loss), 0.5),
    }
    return Task(
        train, 100, teacher, student, stateless(neighbors, couples_batch=True), soft, measure
    )


def segmentation() -> Task:
    """Collages of four places for digits: of each pixel the digit's class, or the background."""
    from flax import linen as nn

    class Pixels(nn.Module):
        """A layer that sees places of 8x8 pixels, and two that say what their pixels are."""

        width: int

        @nn.compact
        def __call__(self, x: Array) -> Array:
            x = nn.relu(nn.Conv(self.width, (8, 8), strides=8, name="places")(x))
            x = nn.relu(nn.Dense(self.width, name="hidden")(x))
            x = nn.Dense(64 * 11, name="head")(x).reshape(len(x), 2, 2, 8, 8, 11)
            return x.swapaxes(2, 3).reshape(len(x), 16, 16, 11)

    losses, of, metrics = kdjax.losses, kdjax.terms.of, kdjax.metrics
    train, test = (collages(x, count, seed) for seed, (x, count) in
                   enumerate(zip(digits(), (400, 100), strict=True)))  # fmt: skip
    measure = evaluated(test, mean_iou=metrics.of(metrics.mean_iou, ignore_label=255))
    teacher, student = (kdjax.models.from_linen(Pixels(w), features=("hidden",)) for w in (128, 32))
    soft = {
        "pixels": (of(losses.soft_target_loss, temperature=2.0), 1.0),
        "hint": (kdjax.terms.hint("hidden", "hidden"), 0.1),
    }
    hard = of(losses.cross_entropy, ignore_label=255)
    return Task(train, 30, teacher, student, hard, soft, measure)


def collages(examples: Examples, count: int, seed: int) -> Examples:
    """Lay digits on 16x16 pixels: the label is 0 without a digit, 255 where it is faint."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(examples["image"]), (count, 2, 2))
    there = rng.random((count, 2, 2, 1, 1)) < 0.7
    places = there * examples["image"][chosen][..., 0]
    classes = 1 + examples["label"][chosen][..., None, None]
    labels = np.select([places > 0.5, places > 0.2], [classes, 255], 0)
    whole = (x.swapaxes(2, 3).reshape(count, 16, 16) for x in (places, labels))
    image, label = whole
    noisy = image + 0.1 * rng.normal(size=image.shape)
    return {
        "image": noisy[..., None].astype(np.float32),
        "label": label.astype(np.int32),
        "mask": label != 255,
    }


TASKS: Mapping[str, Callable[[], Task]] = {
    "multi-label": multi_label,
    "binary": binary,
    "regression": regression,
    "embedding": embedding,
    "segmentation": segmentation,
}

if __name__ == "__main__":
    main()
