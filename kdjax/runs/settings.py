"""The flags that scripts share, with their limits."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from kdjax.runs.flags import Limit, flag, group, require
from kdjax.runs.method_names import LINES

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
Precision = Literal["float32", "bfloat16"]

STEPS_PER_CALL = 50
"""Most steps that one call of a compiled program takes where nothing is said."""
POSITIVE = Limit("positive", lambda x: x > 0)
FINITE = Limit("positive and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limit("zero or positive", lambda x: 0 <= x < math.inf)
SHARE = Limit("in [0, 1]", lambda x: 0 <= x <= 1)
PART = Limit("in [0, 1)", lambda x: 0 <= x < 1)
METHOD = Limit(f"of {', '.join(LINES)}", lambda name: all(x in LINES for x in name.split("+")))


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where, and how it is split."""

    name: str = flag(
        "digits", "A TFDS image-classification set: digits (embedded), mnist, name/config, ..."
    )
    dir: Path | None = flag(None, "Directory with prepared TFDS sets; TFDS's own by default.")
    validation_fraction: float = flag(
        0.1, "Share of the training examples that is set aside to make choices on.", PART
    )
    student_examples: int | None = flag(
        None,
        "Training examples that both students see, balanced over classes. Default: 100 on digits, "
        "all elsewhere.",
        POSITIVE,
    )
    image_size: int | None = flag(
        None,
        "Resize all images to this many pixels a side; needed where their sizes differ.",
        POSITIVE,
    )
    resize: Literal["stretch", "crop"] = flag(
        "stretch",
        "What is resized: stretch takes all of an image, crop the middle, in its proportions.",
    )
    streaming: bool = flag(
        False,
        "Read and decode examples while they are used, and load nothing before; always so where "
        "the training files have more than 4 GiB.",
    )
    workers: int = flag(
        0,
        "Processes that read and decode where examples stream; 0 for threads of this one.",
        NOT_NEGATIVE,
    )


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """A network and its regularization."""

    name: NetworkName | None = flag(
        None,
        "The architecture. Default: mlp, or what the folder of --teacher.checkpoint holds; a "
        "PyTorch state dict does not name its own.",
    )
    widths: tuple[int, ...] | None = flag(
        None,
        "Units of each hidden layer of an mlp. Default: 256 256 for a teacher, 32 for a student.",
        POSITIVE,
    )
    patch_size: int | None = flag(
        None,
        "Pixels a side of a vit's patches. Default: 16 on images of 112 pixels or more, 8 from 64 "
        "on, 4 from 16 on, else 2.",
        POSITIVE,
    )
    dropout: float = flag(
        0.0, "Share of hidden units that an mlp or a vit drops in training.", PART
    )
    input_dropout: float = flag(0.0, "Share of inputs that an mlp drops in training.", PART)
    max_norm: float | None = flag(
        None, "Largest Euclidean norm of a unit's incoming weights.", POSITIVE
    )


@dataclasses.dataclass(frozen=True)
class TeacherSettings(NetworkSettings):
    """The teacher: trained first, or read from a checkpoint."""

    checkpoint: Path | None = flag(
        None,
        "A trained teacher: W/teacher of an earlier run, or a PyTorch state dict (.npz, "
        ".safetensors).",
    )
    epochs: int | None = flag(
        None,
        "Passes over the training examples. Default: as --epochs, over the teacher's examples.",
        POSITIVE,
    )
    learning_rate: float | None = flag(
        None,
        "Peak learning rate while the teacher trains. Default: as --optimizer.learning-rate.",
        FINITE,
    )
    augment: tuple[Augmentation, ...] | None = flag(
        None,
        "Augmentation while the teacher trains. Default: jitter on large gray images, else as "
        "--augment.",
    )
    mean: tuple[float, ...] | None = flag(
        None, "Channel means, in [0, 1], that a PyTorch teacher's inputs were normalized with."
    )
    std: tuple[float, ...] | None = flag(
        None, "Channel standard deviations that a PyTorch teacher's inputs were normalized with."
    )
    precision: Precision | None = flag(
        None,
        "Of the teacher's arithmetic and stored arrays while it teaches. Default: as it was "
        "trained.",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, and how its learning rate changes."""

    name: Literal["adamw", "sgd"] = flag("adamw", "adamw, or sgd with momentum 0.9.")
    learning_rate: float | None = flag(
        None,
        "Peak learning rate. Default: 0.001 for adamw, 0.05 for sgd, scaled with batches above "
        "128.",
        FINITE,
    )
    weight_decay: float = flag(
        0.0, "Decoupled for adamw, added to the gradient for sgd.", NOT_NEGATIVE
    )
    schedule: Literal["cosine", "steps"] = flag(
        "cosine",
        "cosine: up over 2 % of the steps, then down to zero; steps: divided by ten after 62.5, 75 "
        "and 87.5 % of them.",
    )
    nesterov: bool | None = flag(None, "Whether the momentum of sgd is Nesterov's. Default: it is.")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How devices are arranged."""

    data: int = flag(
        -1,
        "Devices that split the batch; -1 for all that the others leave.",
        Limit("positive, or -1 for all", lambda n: n == -1 or n > 0),
    )
    fsdp: int = flag(
        1,
        "Devices that split the batch, and parameters and optimizer state with it.",
        POSITIVE,
    )
    tensor: int = flag(1, "Devices that split the units of layers.", POSITIVE)
    split_teacher: bool = flag(
        False,
        "Split the teacher over the devices of data as well, where each holds the whole student.",
    )


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Several processes, on one machine or many, that train together."""

    auto: bool = flag(
        False,
        "Join the processes that TPU, SLURM or MPI have started, as JAX finds them.",
        alias="--distributed",
    )
    coordinator: str | None = flag(
        None, "HOST:PORT where process 0 listens, if nothing can be found out; also joins."
    )
    num_processes: int | None = flag(None, "How many processes there are.", POSITIVE)
    process_id: int | None = flag(None, "Which of them this one is, from 0.")
    timeout: float = flag(
        60.0,
        "Seconds without a sign of life after which a process counts as missing and all end.",
        Limit("3 or more, in seconds", lambda x: 3 <= x < math.inf),
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every run of a teacher and its students depends on; None leaves it to the data."""

    data: DataSettings = group(DataSettings)
    teacher: TeacherSettings = group(TeacherSettings)
    student: NetworkSettings = group(NetworkSettings)
    optimizer: OptimizerSettings = group(OptimizerSettings)
    mesh: MeshSettings = group(MeshSettings)
    temperature: float = flag(4.0, "Of kd: softens both networks' probabilities.", FINITE)
    epochs: int | None = flag(
        None,
        "Passes of a student over its examples. Default: at least 30, and at least 2,000 steps of "
        "the default --batch-size.",
        POSITIVE,
    )
    batch_size: int | None = flag(
        None,
        "Examples in a step, over all devices. Default: 128, on small sets 64.",
        POSITIVE,
    )
    crop_padding: int = flag(4, "Pixels of padding before the crop.")
    jitter_pixels: int = flag(
        2, "Largest shift of jitter (whole pixels), translate (real numbers) and warp (of parts)."
    )
    precision: Precision = flag(
        "float32",
        "Of the networks' arithmetic; parameters, losses and statistics stay float32.",
    )
    seed: int = flag(0, "Of the teacher and of the first student.")
    num_seeds: int | None = flag(
        None,
        "Students of each kind. Default: 5 where students see less than 10,000 examples, else 1.",
        POSITIVE,
    )
    workdir: Path | None = flag(
        None, "Where everything is written. Default: a new folder in runs/."
    )
    checkpoint_every: int | None = flag(
        None,
        "Steps between checkpoints. Default: 20 in a training, but 500 steps apart at least.",
        POSITIVE,
    )
    keep_last: int = flag(
        2,
        "How many of the newest checkpoints of a training stay, two at least: one may be damaged.",
        Limit("2 or more: one can be damaged", lambda n: n >= 2),
    )
    keep_best: bool = flag(
        False, "Also write a checkpoint at every validation that is the best so far, and keep it."
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop",
        "What a loss that is nan or infinite does: stop the run, naming step and term, or skip the "
        "step, leaving everything as it was, also where only the gradient is not finite.",
    )
    log_every: int = flag(50, "Steps between lines in metrics.jsonl.", POSITIVE)
    steps_per_call: int | None = flag(
        None,
        "Most steps that one call of the compiled program takes; a single process ends it after "
        "about 0.25 s. With more than 1 every device holds the examples. Default: 50 where they "
        "fit and one process trains, but 1 for convolutions on CPUs.",
        POSITIVE,
    )
    profile: bool = flag(
        False,
        "Write traces of the steps 10 to 15 of each training to W/profile, for TensorBoard, XProf "
        "or Perfetto.",
    )


@dataclasses.dataclass(frozen=True)
class MethodSettings(RunSettings):
    """What a run depends on whose students learn from examples, by some method."""

    preset: Literal["none", "repdistiller", "imagenet"] = flag(
        "none",
        "A setting of the field's tables, for an accelerator: repdistiller for CIFAR-100, imagenet "
        "for ImageNet (TFDS imagenet2012), which take the place of what decides on the training.",
    )
    pair: PairName = flag("resnet56-resnet20", "Teacher and student of repdistiller.")
    soft_weight: float = flag(
        0.9, "Of kd: weight of the soft targets; the labels have the rest.", SHARE
    )
    augment: tuple[Augmentation, ...] | None = flag(
        None,
        "Views of the images that teacher and student share. Default: crop on large color images, "
        "flip too unless the classes are digits or letters; none switches it off.",
    )
    num_micro_batches: int = flag(
        1, "Parts of a batch over which the gradient is accumulated.", POSITIVE
    )
    rematerialise: bool = flag(
        False,
        "Compute the insides of networks' blocks again for the gradient: less memory, more time.",
    )


def method_flag() -> Any:
    """Declare the flag that names a method."""
    lines = "\n".join(f"{name}: {line}" for name, line in LINES.items())
    return flag(
        "kd", f"How the student is taught; + joins several, as in kd+crd.\n{lines}\n", METHOD
    )


def eval_flag() -> Any:
    """Declare the flag that spaces validations."""
    return flag(None, "Steps between validations. Default: 20 in a training.", POSITIVE)


def check_distributed(distributed: DistributedSettings) -> None:
    """Raise a ValueError that names the flag where those of the processes do not go together."""
    explicit = (distributed.coordinator, distributed.num_processes, distributed.process_id)
    if all(value is None for value in explicit):
        return
    for name, value in zip(("coordinator", "num-processes", "process-id"), explicit, strict=True):
        together = "given with --distributed.coordinator, .num-processes and .process-id together"
        require(value is not None or distributed.auto, f"--distributed.{name}", together, value)
    address, count, own = explicit
    port = (address or "a:1").rpartition(":")[2]
    require(port.isdecimal(), "--distributed.coordinator", "HOST:PORT", address)
    below = own is None or 0 <= own < (count or math.inf)
    require(below, "--distributed.process-id", f"from 0 to {count} - 1", own)
