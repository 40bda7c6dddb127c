"""Groups of flags that scripts share, and the defaults that depend on the data."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

Augmentation = Literal["crop", "flip", "jitter", "translate", "warp", "resized-crop", "none"]
NetworkName = Literal[
    "mlp", "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet8x4", "resnet32x4", "cifar_resnet50", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2",
    "vgg8", "vgg13", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2",
    "resnet18", "resnet34", "vit_mu", "vit_ti", "vit_s", "vit_b",
]  # fmt: skip
PairName = Literal[
    "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "resnet56-resnet20", "resnet110-resnet20",
    "resnet110-resnet32", "resnet32x4-resnet8x4", "vgg13-vgg8",
    "vgg13-mobilenet_v2", "cifar_resnet50-mobilenet_v2", "cifar_resnet50-vgg8",
    "resnet32x4-shufflenet_v1", "resnet32x4-shufflenet_v2", "wrn_40_2-shufflenet_v1",
]  # fmt: skip
PresetName = Literal["none", "repdistiller", "imagenet"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where, and how it is split."""

    name: str = "digits"
    """A TFDS image-classification set: digits (embedded), mnist, cifar100, name/config, ..."""
    dir: Path | None = None
    """Directory with prepared TFDS sets; TFDS's own by default."""
    validation_fraction: float = 0.1
    """Share of the training examples that is set aside to make choices on."""
    student_examples: int | None = None
    """Training examples that both students see, balanced over classes. Default: 100 on digits,
    all elsewhere."""
    image_size: int | None = None
    """Resize all images to this many pixels a side; needed where their sizes differ."""
    resize: Literal["stretch", "crop"] = "stretch"
    """What is resized: stretch takes all of an image, crop the middle, in its proportions."""
    streaming: bool = False
    """Read and decode examples while they are used, and load nothing before; always so where the
    training files have more than 4 GiB."""
    workers: int = 0
    """Processes that read and decode where examples stream; 0 for threads of this one."""


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """A network and its regularisation."""

    name: NetworkName | None = None
    """The architecture. Default: mlp, or what the folder of --teacher.checkpoint holds; a PyTorch
    state dict does not say what it is of."""
    widths: tuple[int, ...] | None = None
    """Units of each hidden layer of an mlp. Default: 256 256 for a teacher, 32 for a student."""
    patch_size: int | None = None
    """Pixels a side of a vit's patches. Default: 16 on images of 112 pixels or more, 8 from 64 on,
    4 from 16 on, else 2."""
    dropout: float = 0.0
    """Share of hidden units that an mlp or a vit drops in training."""
    input_dropout: float = 0.0
    """Share of inputs that an mlp drops in training."""
    max_norm: float | None = None
    """Largest Euclidean norm of a unit's incoming weights."""


@dataclasses.dataclass(frozen=True)
class TeacherSettings(NetworkSettings):
    """The teacher: trained first, or read from a checkpoint."""

    checkpoint: Path | None = None
    """A trained teacher: W/teacher of an earlier run, or a PyTorch state dict (.npz,
    .safetensors)."""
    epochs: int | None = None
    """Passes over the training examples. Default: as --epochs, over the teacher's examples."""
    learning_rate: float | None = None
    """Peak learning rate while the teacher trains. Default: as --optimizer.learning-rate."""
    augment: tuple[Augmentation, ...] | None = None
    """Augmentation while the teacher trains. Default: jitter on large grey images, else as
    --augment."""
    mean: tuple[float, ...] | None = None
    """Channel means, in [0, 1], that a PyTorch teacher's inputs were normalised with."""
    std: tuple[float, ...] | None = None
    """Channel standard deviations likewise."""
    precision: Precision | None = None
    """Of the teacher's arithmetic and stored arrays while it teaches. Default: as it was
    trained."""


SettingsT = TypeVar("SettingsT", bound=NetworkSettings)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, and how its learning rate changes."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum 0.9."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 0.001 for adamw, 0.05 for sgd, scaled with batches above
    128."""
    weight_decay: float = 0.0
    """Decoupled for adamw, added to the gradient for sgd."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """cosine: up over 2 % of the steps, then down to zero; steps: divided by ten after 62.5, 75 and
    87.5 % of them."""
    nesterov: bool | None = None
    """Whether the momentum of sgd is Nesterov's. Default: it is."""


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How devices are arranged."""

    data: int = -1
    """Devices that split the batch; -1 for all that the others leave."""
    fsdp: int = 1
    """Devices that split the batch, and parameters and optimizer state with it."""
    tensor: int = 1
    """Devices that split the units of layers."""
    split_teacher: bool = False
    """Split the teacher over the devices of data as well, where each holds the whole student."""


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Several processes, on one machine or many, that train together."""

    auto: Annotated[bool, tyro.conf.arg(aliases=("--distributed",))] = False
    """Join the processes that TPU, SLURM or MPI have started, as JAX finds them."""
    coordinator: str | None = None
    """HOST:PORT where process 0 listens, if nothing can be found out; also joins."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    timeout: float = 60.0
    """Seconds without a sign of life after which a process counts as missing and all end."""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a setting of None becomes on a given set of data."""

    student_examples: int
    epochs: int
    teacher_epochs: int
    batch_size: int
    teacher_augment: tuple[Augmentation, ...]
    augment: tuple[Augmentation, ...]
    num_seeds: int


def defaults_for(
    name: str,
    num_examples: int,
    image_shape: tuple[int, ...],
    label_names: tuple[str, ...],
    student_examples: int | None,
) -> Defaults:
    """Choose the settings that depend on the data.

    Small sets get small batches and many epochs: at least 2,000 steps, at least 30 epochs. Colour
    images are cropped, and flipped when their classes have names that are words: digits and
    letters have a reading direction. Large grey images are jittered while the teacher trains, as
    in section 3 of Hinton, Vinyals & Dean (2015), and left alone while the students do.

    Args:
        name: the set's name.
        num_examples: its training examples, without validation.
        image_shape: height, width, channels.
        label_names: the names of its classes.
        student_examples: how many of them students see, None for the default.

    Returns:
        A value for every such setting.
    """
    seen = student_examples or (min(100, num_examples) if name == "digits" else num_examples)
    batch_size = 128 if seen >= 10_000 else 64
    large, colour = min(image_shape[:2]) >= 24, image_shape[2] >= 3
    words = all(len(label) > 1 and not label.isdigit() for label in label_names)
    augment: tuple[Augmentation, ...] = ()
    if large and colour:
        augment = ("crop", "flip") if words else ("crop",)
    return Defaults(
        student_examples=seen,
        epochs=_epochs(seen, batch_size),
        teacher_epochs=_epochs(num_examples, batch_size),
        batch_size=batch_size,
        teacher_augment=augment if colour or not large else ("jitter",),
        augment=augment,
        num_seeds=5 if seen < 10_000 else 1,
    )


def with_architecture(network: SettingsT, widths: tuple[int, ...]) -> SettingsT:
    """Settle name and widths: those of a checkpoint of ours are read later, with the checkpoint."""
    if isinstance(network, TeacherSettings) and network.checkpoint is not None:
        return network
    name = network.name or "mlp"
    chosen = (network.widths if network.widths is not None else widths) if name == "mlp" else ()
    return dataclasses.replace(network, name=name, widths=chosen)


def default_learning_rate(optimizer: str, batch_size: int) -> float:
    """Return the peak learning rate: that of a batch of 128, scaled up linearly beyond."""
    return {"adamw": 1e-3, "sgd": 0.05}[optimizer] * max(1.0, batch_size / 128)


def require(condition: bool, flag: str, expected: str, got: object) -> None:
    """Raise a ValueError that names the flag unless the condition holds."""
    if not condition:
        raise ValueError(f"{flag} must be {expected}, got {got}")


def check_network(flag: str, network: NetworkSettings) -> None:
    """Raise a ValueError that names the flag of the first network setting out of range."""
    widths = network.widths or ()
    require(all(width > 0 for width in widths), f"{flag}.widths", "positive", widths)
    require(0 <= network.dropout < 1, f"{flag}.dropout", "in [0, 1)", network.dropout)
    require(
        0 <= network.input_dropout < 1, f"{flag}.input-dropout", "in [0, 1)", network.input_dropout
    )
    patch = network.patch_size
    require(patch is None or patch > 0, f"{flag}.patch-size", "positive", patch)
    limit = network.max_norm
    require(limit is None or limit > 0, f"{flag}.max-norm", "positive", limit)


def check_mesh(mesh: MeshSettings) -> None:
    """Raise a ValueError that names the flag of the first mesh setting out of range."""
    require(mesh.data == -1 or mesh.data > 0, "--mesh.data", "positive, or -1 for all", mesh.data)
    require(mesh.fsdp > 0, "--mesh.fsdp", "positive", mesh.fsdp)
    require(mesh.tensor > 0, "--mesh.tensor", "positive", mesh.tensor)


def check_data(data: DataSettings) -> None:
    """Raise a ValueError that names the flag of the first data setting out of range."""
    fraction, seen, size = data.validation_fraction, data.student_examples, data.image_size
    require(0 <= fraction < 1, "--data.validation-fraction", "in [0, 1)", fraction)
    require(seen is None or seen > 0, "--data.student-examples", "positive", seen)
    require(size is None or size > 0, "--data.image-size", "positive", size)
    require(data.workers >= 0, "--data.workers", "zero or positive", data.workers)


def check_distributed(distributed: DistributedSettings) -> None:
    """Raise a ValueError that names the flag of the first of these settings out of range."""
    flag, timeout = "--distributed.timeout", distributed.timeout
    require(3 <= timeout < math.inf, flag, "3 or more, in seconds", timeout)
    explicit = (distributed.coordinator, distributed.num_processes, distributed.process_id)
    if all(value is None for value in explicit):
        return
    for name, value in zip(("coordinator", "num-processes", "process-id"), explicit, strict=True):
        together = "given with --distributed.coordinator, .num-processes and .process-id together"
        require(value is not None or distributed.auto, f"--distributed.{name}", together, value)
    address, count, own = explicit
    port = (address or "a:1").rpartition(":")[2]
    require(port.isdecimal(), "--distributed.coordinator", "HOST:PORT", address)
    require(count is None or count > 0, "--distributed.num-processes", "positive", count)
    below = own is None or 0 <= own < (count or math.inf)
    require(below, "--distributed.process-id", f"from 0 to {count} - 1", own)


def check_optimizer(optimizer: OptimizerSettings) -> None:
    """Raise a ValueError that names the flag of the first optimizer setting out of range."""
    decay = optimizer.weight_decay
    check_rate("--optimizer.learning-rate", optimizer.learning_rate)
    require(0 <= decay < math.inf, "--optimizer.weight-decay", "zero or positive", decay)


def check_rate(flag: str, rate: float | None) -> None:
    """Raise a ValueError that names the flag unless a learning rate can be used."""
    require(rate is None or 0 < rate < math.inf, flag, "positive and finite", rate)


def _epochs(num_examples: int, batch_size: int) -> int:
    return max(30, math.ceil(2000 * batch_size / num_examples))
