"""Settings with nothing left to the data: what is not given takes the data's default."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdjax.runs.settings import (
    EMBEDDED,
    Augmentation,
    DataSettings,
    MethodSettings,
    NetworkSettings,
    OptimizerSettings,
    RunSettings,
    TaskName,
    TeacherSettings,
)

if TYPE_CHECKING:
    from kdjax.data import Dataset

_WIDTHS: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"teacher": (256, 256), "student": (32,)},
    "convnet": {"teacher": (32, 64, 128), "student": (8, 16, 32)},
    "unet": {"teacher": (32, 64), "student": (8, 16)},
}
T = TypeVar("T")
NetworkSettingsT = TypeVar("NetworkSettingsT", bound=NetworkSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedData(DataSettings):
    """Which data, from where, and how it is split."""

    student_examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedTeacher(TeacherSettings):
    """The teacher, and how it is trained unless there is a checkpoint."""

    epochs: int
    augment: tuple[Augmentation, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedOptimizer(OptimizerSettings):
    """The optimizer, and how its learning rate changes."""

    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(MethodSettings):
    """Everything that a run depends on, with nothing left to the data."""

    data: ResolvedData
    teacher: ResolvedTeacher
    optimizer: ResolvedOptimizer
    epochs: int
    batch_size: int
    augment: tuple[Augmentation, ...]
    num_seeds: int
    workdir: Path
    method: str = "kd"
    task: TaskName = "single-label"
    embedding_size: int | None = None
    stored_logits: Path | None = None
    audit: bool = False
    eval_every: int | None = None

    @property
    def seeds(self) -> range:
        """The seeds of the students."""
        return range(self.seed, self.seed + self.num_seeds)


def resolve(settings: RunSettings, dataset: "Dataset") -> Resolved:
    """Put the data's defaults where a setting is None.

    Small sets get small batches and many epochs: at least 2,000 steps, at least 30 epochs. Color
    images are cropped, and flipped when their classes have names that are words: digits and
    letters have a reading direction. Large gray images are jittered while the teacher trains, as
    in section 3 of Hinton, Vinyals & Dean (2015), and left alone while the students do.

    Args:
        settings: as the flags gave them, with a work directory.
        dataset: the examples that they name.

    Returns:
        The same settings, every one of them decided.
    """
    data, optimizer, given = settings.data, settings.optimizer, settings.teacher
    num_examples, seen = len(dataset.train.label), _examples_seen(data, dataset)
    in_epoch = seen if dataset.unlabelled is None else seen + len(dataset.unlabelled)
    usual_batch = 128 if seen >= 10_000 else 64
    batch_size = settings.batch_size or usual_batch
    asked = _asked_views(settings)
    task: TaskName = getattr(settings, "task", "single-label")
    shared, of_teacher = _views(dataset, task) if asked is None else (asked, asked)
    rate = optimizer.learning_rate or default_learning_rate(optimizer.name, batch_size)
    teacher = narrowed(
        ResolvedTeacher,
        with_architecture(given, task),
        epochs=given.epochs or settings.epochs or _epochs(num_examples, usual_batch),
        augment=of_teacher if given.augment is None else given.augment,
    )
    return narrowed(
        Resolved,
        settings,
        data=narrowed(ResolvedData, data, student_examples=seen),
        teacher=teacher,
        student=with_architecture(settings.student, task),
        optimizer=narrowed(ResolvedOptimizer, optimizer, learning_rate=rate),
        epochs=settings.epochs or _epochs(in_epoch, usual_batch),
        batch_size=batch_size,
        augment=shared,
        num_seeds=settings.num_seeds or (5 if seen < 10_000 else 1),
    )


def with_architecture(network: NetworkSettingsT, task: TaskName) -> NetworkSettingsT:
    """Settle name and widths: those of a checkpoint of ours are read later, with the checkpoint."""
    group = "teacher" if isinstance(network, TeacherSettings) else "student"
    if network.module:
        return _own(group, network)
    if group == "teacher" and network.checkpoint is not None:
        return network
    name = network.name or ("unet" if task == "pixels" else "mlp")
    if network.widths and name not in _WIDTHS:
        raise ValueError(
            f"--{group}.widths are those of {', '.join(_WIDTHS)}, and {name} has its own"
        )
    usual_widths = _WIDTHS.get(name, {}).get(group, ())
    widths = usual_widths if network.widths is None or name not in _WIDTHS else network.widths
    return dataclasses.replace(network, name=name, widths=widths)


def _own(group: str, network: NetworkSettingsT) -> NetworkSettingsT:
    for flag, given in {"name": network.name, "widths": network.widths}.items():
        if given:
            raise ValueError(
                f"--{group}.module is a network of your own: leave out --{group}.{flag}"
            )
    return network


def default_learning_rate(optimizer: str, batch_size: int) -> float:
    """Return the peak learning rate: that of a batch of 128, scaled up linearly beyond."""
    return {"adamw": 1e-3, "sgd": 0.05}[optimizer] * max(1.0, batch_size / 128)


def _examples_seen(data: DataSettings, dataset: "Dataset") -> int:
    """Return how many examples students see: few of digits, unless they are a folder's."""
    num_examples = len(dataset.train.label)
    few = min(100, num_examples) if dataset.name == EMBEDDED and dataset.version else num_examples
    return data.student_examples or few


def narrowed(wanted: type[T], settings: Any, **decided: Any) -> T:
    """Make settings of another type of the fields that both have, and of what was decided."""
    fields: Any = dataclasses.fields(wanted)  # type: ignore[arg-type]
    known = {f.name: getattr(settings, f.name) for f in fields if hasattr(settings, f.name)}
    return wanted(**{**known, **decided})


def _asked_views(settings: RunSettings) -> tuple[Augmentation, ...] | None:
    """Return the views that are asked for: stored logits are of the images as they are."""
    asked: tuple[Augmentation, ...] | None = getattr(settings, "augment", None)
    return () if asked is None and getattr(settings, "stored_logits", None) else asked


def _views(
    dataset: "Dataset", task: TaskName
) -> tuple[tuple[Augmentation, ...], tuple[Augmentation, ...]]:
    """Return the views of images that students and teachers see where nothing is said.

    Views would move images, and not the labels of their pixels.
    """
    if task == "pixels" or len(dataset.image_shape) < 3:
        return (), ()
    height, width, channels = dataset.image_shape
    large, color = min(height, width) >= 24, channels >= 3
    words = all(len(label) > 1 and not label.isdigit() for label in dataset.label_names)
    shared: tuple[Augmentation, ...] = ()
    if large and color:
        shared = ("crop", "flip") if words else ("crop",)
    return shared, shared if color or not large else ("jitter",)


def _epochs(num_examples: int, batch_size: int) -> int:
    return max(30, math.ceil(2000 * batch_size / num_examples))
