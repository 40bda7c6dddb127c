"""The flags that scripts share, with their limits."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from kdjax.runs.flags import Limit, flag, group
from kdjax.runs.method_names import LINES, TAUGHT

Augmentation = Literal[
    "crop", "flip", "jitter", "translate", "warp", "erase", "mixup", "cutmix", "resized-crop",
    "none",
]  # fmt: skip
NetworkName = Literal[
    "mlp", "convnet",
    "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet8x4", "resnet32x4", "cifar_resnet50", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2",
    "vgg8", "vgg13", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2",
    "resnet18", "resnet34", "resnet50", "resnet101",
    "imagenet_mobilenet_v2", "imagenet_vgg11", "imagenet_vgg16",
    "vit_mu", "vit_ti", "vit_s", "vit_b", "unet",
]  # fmt: skip
PairName = Literal[
    "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "resnet56-resnet20", "resnet110-resnet20",
    "resnet110-resnet32", "resnet32x4-resnet8x4", "vgg13-vgg8",
    "vgg13-mobilenet_v2", "cifar_resnet50-mobilenet_v2", "cifar_resnet50-vgg8",
    "resnet32x4-shufflenet_v1", "resnet32x4-shufflenet_v2", "wrn_40_2-shufflenet_v1",
]  # fmt: skip
TaskName = Literal[
    "single-label", "multi-label", "binary", "regression", "embeddings", "pixels",
]  # fmt: skip
Precision = Literal["float32", "bfloat16"]

EMBEDDED = "digits"
"""The set that needs no folder."""
STEPS_PER_CALL = 50
"""Most steps that one call of a compiled program takes where nothing is said."""
POSITIVE = Limit("positive", lambda x: x > 0)
FINITE = Limit("positive and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Limit("zero or positive", lambda x: 0 <= x < math.inf)
SHARE = Limit("in [0, 1]", lambda x: 0 <= x <= 1)
PART = Limit("in [0, 1)", lambda x: 0 <= x < 1)
COUNTED = Limit("from 1 to 2,147,483,647", lambda n: 0 < n < 2**31)
SEED = Limit("from 0 to 2,147,483,647", lambda n: 0 <= n < 2**31)


def audit_flag() -> Any:
    """Declare the flag that looks at the objective first."""
    return flag(
        "First hold the objective against what it should satisfy, on the student's first batch; "
        "stop if it does not.",
        default=False,
    )


def average_flag() -> Any:
    """Declare the flag that averages the weights."""
    return flag(
        "Decay of a moving average of the weights, which is evaluated and exported in their place.",
        PART,
    )


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data, from where, and how it is split."""

    name: str = flag(
        "A TFDS image-classification set: digits (embedded), mnist, name/config, ...",
        default=EMBEDDED,
    )
    dir: Path | None = flag(
        "A folder of images for each class, or train, val and test folders of such; a .npz file; a "
        "data set saved by datasets; or, with --data.name, a directory with prepared TFDS sets, by "
        "default TFDS's own."
    )
    classes: tuple[str, ...] | None = flag("Some of the classes, by name. Default: all.")
    unlabelled: Path | None = flag(
        "A folder of images without labels, on which the teacher alone teaches the students."
    )
    validation_fraction: float = flag(
        "Share of the training examples that is set aside to make choices on.", PART, default=0.1
    )
    split_seed: int | None = flag(
        "Draw by it what is set aside of every class for validation and tests. Default: 0 for a "
        "folder of your own; sets of TFDS are split by their size alone.",
        SEED,
    )
    student_examples: int | None = flag(
        "Training examples that both students see, balanced over classes. Default: 100 on digits, "
        "all elsewhere.",
        POSITIVE,
    )
    image_size: int | None = flag(
        "Resize all images to this many pixels a side; needed where their sizes differ. Default "
        "for a folder of your own: the median of their shorter sides, 32 at most.",
        POSITIVE,
    )
    resize: Literal["stretch", "crop"] = flag(
        "What is resized: stretch takes all of an image, crop the middle, in its proportions.",
        default="stretch",
    )
    streaming: bool = flag(
        "Read and decode examples while they are used, and load nothing before; always so where "
        "the training files have more than 4 GiB.",
        default=False,
    )
    workers: int = flag(
        "Processes that read and decode where examples stream; 0 for threads of this one.",
        NOT_NEGATIVE,
        default=0,
    )

    @property
    def title(self) -> str:
        """What the set is called before it is read."""
        own = self.dir if self.name == EMBEDDED else None
        return (own.absolute().stem if own else "") or self.name.replace("/", "-")


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """A network and its regularization."""

    name: NetworkName | None = flag("The architecture. Default: mlp, of pixels unet.")
    widths: tuple[int, ...] | None = flag(
        "Units of each hidden layer of an mlp (default: 256 256 for a teacher, 32 for a student), "
        "channels of each convolution of a convnet (32 64 128, and 8 16 32), or of a unet's maps "
        "at each size (32 64, and 8 16).",
        POSITIVE,
    )
    module: str | None = flag(
        "A network of your own, PACKAGE.MODULE:NAME: a function or class of num_classes and the "
        "like that makes a Linen, NNX (of rngs) or PyTorch module, or a Model.",
        Limit("PACKAGE.MODULE:NAME", lambda name: all(name.partition(":"))),
    )
    stages: tuple[str, ...] | None = flag(
        "Paths in your module of its maps or hidden layers, from the input on, for methods of "
        "features."
    )
    embedding: str | None = flag("Path in your module of what its classifier reads.")
    classifier: str | None = flag("Name of the classifier among your module's parameters.")
    checkpoint: Path | None = flag(
        "Where the network starts: W/student of an earlier run, or a PyTorch state dict (.npz, "
        ".safetensors, .pth); a classifier of other classes is drawn."
    )
    patch_size: int | None = flag(
        "Pixels a side of a vit's patches. Default: 16 on images of 112 pixels or more, 8 from 64 "
        "on, 4 from 16 on, else 2.",
        POSITIVE,
    )
    dropout: float = flag(
        "Share of hidden units that an mlp or a vit drops in training.", PART, default=0.0
    )
    drop_path: float = flag(
        "Share of images that skip the last block of a vit in training; less in those before.",
        PART,
        default=0.0,
    )
    input_dropout: float = flag("Share of inputs that an mlp drops in training.", PART, default=0.0)
    max_norm: float | None = flag("Largest Euclidean norm of a unit's incoming weights.", POSITIVE)


@dataclasses.dataclass(frozen=True)
class TeacherSettings(NetworkSettings):
    """The teacher: trained first, or read from a checkpoint."""

    name: NetworkName | None = flag(
        "The architecture. Default: mlp, or what the folder of --teacher.checkpoint holds; a "
        "PyTorch state dict does not name its own."
    )
    checkpoint: Path | None = flag(
        "A trained teacher: W/teacher of an earlier run, or a PyTorch state dict (.npz, "
        ".safetensors, .pth)."
    )
    head: Literal["own", "probe"] = flag(
        "own: the teacher's classes are those of the data; probe: they are others, and a linear "
        "layer over its logits, fitted to the training labels, gives it those of the data.",
        default="own",
    )
    epochs: int | None = flag(
        "Passes over the training examples. Default: as --epochs, over the teacher's examples.",
        POSITIVE,
    )
    learning_rate: float | None = flag(
        "Peak learning rate while the teacher trains. Default: as --optimizer.learning-rate.",
        FINITE,
    )
    augment: tuple[Augmentation, ...] | None = flag(
        "Augmentation while the teacher trains. Default: jitter on large gray images, else as "
        "--augment."
    )
    mean: tuple[float, ...] | None = flag(
        "Channel means, in [0, 1], that a PyTorch teacher's inputs were normalized with."
    )
    std: tuple[float, ...] | None = flag(
        "Channel standard deviations that a PyTorch teacher's inputs were normalized with."
    )
    precision: Precision | None = flag(
        "Of the teacher's arithmetic and stored arrays while it teaches. Default: as it was "
        "trained."
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, and how its learning rate changes."""

    name: Literal["adamw", "sgd"] = flag("adamw, or sgd with momentum 0.9.", default="adamw")
    learning_rate: float | None = flag(
        "Peak learning rate. Default: 0.001 for adamw, 0.05 for sgd, scaled with batches above "
        "128.",
        FINITE,
    )
    weight_decay: float = flag(
        "Decoupled for adamw, added to the gradient for sgd.", NOT_NEGATIVE, default=0.0
    )
    schedule: Literal["cosine", "steps"] = flag(
        "cosine: down to zero; steps: divided by ten after 62.5, 75 and 87.5 % of the steps.",
        default="cosine",
    )
    nesterov: bool | None = flag("Whether the momentum of sgd is Nesterov's. Default: it is.")
    momentum: float = flag("Of sgd.", PART, default=0.9)
    warmup_steps: int | None = flag(
        "Steps over which the rate grows from zero. Default: 2 % of them with cosine, none with "
        "steps.",
        NOT_NEGATIVE,
    )
    clip_norm: float | None = flag(
        "Largest norm of the gradient, over all parameters; a longer one is scaled back.", FINITE
    )
    weight_decay_mask: Literal["kernels", "all"] = flag(
        "What decays: kernels spares biases and the scales of normalization.", default="kernels"
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How devices are arranged."""

    data: int = flag(
        "Devices that split the batch; -1 for all that the others leave.",
        Limit("positive, or -1 for all", lambda n: n == -1 or n > 0),
        default=-1,
    )
    fsdp: int = flag(
        "Devices that split the batch, and parameters and optimizer state with it.",
        POSITIVE,
        default=1,
    )
    tensor: int = flag("Devices that split the units of layers.", POSITIVE, default=1)
    split_teacher: bool = flag(
        "Split the teacher over the devices of data as well, where each holds the whole student.",
        default=False,
    )


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """Several processes, on one machine or many, that train together."""

    auto: bool = flag(
        "Join the processes that TPU, SLURM or MPI have started, as JAX finds them.",
        default=False,
        alias="--distributed",
    )
    coordinator: str | None = flag(
        "HOST:PORT where process 0 listens, if nothing can be found out; also joins."
    )
    num_processes: int | None = flag("How many processes there are.", POSITIVE)
    process_id: int | None = flag("Which of them this one is, from 0.")
    timeout: float = flag(
        "Seconds after which a process counts as missing, and all end, that has not joined, gives "
        "no sign of life, or stays behind the others unless it compiles.",
        Limit("3 or more, in seconds", lambda x: 3 <= x < math.inf),
        default=60.0,
    )


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    """The generator, and what it is asked for."""

    noise_size: int = flag("Numbers that an image is made from.", POSITIVE, default=100)
    learning_rate: float | None = flag(
        "Of Adam, with a cosine to zero. Default: 0.02 of convolutions, else 0.001.", POSITIVE
    )
    sure: float = flag("Weight of the teacher's cross-entropy with its own decisions.", default=1.0)
    active: float = flag("Weight of the size of the teacher's embedding.", default=0.1)
    balanced: float = flag(
        "Weight of the entropy of the mean prediction: every class as often.", default=5.0
    )
    new: float = flag(
        "Weight of the student's divergence from the teacher: images where it is wrong.",
        default=1.0,
    )
    statistics: float = flag(
        "Weight of the distance from what the teacher's BatchNorms saw; 0 without any.", default=1.0
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every run of a teacher and its students depends on; None leaves it to the data.

    `made_up` says whether students learn from images that the run makes itself.
    """

    made_up: ClassVar[bool] = False
    data: DataSettings = group(DataSettings)
    teacher: TeacherSettings = group(TeacherSettings)
    student: NetworkSettings = group(NetworkSettings)
    optimizer: OptimizerSettings = group(OptimizerSettings)
    mesh: MeshSettings = group(MeshSettings)
    temperature: float = flag("Of kd: softens both networks' probabilities.", FINITE, default=4.0)
    epochs: int | None = flag(
        "Passes of a student over its examples. Default: at least 30, and at least 2,000 steps of "
        "the default --batch-size.",
        POSITIVE,
    )
    batch_size: int | None = flag(
        "Examples in a step, over all devices. Default: 128, on small sets 64.", POSITIVE
    )
    crop_padding: int = flag("Pixels of padding before the crop.", default=4)
    jitter_pixels: int = flag(
        "Largest shift of jitter (whole pixels), translate (real numbers) and warp (of parts).",
        default=2,
    )
    precision: Precision = flag(
        "Of the networks' arithmetic; parameters, losses and statistics stay float32.",
        default="float32",
    )
    seed: int = flag("Of the teacher and of the first student.", SEED, default=0)
    num_seeds: int | None = flag(
        "Students of each kind. Default: 5 where students see less than 10,000 examples, else 1.",
        POSITIVE,
    )
    workdir: Path | None = flag("Where everything is written. Default: a new folder in runs/.")
    checkpoint_every: int | None = flag(
        "Steps between checkpoints. Default: 20 in a training, but 500 steps apart at least.",
        POSITIVE,
    )
    keep_last: int = flag(
        "How many of the newest checkpoints of a training stay, two at least: one may be damaged.",
        Limit("2 or more: one can be damaged", lambda n: n >= 2),
        default=2,
    )
    keep_best: bool = flag(
        "Also write a checkpoint at every validation that is the best so far, and keep it.",
        default=False,
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "What a loss that is nan or infinite does: stop the run, naming step and term, or skip the "
        "step, leaving everything as it was, also where only the gradient is not finite.",
        default="stop",
    )
    log_every: int = flag("Steps between lines in metrics.jsonl.", POSITIVE, default=50)
    steps_per_call: int | None = flag(
        "Most steps that one call of the compiled program takes; a single process ends it after "
        "about 0.25 s. With more than 1 every device holds the examples. Default: 50 where they "
        "fit and one process trains, but 1 for convolutions on CPUs.",
        POSITIVE,
    )
    profile: bool = flag(
        "Write traces of the steps 10 to 15 of each training to W/profile, for TensorBoard, XProf "
        "or Perfetto.",
        default=False,
    )


@dataclasses.dataclass(frozen=True)
class MethodSettings(RunSettings):
    """What a run depends on whose students learn from examples, by some method."""

    preset: Literal["none", "repdistiller", "imagenet"] = flag(
        "A setting of the field's tables, for an accelerator: repdistiller for CIFAR-100, imagenet "
        "for ImageNet (TFDS imagenet2012), which take the place of what decides on the training.",
        default="none",
    )
    pair: PairName = flag("Teacher and student of repdistiller.", default="resnet56-resnet20")
    soft_weight: float = flag(
        "Of kd: weight of the soft targets; the labels have the rest.", SHARE, default=0.9
    )
    anneal_soft_weight: float | None = flag(
        "What the soft weight becomes by the end of the training, by as much in every step. "
        "Default: it stays.",
        SHARE,
    )
    augment: tuple[Augmentation, ...] | None = flag(
        "Views of the images that teacher and student share. Default: crop on large color images, "
        "flip too unless the classes are digits or letters; none switches it off."
    )
    mixup_alpha: float = flag(
        "Of mixup, which mixes two images: shares are drawn from Beta(alpha, alpha).",
        FINITE,
        default=0.8,
    )
    cutmix_alpha: float = flag(
        "Of cutmix, which puts a part of one image into another: likewise.", FINITE, default=1.0
    )
    mix_each: Literal["batch", "example"] = flag(
        "What draws a share of its own in mixup and cutmix, and which of them where both are on.",
        default="batch",
    )
    label_smoothing: float = flag(
        "Share of every label that students of the cross-entropy see go to all classes alike.",
        SHARE,
        default=0.0,
    )
    class_weights: tuple[float, ...] | None = flag(
        "Weight of the examples of each class in training, in their order.", NOT_NEGATIVE
    )
    balanced_classes: bool = flag(
        "Weigh the examples so that every class counts the same in training.", default=False
    )
    average: float | None = average_flag()
    num_micro_batches: int = flag(
        "Parts of a batch over which the gradient is accumulated.", POSITIVE, default=1
    )
    rematerialise: bool = flag(
        "Compute the insides of networks' blocks again for the gradient: less memory, more time.",
        default=False,
    )


def eval_flag() -> Any:
    """Declare the flag that spaces validations."""
    return flag(
        "Steps between validations. Default: 20 in a training, but less often where they would "
        "take more than about a quarter of it; always at the end.",
        POSITIVE,
    )


@dataclasses.dataclass(frozen=True)
class OneMethodSettings(MethodSettings):
    """What a run depends on whose students learn by one method that a flag names."""

    method: str = flag(
        "How the student is taught; + joins several, as in kd+crd.\n"
        + "".join(f"{name}: {line}\n" for name, line in LINES.items()),
        TAUGHT,
        default="kd",
    )
    eval_every: int | None = eval_flag()
