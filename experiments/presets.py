"""Settings that the field's tables were made with, as a whole."""

import dataclasses
from typing import Literal, NamedTuple, TypeVar

from experiments.distill import Settings
from experiments.settings import NetworkName, OptimizerSettings

SettingsT = TypeVar("SettingsT", bound=Settings)

PairName = Literal[
    "resnet56-resnet20",
    "resnet110-resnet20",
    "resnet110-resnet32",
]


class Pair(NamedTuple):
    """Teacher and student of a column of a table, and the learning rate of both."""

    teacher: NetworkName
    student: NetworkName
    learning_rate: float = 0.05


PAIRS: dict[PairName, Pair] = {
    "resnet56-resnet20": Pair("resnet56", "resnet20"),
    "resnet110-resnet20": Pair("resnet110", "resnet20"),
    "resnet110-resnet32": Pair("resnet110", "resnet32"),
}


def repdistiller(settings: SettingsT, pair: PairName) -> SettingsT:
    """Put the setting of the CIFAR-100 tables in place of what decides on the training.

    240 epochs in batches of 64, SGD with momentum 0.9 and weight decay 5e-4, the rate divided by
    ten after 150, 180 and 210 epochs; images cropped and flipped. The weights of the methods are
    those of `experiments.methods`.

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
    optimizer = OptimizerSettings("sgd", chosen.learning_rate, 5e-4, schedule="steps")
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, name="cifar100", student_examples=None),
        teacher=dataclasses.replace(settings.teacher, name=chosen.teacher),
        student=dataclasses.replace(settings.student, name=chosen.student),
        optimizer=optimizer,
        epochs=240,
        batch_size=64,
        augment=("crop", "flip"),
    )
