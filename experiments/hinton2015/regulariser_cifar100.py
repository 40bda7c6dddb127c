"""Section 6, on CIFAR-100: soft targets in place of most of the data.

    python -m experiments.hinton2015.regulariser_cifar100 --data.dir DIR --teacher FILE

The protocol of `experiments.hinton2015.regulariser` where a net has more to learn than it can from
3 % of the labels, with networks of convolutions.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import kdjax
from experiments import hinton2015
from experiments.hinton2015 import regulariser
from experiments.hinton2015.study import Findings, Recipe, Study, StudySettings, run_script
from kdjax import runs
from kdjax.runs.flags import flag
from kdjax.runs.settings import TeacherSettings

if TYPE_CHECKING:
    from kdjax.models import Network, NetworkSpec

TEMPERATURE = 4.0
WIDTHS = (32, 64, 128)
FEW, QUICK = Recipe(epochs=250, batch_size=128), Recipe(epochs=20, batch_size=64)
FULL = Recipe(epochs=12, batch_size=128)
TEACHER, QUICK_TEACHER = Recipe(epochs=30), Recipe(epochs=10, batch_size=64)
NOTES = [
    "Nets are of three convolutions of 32, 64 and 128 channels, with BatchNorm, trained by Adam in "
    "batches of 128: a resnet8 would not train as long on a CPU. All images with hard "
    "targets are seen 12 times. The teacher is the ResNet of --teacher, which learned from all "
    "training images; soft targets are its answers at T = 4. Shifted images are all copies moved "
    "by up to two pixels, and their mirror images. Nets on 3 % take the same number of steps. "
    "Nothing was tuned.",
    "The share recovered is as in section 6 for MNIST. The paper's nets saw 20 million frames in "
    "their 3 %; these see 15 images of a class.",
]


@dataclasses.dataclass(frozen=True)
class Settings(StudySettings):
    """What this script asks besides."""

    teacher: Path | None = flag(
        "A PyTorch state dict of a resnet20 (.npz, .safetensors), or a folder with a network of "
        "ours. Default: a perceptron is trained."
    )


def run(study: Study) -> Findings:
    """Train on 3 % with hard and with soft targets, as they are and shifted, and on all images."""
    network = obtain_teacher(study)
    few, seeds = regulariser.pick_few(study), study.seeds(3)
    curves = {
        (kind, shifted): train_few(study, network, few, kind, shifted, seeds)
        for shifted, kind in regulariser.KINDS
    }
    recipe, examples = study.pick(FULL, QUICK), study.train._asdict()
    cohort = hinton2015.networks.Cohort(study, spec_of(study), recipe, examples, seeds)
    full = hinton2015.networks.train(cohort, "regulariser_cifar100/full")
    errors = hinton2015.networks.test_errors(study, full)
    return regulariser.tabulate(curves, errors, notes=NOTES)


def obtain_teacher(study: Study) -> Network:
    """Read the teacher, or train a perceptron."""
    asked = study.settings
    if not isinstance(asked, Settings) or asked.teacher is None:
        spec = hinton2015.networks.mlp_spec(study, study.pick((1024, 1024), (32, 32)))
        recipe, examples = study.pick(TEACHER, QUICK_TEACHER), study.train._asdict()
        cohort = hinton2015.networks.Cohort(study, spec, recipe, examples, [asked.seed])
        trained = hinton2015.networks.train(cohort, "regulariser_cifar100/teacher")
        return kdjax.models.Network(spec, trained.model, trained.member(0))
    if not asked.teacher.exists():
        raise FileNotFoundError(f"--teacher: there is nothing at {asked.teacher}")
    spec = kdjax.models.NetworkSpec(
        "resnet20", (), len(study.label_names), study.image_shape, mean=study.mean, std=study.std
    )
    return runs.networks.load_teacher(TeacherSettings(checkpoint=asked.teacher), spec)


def spec_of(study: Study) -> NetworkSpec:
    """Describe the nets."""
    mlp = hinton2015.networks.mlp_spec(study, (16, 16))
    return study.pick(dataclasses.replace(mlp, name="convnet", widths=WIDTHS), mlp)


def train_few(
    study: Study, network: Network, few: np.ndarray, kind: str, shifted: bool, seeds: list[int]
) -> regulariser.Curve:
    """Train on the few examples, or on all copies of them, measured on the way."""
    images, labels = study.train.image[few], study.train.label[few]
    copies = 1
    if shifted:
        moved = kdjax.data.all_shifts(images, max_shift=study.pick(2, 1))
        views = np.concatenate([moved, moved[:, :, :, ::-1]])
        copies, images = len(views), views.reshape(-1, *images.shape[1:])
    examples = {"image": images, "label": np.tile(labels, copies)}
    if kind == "soft":
        examples["teacher_logits"] = hinton2015.networks.predict(
            study.run, network.model, network.variables, images
        )
    recipe, name = study.pick(FEW, QUICK), f"{kind}{'_shifted' if shifted else ''}"
    recipe = Recipe(recipe.epochs / copies, recipe.batch_size)
    cohort = hinton2015.networks.Cohort(study, spec_of(study), recipe, examples, seeds)
    temperature = TEMPERATURE if kind == "soft" else None
    return regulariser.learn(cohort, f"regulariser_cifar100/{name}", few, temperature)


if __name__ == "__main__":
    run_script("regulariser_cifar100", __doc__, run, data_name="cifar100", settings_type=Settings)
