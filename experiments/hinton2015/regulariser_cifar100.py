"""Section 6, on CIFAR-100: soft targets in place of most of the data.

    python -m experiments.hinton2015.regulariser_cifar100 --data.dir DIR --teacher FILE

The protocol of `experiments.hinton2015.regulariser` where a net has more to learn than it can from
3 % of the labels, and a ResNet teaches a perceptron.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.hinton2015 import ensemble, group, regulariser
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.lab import Findings, Lab
from kdjax import data
from kdjax.models import Network, NetworkSpec
from kdjax.runs import networks
from kdjax.runs.settings import TeacherSettings

TEMPERATURE = 4.0
FEW, QUICK = group.Recipe(epochs=250, batch_size=128), group.Recipe(epochs=20, batch_size=64)
TEACHER, QUICK_TEACHER = group.Recipe(epochs=30), group.Recipe(epochs=10, batch_size=64)
NOTES = [
    "Nets are 3072-256-256-100, as in section 4; all images with hard targets are seen 8 times, "
    "where such nets are best. The teacher is the ResNet of --teacher, which learned from all "
    "training images; soft targets are its answers at T = 4. Shifted images are all copies moved "
    "by up to two pixels, and their mirror images. Nets on 3 % take the same number of steps.",
    "The share recovered is as in section 6 for MNIST. The paper's nets saw 20 million frames in "
    "their 3 %; these see 15 images of a class.",
]


@dataclasses.dataclass(frozen=True)
class Settings(labs.Settings):
    """What this script asks besides."""

    teacher: Path | None = None
    """A PyTorch state dict of a resnet20 (.npz, .safetensors), or a folder with a network of ours.
    Default: a perceptron is trained."""


def run(lab: Lab) -> Findings:
    """Train on 3 % with hard and with soft targets, as they are and shifted, and on all images."""
    network = obtain_teacher(lab)
    few, seeds = regulariser.pick_few(lab), lab.seeds(3)
    spec = spec_of(lab)
    curves = {
        (kind, shifted): train_few(lab, network, few, kind, shifted, seeds)
        for shifted in (False, True)
        for kind in ("hard", "soft")
    }
    full = group.train_group(
        lab,
        "regulariser_cifar100/full",
        spec,
        lab.pick(ensemble.MEMBER, QUICK),
        lab.train._asdict(),
        seeds=seeds,
    )
    errors = group.errors(group.test_logits(lab, full), lab.test.label)
    return regulariser.tabulate(curves, errors, notes=NOTES)


def obtain_teacher(lab: Lab) -> Network:
    """Read the teacher, or train a perceptron."""
    path = getattr(lab.settings, "teacher", None)
    if path is None:
        spec = group.mlp_spec(lab, lab.pick((1024, 1024), (32, 32)))
        trained = group.train_group(
            lab,
            "regulariser_cifar100/teacher",
            spec,
            lab.pick(TEACHER, QUICK_TEACHER),
            lab.train._asdict(),
            seeds=[lab.settings.seed],
        )
        return Network(spec, trained.model, trained.member(0))
    if not path.exists():
        raise FileNotFoundError(f"--teacher: there is nothing at {path}")
    spec = NetworkSpec(
        "resnet20", (), len(lab.label_names), lab.image_shape, mean=lab.mean, std=lab.std
    )
    return networks.load_teacher(TeacherSettings(checkpoint=path), spec)


def spec_of(lab: Lab) -> NetworkSpec:
    """Describe the nets: those of the ensemble."""
    return group.mlp_spec(lab, lab.pick((256, 256), (16, 16)))


def train_few(
    lab: Lab, network: Network, few: np.ndarray, kind: str, shifted: bool, seeds: list[int]
) -> regulariser.Curve:
    """Train on the few examples, or on all copies of them, measured on the way."""
    images, labels = lab.train.image[few], lab.train.label[few]
    copies = 1
    if shifted:
        moved = data.all_shifts(images, max_shift=lab.pick(2, 1))
        views = np.concatenate([moved, moved[:, :, :, ::-1]])
        copies, images = len(views), views.reshape(-1, *images.shape[1:])
    examples = {
        "image": images,
        "label": np.tile(labels, copies),
    }
    if kind == "soft":
        examples["teacher_logits"] = group.predict(network.model, network.variables, images)
    recipe = lab.pick(FEW, QUICK)
    return regulariser.learn(
        lab,
        f"regulariser_cifar100/{kind}{'_shifted' if shifted else ''}",
        spec_of(lab),
        group.Recipe(recipe.epochs / copies, recipe.batch_size),
        examples,
        few,
        seeds,
        TEMPERATURE if kind == "soft" else None,
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main(
        "regulariser_cifar100",
        __doc__ or "",
        run,
        args,
        data_name="cifar100",
        settings_type=Settings,
    )


if __name__ == "__main__":
    main()
