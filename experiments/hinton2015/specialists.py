"""Section 5: specialists for the classes that a generalist confuses.

    python -m experiments.hinton2015.specialists --data.dir DIR --teacher FILE

The paper's data is not public; here it is CIFAR-100, and the generalist a trained resnet20. Classes
that it often predicts together make up the specialists' sets. Each specialist starts from the
generalist and learns its own classes and a dustbin; one distribution is found that agrees with the
generalist and the specialists of its first choice.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import networks
from experiments.hinton2015 import experts, group, halves, superclasses
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.experts import Recipe
from experiments.hinton2015.lab import Claim, Findings, Lab, Table
from experiments.networks import Network, NetworkSpec
from experiments.settings import TeacherSettings
from kdjax import report, specialists

RECIPE = Recipe()
QUICK = Recipe(num_sets=4, set_size=3, epochs=10, batch_size=32, max_shift=0, mirrored=False)
GENERALIST, QUICK_GENERALIST = group.Recipe(epochs=30), group.Recipe(epochs=10, batch_size=64)
NUM_TOP = 1
_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Settings(labs.Settings):
    """What this script asks besides."""

    teacher: Path | None = None
    """The generalist: a PyTorch state dict of a resnet20 (.npz, .safetensors), or a folder with a
    network of ours. Default: a perceptron is trained."""


# Of the resnet20 in PyTorch weights, on CIFAR-100.
CHOICES = [
    "The generalist has seen all training images (it has 71.4 % of them right, and 64.8 % of the "
    "test images), and the specialists start from it. Recipes were compared on 5,000 training "
    "images that the specialists had not seen but the generalist had, with three of the twenty "
    "specialists and a second view that was mirrored for half of the images only: 2 or 5 epochs, "
    "rates of 0.01 or 0.03, labels alone or half soft targets of the generalist changed the number "
    "of right answers by 0 to +4 of 1,450, too little to choose by. So the paper's labels were "
    "kept, and few epochs.",
    "Specialists train the last block and the head; the paper trains the whole net. Below the cut "
    "all share the generalist's features, computed once for every image as it is and for its "
    "mirror image shifted by up to four pixels.",
]
NOTES = [
    "Clusters are those of the covariance of the generalist's predictions on the training images "
    "at temperature 4, with columns of unit length; a set is made of the largest entries of a "
    "centroid, so sets overlap and some classes are in none.",
    "Specialists of the generalist's first choice are asked (n = 1, as in the paper); the "
    "combination minimises the paper's equation 5 for every image. The conditional accuracy counts "
    "the images of a specialist's classes and allows only these as answers, over all specialists. "
    "There is one clustering and one specialist of a kind, no spread over seeds.",
]


class Row(NamedTuple):
    """Images whose class is covered by some number of specialists, and what became of them."""

    num_specialists: int
    num_images: int
    num_right: int
    gained: int
    lost: int

    def relative(self, change: float) -> float:
        """Return a change in per cent of the images that the generalist has right."""
        return 100 * change / max(self.num_right, 1)


def run(lab: Lab) -> Findings:
    """Cluster, train the specialists, ask them, and count by coverage."""
    recipe = lab.pick(RECIPE, QUICK)
    network = generalist(lab)
    parts = halves.cut(network)
    features, before = halves.read(parts, lab.test.image)
    panel = experts.obtain(lab, recipe, parts, teacher_name(lab))
    sets = panel.class_sets
    active = specialists.active_specialists(before, sets, num_top=NUM_TOP)
    after = combined(before, experts.answers(parts, panel, features), sets, np.asarray(active))
    labels = lab.test.label
    rows = coverage_rows(sets, labels, before, after)
    top = [100 * float((z.argmax(-1) == labels).mean()) for z in (before, after)]
    conditional = [100 * conditional_accuracy(z, labels, sets) for z in (before, after)]
    claims = [
        Claim("top-1 accuracy of the generalist", "25.0 %", (top[0],), unit="%"),
        Claim("with all specialists", "26.1 %", (top[1],), unit="%"),
        Claim(
            "relative gain in top-1 accuracy",
            "4.4 %",
            (100 * (top[1] / top[0] - 1),),
            unit="%",
            bar=0.1,
            at_least=True,
        ),
        Claim("conditional accuracy of the generalist", "43.1 %", (conditional[0],), unit="%"),
        Claim("conditional accuracy with all specialists", "45.9 %", (conditional[1],), unit="%"),
    ]
    chosen = CHOICES if teacher_name(lab) != "perceptron" else []
    return Findings(
        claims,
        tables=[coverage_table(rows), cluster_table(lab, sets)],
        figures={"coverage": (figure(rows), CAPTION)},
        notes=[*chosen, *NOTES, *agreement_note(lab, sets), flips_note(labels, before, after)],
    )


CAPTION = (
    "Relative change in top-1 accuracy against the number of specialists whose classes include the "
    "right one. Whiskers: the square root of the number of images whose verdict changed."
)


def generalist(lab: Lab) -> Network:
    """Read the generalist, or train a perceptron."""
    path = getattr(lab.settings, "teacher", None)
    if path is None:
        spec = group.mlp_spec(lab, lab.pick((1024, 1024), (32, 32)))
        recipe, seeds = lab.pick(GENERALIST, QUICK_GENERALIST), [lab.settings.seed]
        trained = group.train_group(
            lab, "specialists/generalist", spec, recipe, lab.train._asdict(), seeds=seeds
        )
        return Network(spec, trained.model, trained.member(0))
    if not path.exists():
        raise FileNotFoundError(f"--teacher: there is nothing at {path}")
    spec = NetworkSpec(
        "resnet20", (), len(lab.label_names), lab.image_shape, mean=lab.mean, std=lab.std
    )
    return networks.load_teacher(TeacherSettings(checkpoint=path), spec)


def teacher_name(lab: Lab) -> str:
    """Name the generalist in the record of what was trained from it."""
    path = getattr(lab.settings, "teacher", None)
    return "perceptron" if path is None else path.name


def combined(
    before: np.ndarray, answers: np.ndarray, sets: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """Combine generalist and specialists, some images at a time."""
    cuts = range(_CHUNK, len(before), _CHUNK)
    parts = zip(
        np.split(before, cuts), np.split(answers, cuts, axis=1), np.split(active, cuts), strict=True
    )
    return np.concatenate([np.asarray(specialists.combine(g, s, sets, a)) for g, s, a in parts])


def coverage_rows(
    sets: np.ndarray, labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> list[Row]:
    """Count by the number of specialists that cover the right class."""
    covering = np.asarray(specialists.membership(sets, before.shape[1])).sum(0)[labels]
    was, now = (z.argmax(-1) == labels for z in (before, after))
    rows = []
    for count in np.unique(covering):
        here = covering == count
        kinds = (here, was & here, now & ~was & here, was & ~now & here)
        rows.append(Row(int(count), *(int(kind.sum()) for kind in kinds)))
    return rows


def conditional_accuracy(logits: np.ndarray, labels: np.ndarray, sets: np.ndarray) -> float:
    """Return the accuracy over each set's images when only its classes may be answered."""
    right, total = 0, 0
    for classes in sets:
        own = np.isin(labels, classes)
        right += int((classes[logits[own][:, classes].argmax(-1)] == labels[own]).sum())
        total += int(own.sum())
    return right / total


def coverage_table(rows: list[Row]) -> Table:
    """Lay out the counts as the paper's table 4 does."""
    columns = ("specialists covering the class", "images", "change in right ones", "relative")
    lines = [
        (
            f"{row.num_specialists}",
            f"{row.num_images}",
            f"{row.gained - row.lost:+d}",
            f"{row.relative(row.gained - row.lost):+.1f} %",
        )
        for row in rows
    ]
    title = "The gain by coverage (paper: 0.0 % for none to +14.1 % for ten or more)"
    return Table(columns, tuple(lines), title)


def cluster_table(lab: Lab, sets: np.ndarray) -> Table:
    """Name every specialist's classes, the most typical first."""
    known = set(lab.label_names) == set(superclasses.OF)
    columns = ("", "classes, the most typical first", *(["superclass of most"] if known else []))
    lines = []
    for i, classes in enumerate(sets):
        names = [lab.label_names[c] for c in classes]
        most = [superclasses.most_frequent(names)] if known else []
        lines.append((str(i + 1), ", ".join(names).replace("_", " "), *most))
    return Table(columns, tuple(lines), "What the specialists are for")


def agreement_note(lab: Lab, sets: np.ndarray) -> list[str]:
    """Say how far the sets are the data's superclasses, where it has some."""
    if set(lab.label_names) != set(superclasses.OF):
        return []
    names = [[lab.label_names[c] for c in classes] for classes in sets]
    first, whole = (superclasses.pairs_shared([n[:k] for n in names]) for k in (5, len(names[0])))
    return [
        f"CIFAR-100 has 20 superclasses of five classes. Of the pairs among the five most typical "
        f"classes of a set {first:.0%} share a superclass, of all pairs in a set {whole:.0%}; by "
        f"chance it would be 4 %."
    ]


def flips_note(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Say how many verdicts changed."""
    was, now = (z.argmax(-1) == labels for z in (before, after))
    gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
    return (
        f"Of {len(labels):,} images {gained} became right and {lost} wrong; by luck alone the "
        f"difference, {gained - lost:+d}, would have a standard deviation of "
        f"{(gained + lost) ** 0.5:.0f}."
    )


def figure(rows: list[Row]) -> Any:
    """Draw the relative change against coverage."""
    line = report.Line(
        [row.num_specialists for row in rows],
        [row.relative(row.gained - row.lost) for row in rows],
        np.array([row.relative((row.gained + row.lost) ** 0.5) for row in rows]),
    )
    return report.plot_lines(
        {"with specialists": line},
        xlabel="specialists covering the right class",
        ylabel="change in accuracy, % of the generalist's",
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main(
        "specialists",
        __doc__ or "",
        run,
        args,
        data_name="cifar100",
        settings_type=Settings,
    )


if __name__ == "__main__":
    main()
