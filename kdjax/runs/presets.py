"""Settings that the field's tables were made with, as a whole."""

from dataclasses import replace
from typing import NamedTuple, TypeVar

from kdjax.runs.settings import MethodSettings, NetworkName, OptimizerSettings, PairName

SettingsT = TypeVar("SettingsT", bound=MethodSettings)


class Pair(NamedTuple):
    """Teacher and student of a column of a table, and the learning rate of the student."""

    teacher: NetworkName
    student: NetworkName
    learning_rate: float = 0.05


PAIRS: dict[PairName, Pair] = {
    "wrn_40_2-wrn_16_2": Pair("wrn_40_2", "wrn_16_2"),
    "wrn_40_2-wrn_40_1": Pair("wrn_40_2", "wrn_40_1"),
    "resnet56-resnet20": Pair("resnet56", "resnet20"),
    "resnet110-resnet20": Pair("resnet110", "resnet20"),
    "resnet110-resnet32": Pair("resnet110", "resnet32"),
    "resnet32x4-resnet8x4": Pair("resnet32x4", "resnet8x4"),
    "vgg13-vgg8": Pair("vgg13", "vgg8"),
    "vgg13-mobilenet_v2": Pair("vgg13", "mobilenet_v2", 0.01),
    "cifar_resnet50-mobilenet_v2": Pair("cifar_resnet50", "mobilenet_v2", 0.01),
    "cifar_resnet50-vgg8": Pair("cifar_resnet50", "vgg8"),
    "resnet32x4-shufflenet_v1": Pair("resnet32x4", "shufflenet_v1", 0.01),
    "resnet32x4-shufflenet_v2": Pair("resnet32x4", "shufflenet_v2", 0.01),
    "wrn_40_2-shufflenet_v1": Pair("wrn_40_2", "shufflenet_v1", 0.01),
}
"""The columns of the tables: networks of one kind, then of different kinds."""
_TEACHER_RATE = 0.05


def applied(settings: SettingsT) -> SettingsT:
    """Put the preset that the settings name, if any, in place of what it decides."""
    if settings.preset == "repdistiller":
        return repdistiller(settings, settings.pair)
    return imagenet(settings) if settings.preset == "imagenet" else settings


def repdistiller(settings: SettingsT, pair: PairName) -> SettingsT:
    """Put the setting of the CIFAR-100 tables in place of what decides on the training.

    240 epochs in batches of 64, SGD with plain momentum 0.9 and weight decay 5e-4, the rate divided
    by ten after 150, 180 and 210 epochs; images cropped and flipped. A teacher without a checkpoint
    is trained in the same way. The weights of the methods are those of `kdjax.runs.methods`. The
    tables train on all examples, as we do with `--data.validation-fraction 0`, for
    `experiments.compare` with `--num-best 0`, which has nothing to choose by then.

    Args:
        settings: what else there is; a teacher's checkpoint and the number of seeds are kept.
        pair: teacher and student.

    Returns:
        The settings.

    References:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2019, arXiv:1910.10699,
        section 4.1 and its authors' code.
    """
    chosen = PAIRS[pair]
    rate = chosen.learning_rate
    return replace(
        settings,
        data=replace(settings.data, name="cifar100", student_examples=None),
        teacher=replace(settings.teacher, name=chosen.teacher, learning_rate=_TEACHER_RATE),
        student=replace(settings.student, name=chosen.student),
        optimizer=OptimizerSettings(
            "sgd", rate, 5e-4, schedule="steps", nesterov=False, weight_decay_mask="all"
        ),
        epochs=240,
        batch_size=64,
        augment=("crop", "flip"),
    )


def imagenet(settings: SettingsT) -> SettingsT:
    """Put the setting of the ImageNet tables in place of what decides on the training.

    A resnet34 teaches a resnet18 on images of 224 pixels: SGD with Nesterov momentum 0.9 and
    weight decay 1e-4, 100 epochs in batches of 1024, the rate 0.1 for every 256 images of a batch,
    warmed up, then cosine to zero; random resized crops and flips in training, the middle of the
    images in evaluation; bfloat16. A vision transformer as student gets what such networks are
    trained with: AdamW, the rate 0.0005 for every 512 images, weight decay 0.05.

    Args:
        settings: what else there is. Networks, image size, batch size, epochs, learning rate,
            views and number of seeds stay where they are given.

    Returns:
        The settings.

    References:
        Goyal, Dollár, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia, He, "Accurate, Large
        Minibatch SGD: Training ImageNet in 1 Hour", 2017, arXiv:1706.02677, section 2, for the
        rate and its warm-up.
        Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image
        transformers & distillation through attention", 2020, arXiv:2012.12877, table 9, for
        transformers.
    """
    batch_size = settings.batch_size or 1024
    student: NetworkName = settings.student.name or "resnet18"
    if student.startswith("vit_"):
        optimizer = OptimizerSettings("adamw", 5e-4 * batch_size / 512, 0.05)
    else:
        optimizer = OptimizerSettings("sgd", 0.1 * batch_size / 256, 1e-4, weight_decay_mask="all")
    rate = settings.optimizer.learning_rate or optimizer.learning_rate
    data = replace(settings.data, name="imagenet2012", validation_fraction=0.01, streaming=True)
    return replace(
        settings,
        data=replace(data, image_size=data.image_size or 224, resize="crop"),
        teacher=replace(settings.teacher, name=settings.teacher.name or "resnet34"),
        student=replace(settings.student, name=student),
        optimizer=replace(optimizer, learning_rate=rate),
        epochs=settings.epochs or 100,
        batch_size=batch_size,
        augment=("resized-crop", "flip") if settings.augment is None else settings.augment,
        precision="bfloat16",
    )
