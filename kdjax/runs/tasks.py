"""What `--task` decides, as data: the loss of the labels, what `kd` follows, what is measured."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import data, losses, metrics, step, terms
from kdjax.data import Dataset, Examples
from kdjax.objective import Weight
from kdjax.runs.needs import Need
from kdjax.runs.settings import TaskName
from kdjax.step import MetricFn
from kdjax.types import Array, Batch, Model, Outputs, Term, TermInputs, Variables

Weighted = dict[str, tuple[Term, Weight]]
EMBEDDING_SIZE = 64
"""Numbers of an embedding where neither labels nor a teacher have some."""
# So far below any cosine that it weighs nothing, and has a gradient, which -inf has not.
_NEVER = -1e4


class Task(NamedTuple):
    """What a task decides.

    `hard` makes the term of the labels, of how much they are smoothed; it is None where there are
    none. `soft` makes the terms of the method `kd`, of its temperature, with their weights beside
    one another. `columns` are the measures that are shown: the first, where more is better, chooses
    the best network. `measures` are those of them that an evaluation does not take by itself, and
    the `loss`. A method with one of the needs in `lacks` does not fit.
    """

    name: TaskName
    hard: Callable[[float], Term] | None
    soft: Callable[[float], dict[str, tuple[Term, float]]]
    columns: tuple[str, ...]
    measures: Mapping[str, MetricFn] = MappingProxyType({})
    lacks: tuple[Need, ...] = (Need.CLASSES,)

    @property
    def hides(self) -> frozenset[str]:
        """Measures of training batches that take numbers for classes."""
        of_numbers = self.name in ("regression", "embeddings")
        return frozenset(("accuracy", "agreement", "teacher/accuracy") if of_numbers else ())

    @property
    def of_classes(self) -> bool:
        """Whether an image has one class, of two or more, which it may be weighed by."""
        return self.name in ("single-label", "binary")

    @property
    def compares(self) -> bool:
        """Whether networks are measured by the teacher's answers, beside the labels."""
        return self.of_classes or self.name == "embeddings"


SINGLE_LABEL = Task(
    "single-label",
    lambda smoothing: terms.cross_entropy(label_smoothing=smoothing),
    lambda temperature: {"soft": (terms.soft_targets(temperature=temperature), 1.0)},
    ("accuracy", "nll", "ece", "agreement"),
    lacks=(),
)
LABELS_FNS: Mapping[TaskName, Callable[[str, Any], np.ndarray]] = {
    "single-label": data.class_labels,
    "binary": data.class_labels,
    "multi-label": data.several_labels,
    "regression": data.number_labels,
    "embeddings": data.embedding_labels,
    "pixels": data.pixel_labels,
}
"""How the labels of a set of one's own are read."""
_EXPECTED: Mapping[TaskName, str] = {
    "binary": "two classes",
    "multi-label": "labels [images, n] of 0 and 1",
    "regression": "numbers [images] or [images, n]",
    "pixels": "a class for each pixel, [images, height, width]",
}


def of(name: TaskName, dataset: Dataset) -> Task:
    """Return what a task decides for some data.

    Raises:
        ValueError: if the data's labels are of another task.
    """
    labels = dataset.train.label
    axes = {"multi-label": 2, "regression": 2, "pixels": 3}.get(name, 1)
    fits = name == "embeddings" or len(labels.shape) == axes
    if name == "binary" and fits and len(found := np.unique(labels)) == 2 < dataset.num_classes:
        both = " and ".join(dataset.label_names[i] for i in found)
        raise ValueError(f"--task binary needs labels of 0 and 1, and {dataset.name} has {both}")
    if not fits or (name == "binary" and dataset.num_classes != 2):
        raise ValueError(
            f"--task {name} needs {_EXPECTED[name]}, and {dataset.name} has "
            f"{dataset.num_classes} classes, one for each image"
            + ("" if name == "binary" else "; --data.dir takes others in a .npz file")
        )
    return _TASKS[name](dataset)


def num_outputs(task: TaskName, dataset: Dataset, embedding_size: int | None) -> int:
    """Return how many numbers a network answers with, for an image or for each pixel of it.

    Raises:
        ValueError: if embeddings are to be of another size than those of the labels.
    """
    if task != "embeddings":
        return 1 if task == "binary" else dataset.num_classes
    given = sum(dataset.train.label.shape[1:])
    if embedding_size and given not in (0, embedding_size):
        raise ValueError(
            f"--task embeddings: those of the labels have {given} numbers, and the networks' "
            f"{embedding_size}: --embedding-size {given}, and a teacher of as many, fit"
        )
    return embedding_size or given or EMBEDDING_SIZE


def scale_of(task: TaskName, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of real numbers that networks answer with, nothing of others."""
    if task != "regression":
        return (), ()
    mean, std = _moments(dataset)
    return tuple(mean.tolist()), tuple(std.tolist())


def names_of(task: TaskName, dataset: Dataset) -> tuple[str, ...]:
    """Return what each output of a network stands for: of two classes the second, of embeddings
    nothing.
    """
    if task == "embeddings":
        return ()
    return dataset.label_names[1:] if task == "binary" else dataset.label_names


def arrays_of(examples: Examples) -> dict[str, Any]:
    """Return examples by name; pixels without a class are left out by a mask."""
    if len(examples.label.shape) < 3:
        return examples._asdict()
    known = examples.label >= 0
    return {**examples._asdict(), "label": np.where(known, examples.label, 0), "mask": known}


def eval_step(
    task: Task,
    model: Model,
    layout_fn: Any = None,
    *,
    inputs_fn: Callable[[Batch], Any] = itemgetter("image"),
) -> Callable[..., Any]:
    """Compile the evaluation of a network, as its task measures it."""
    measure_fn = step.make_eval_step(
        model, inputs_fn=inputs_fn, layout_fn=layout_fn, metrics=task.measures
    )
    if task.name == "single-label":
        return measure_fn
    shown = {"loss", *task.columns}

    def measured(variables: Variables, batch: Batch) -> dict[str, Any]:
        found = measure_fn(variables, batch)
        return {name: metric for name, metric in found.items() if name in shown}

    return measured


def _several(name: TaskName) -> Callable[[Dataset], Task]:
    """Make the task of labels that are true or false by themselves, one or more."""
    hard = terms.of(losses.binary_cross_entropy, ignore_label=data.NO_LABEL)
    task = Task(
        name,
        lambda smoothing: hard,
        lambda t: {"soft": (terms.of(losses.sigmoid_kd_loss, temperature=t), 1.0)},
        ("mean_average_precision", "binary_accuracy"),
        {"loss": _loss(hard)},
    )
    return lambda dataset: task


def _regression(dataset: Dataset) -> Task:
    """Make the task of real numbers, each measured in its own standard deviations."""
    mean, std = (x[None] for x in _moments(dataset))
    of_one = mean.shape[1] == 1

    def r_squared(batch: Batch, outputs: Outputs) -> Any:
        # Far from zero float32 would have few digits.
        found, true = ((x - mean) / std for x in (outputs.logits, batch["label"]))
        return metrics.r_squared(found, true, batch["mask"])

    hard = terms.stateless(
        lambda x: losses.squared_error(x.student.logits / std, x.batch["label"] / std)
    )

    def bounded(inputs: TermInputs) -> Array:
        student, teacher = inputs.student.logits / std, _answers(inputs) / std
        bound = losses.bounded_regression_loss(student, teacher, inputs.batch["label"] / std)
        return bound + losses.logit_mse_loss(student, teacher)

    return Task(
        "regression",
        lambda smoothing: hard,
        lambda t: {"soft": (terms.stateless(bounded), 1.0)},
        ("r_squared", "root_mean_squared_error") if of_one else ("r_squared",),
        {
            "loss": _loss(hard),
            "r_squared": r_squared,
            "root_mean_squared_error": metrics.of(metrics.root_mean_squared_error),
        },
    )


def _embeddings(dataset: Dataset) -> Task:
    """Make the task of embeddings: of classes that they tell apart, of others to reach, or none."""
    reached = dataset.train.label.shape[1:]
    hard = terms.stateless(_from_neighbors, couples_batch=True)
    if reached:
        hard = terms.stateless(lambda x: losses.cosine_loss(x.student.logits, x.batch["label"]))
    return Task(
        "embeddings",
        None if reached == (0,) else lambda smoothing: hard,
        lambda t: {
            "cosine": (_between(losses.cosine_loss), 1.0),
            "scores": (
                _between(losses.similarity_score_loss),
                1.0,
            ),
        },
        ("recall_at_1", "recall_at_5", "cosine"),
        {
            "loss": _loss(_between(losses.cosine_loss) if reached == (0,) else hard),
            "recall_at_1": _recall(1),
            "recall_at_5": _recall(5),
            "cosine": _cosine,
        },
    )


def _pixels(dataset: Dataset) -> Task:
    hard = terms.cross_entropy()
    return Task(
        "pixels",
        lambda smoothing: terms.cross_entropy(label_smoothing=smoothing),
        lambda t: {
            "soft": (terms.soft_targets(temperature=t), 1.0),
            "channels": (
                terms.of(
                    losses.channel_wise_loss, temperature=t, student="logits", teacher="logits"
                ),
                3.0,
            ),
        },
        ("mean_iou", "accuracy"),
        {"loss": _loss(hard), "mean_iou": metrics.of(metrics.mean_iou)},
        # Logits of each pixel: methods of rows of classes, or of one class for an image.
        lacks=(
            *(Need.CLASSES | Need.LABELS, Need.TOKEN, Need.CLASSIFIER),
            *(Need.CLASSES | Need.WHOLE_BATCH, Need.CLASSES | Need.MAPS),
        ),
    )


def within_classes(student: str, teacher: str) -> Term:
    """Make the term of how pixels vary within their class in an image.

    Args:
        student: path of the student's map.
        teacher: path of the teacher's.
    """

    def values(inputs: TermInputs) -> Array:
        assert inputs.teacher is not None
        label, num_classes = inputs.batch["label"], inputs.student.logits.shape[-1]
        known = metrics.counted(metrics.spread(inputs.mask, label.shape))
        return losses.intra_class_variation_loss(
            inputs.student.features[student],
            inputs.teacher.features[teacher],
            jnp.where(known, label, data.NO_LABEL),
            num_classes=num_classes,
        )

    return terms.stateless(values)


def margins() -> Term:
    """Make the term of by how much the teacher's nearest is nearer than each other of the batch."""

    def values(inputs: TermInputs) -> Array:
        student, teacher = (
            _scores(x, inputs.mask) for x in (inputs.student.logits, _answers(inputs))
        )
        nearest = jnp.argmax(teacher, axis=1)[:, None]
        # The nearest first; among the others it is removed.
        rest = jnp.where(jnp.arange(len(teacher))[None] == nearest, -jnp.inf, 0)
        ordered = (
            jnp.concatenate([jnp.take_along_axis(x, nearest, axis=1), x + rest], axis=1)
            for x in (student, teacher)
        )
        return losses.margin_mse_loss(*ordered)

    return terms.stateless(values, couples_batch=True)


def _scores(embeddings: Array, mask: Array) -> Array:
    """Return cosines within the batch, [batch, batch]; -inf with itself and with padding."""
    x = _unit(embeddings)
    others = metrics.counted(mask)[None, :] & ~jnp.eye(len(x), dtype=bool)
    return jnp.where(others, x @ x.T, -jnp.inf)


def _between(loss: Callable[..., Array], **hyper_parameters: Any) -> Term:
    """Lift a loss of features to one of what both networks answer."""
    return terms.of(loss, student="logits", teacher="logits", **hyper_parameters)


def _moments(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of real labels, [values]; one that never changes is left as is."""
    labels = np.asarray(dataset.train.label, np.float64)
    std = labels.std(0)
    return labels.mean(0).astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _answers(inputs: TermInputs) -> Array:
    assert inputs.teacher is not None
    return inputs.teacher.logits


def _loss(term: Term) -> MetricFn:
    """Measure a loss of labels, or of the teacher's answers that the batch has, by example."""

    def values(batch: Batch, outputs: Outputs) -> Any:
        mask = metrics.counted(batch["mask"])
        teacher = Outputs(batch["teacher_logits"]) if "teacher_logits" in batch else None
        return term.apply({}, {}, TermInputs(batch, outputs, teacher, mask))[0]

    return values


def _from_neighbors(inputs: TermInputs) -> Array:
    """Return -log of the share that an example's class has among the others of the batch.

    0 without another of its class. Others weigh exp(cosine / 0.1): Wu, Efros, Yu, "Improving
    Generalization via Scalable Neighborhood Component Analysis", 2018, arXiv:1808.04699.
    """
    x, label = _unit(inputs.student.logits), inputs.batch["label"]
    others = inputs.mask[None, :] & ~jnp.eye(len(x), dtype=bool)
    scores = jnp.where(others, x @ x.T / 0.1, _NEVER)
    same = others & (label[:, None] == label[None, :])
    alone = ~jnp.any(same, axis=1)
    own = jnp.where(same | alone[:, None], scores, _NEVER)
    return jax.nn.logsumexp(scores, axis=1) - jax.nn.logsumexp(own, axis=1)


def _recall(k: int) -> MetricFn:
    """Count who finds what belongs to it among the k closest of the batch.

    That is another image of its class, or its own embedding as the labels, or else the teacher,
    have it.
    """

    def measured(batch: Batch, outputs: Outputs) -> Any:
        x, label, counts = _unit(outputs.logits), batch["label"], metrics.counted(batch["mask"])
        itself = jnp.eye(len(x), dtype=bool)
        if label.ndim == 1:
            relevant = (label[:, None] == label[None, :]) & ~itself
            scores = jnp.where(itself, -jnp.inf, x @ x.T)
        else:
            relevant = itself
            scores = x @ _unit(label if label.shape[1] else batch["teacher_logits"]).T
        scores = jnp.where(counts[None, :], scores, -jnp.inf)
        return metrics.recall_at_k(scores, relevant & counts[None, :], counts, k=k)

    return measured


def _cosine(batch: Batch, outputs: Outputs) -> Any:
    """Return the cosine with the teacher's embedding, of nothing where it is not known."""
    if "teacher_logits" not in batch:
        return jnp.zeros(()), jnp.zeros(())
    return 1 - losses.cosine_loss(outputs.logits, batch["teacher_logits"])


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


_TASKS: Mapping[TaskName, Callable[[Dataset], Task]] = {
    "single-label": lambda dataset: SINGLE_LABEL,
    "multi-label": _several("multi-label"),
    "binary": _several("binary"),
    "regression": _regression,
    "embeddings": _embeddings,
    "pixels": _pixels,
}
