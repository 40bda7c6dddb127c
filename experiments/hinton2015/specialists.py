"""Section 5: specialists for the classes that a generalist confuses.

    python -m experiments.hinton2015.specialists --data.dir DIR

The paper's data is not public; here it is CIFAR-100, and the generalist a perceptron that is too
small for it. Classes that it often predicts together make up the specialists' sets. Each specialist
starts from the generalist and learns its own classes and a dustbin; one distribution is found that
agrees with the generalist and the specialists of its first choice.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kdjax
from experiments import hinton2015
from experiments.hinton2015 import superclasses
from experiments.hinton2015.study import (
    Claim,
    Findings,
    PanelRecipe,
    Recipe,
    Study,
    interval,
    run_script,
)
from kdjax import runs

if TYPE_CHECKING:
    from kdjax.models import Network
    from kdjax.runs.report import Table

WIDTHS, QUICK_WIDTHS = (128, 128), (32, 32)
RECIPE = PanelRecipe()
QUICK = PanelRecipe(num_sets=4, set_size=3, batch_size=32, augment=())
GENERALIST = Recipe(epochs=126, augment=("crop", "flip"))
QUICK_GENERALIST = Recipe(epochs=10, batch_size=64)
NUM_TOP = 1
CONTROL = "a generalist trained as long as all of these together"
_CHUNK = 1000
NOTES = [
    "The generalist is 3072-128-128-100, trained for 126 epochs of shifted and mirrored views: too "
    "small for what it has to learn, as the paper's was for 100 million images. A specialist is "
    "the same net, all of it trained, on views of the same kind, with the paper's labels. The last "
    "row is what a generalist makes of as many images as they all see.",
    "Clusters are those of the covariance of the generalist's predictions on the training images "
    "at temperature 4, with columns of unit length; a set is made of the largest entries of a "
    "centroid, so sets overlap and some classes may be in none. The combination minimizes the "
    "paper's equation 5 for every image. The conditional accuracy counts the images of a "
    "specialist's classes and allows only these as answers, over all specialists. Coverage is "
    "counted over all seeds, each with clusters of its own; the first seed's are named.",
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


class Outcome(NamedTuple):
    """A generalist's logits for the images to measure on, and what a panel made of them."""

    class_sets: np.ndarray
    before: np.ndarray
    after: np.ndarray


def run(study: Study) -> Findings:
    """Train generalists, cluster, train and ask their specialists, and count by coverage."""
    seeds, labels, networks = study.seeds(6), study.test.label, hinton2015.networks
    spec = networks.mlp_spec(study, study.pick(WIDTHS, QUICK_WIDTHS))
    examples, recipe = study.train._asdict(), study.pick(GENERALIST, QUICK_GENERALIST)
    cohort = networks.Cohort(study, spec, recipe, examples, seeds)
    trained = networks.train(cohort, "specialists/generalists")
    longer = dataclasses.replace(recipe, epochs=recipe.epochs + as_many_epochs(study))
    patient = networks.train(cohort._replace(recipe=longer), "specialists/longer")
    outcomes = [
        consult(study, kdjax.models.Network(spec, trained.model, trained.member(i)), seed)
        for i, seed in enumerate(seeds)
    ]
    rows = coverage_rows(labels, outcomes)
    sets = outcomes[0].class_sets
    logits = patient.logits(study.run, study.test.image)
    alone = 100 * (logits.argmax(-1) == labels).mean(-1)
    found = claims(labels, outcomes)
    ahead = tuple((np.array(found[1].ours) - alone).tolist())
    return Findings(
        [
            *found,
            Claim(CONTROL, "", tuple(alone.tolist()), "%", headline=True),
            Claim("specialists ahead of it", "", ahead, "points", headline=True),
        ],
        tables=[coverage_table(rows), cluster_table(study, sets)],
        figures={"coverage": (lambda: figure(rows), CAPTION)},
        notes=[
            *(*NOTES, *agreement_note(study, sets), flips_note(labels, outcomes)),
            *interval_notes(found[2].ours, ahead),
        ],
    )


def as_many_epochs(study: Study) -> float:
    """Return how often all images would be seen in the steps of all specialists."""
    recipe, count = study.pick(RECIPE, QUICK), len(study.train.label)
    steps = recipe.num_sets * recipe.num_steps(count, len(study.label_names))
    return steps * recipe.batch_size / count


def consult(study: Study, generalist: Network, seed: int) -> Outcome:
    """Train a generalist's specialists and ask those of its first choice."""
    panel = hinton2015.panel.obtain(study, study.pick(RECIPE, QUICK), generalist, seed)
    images, sets = study.test.image, panel.class_sets
    before = hinton2015.networks.predict(study.run, generalist.model, generalist.variables, images)
    active = np.asarray(kdjax.specialists.active_specialists(before, sets, num_top=NUM_TOP))
    return Outcome(sets, before, combined(before, panel.answers(study.run, images), sets, active))


def claims(labels: np.ndarray, outcomes: Sequence[Outcome]) -> list[Claim]:
    """Put accuracies and the gain, by seed, beside the paper's."""
    both = [(o.before, o.after) for o in outcomes]
    top = [[100 * float((z.argmax(-1) == labels).mean()) for z in pair] for pair in both]
    own = [
        [100 * conditional_accuracy(z, labels, o.class_sets) for z in (o.before, o.after)]
        for o in outcomes
    ]
    before, after = zip(*top, strict=True)
    known, better = zip(*own, strict=True)
    gains = tuple(100 * (a / b - 1) for b, a in top)
    gain = Claim("relative gain in top-1 accuracy", "4.4 %", gains, "%", bar=4.4, at_least=True)
    return [
        Claim("top-1 accuracy of the generalist", "25.0 %", before, unit="%"),
        Claim("with all specialists", "26.1 %", after, unit="%", headline=True),
        gain,
        Claim("conditional accuracy of the generalist", "43.1 %", known, unit="%"),
        Claim("conditional accuracy with all specialists", "45.9 %", better, unit="%"),
    ]


CAPTION = (
    "Relative change in top-1 accuracy against the number of specialists whose classes include the "
    "right one. Whiskers: the square root of the number of images whose verdict changed."
)


def combined(
    before: np.ndarray, answers: np.ndarray, sets: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """Combine generalist and specialists, some images at a time."""
    cuts = range(_CHUNK, len(before), _CHUNK)
    parts = zip(
        np.split(before, cuts), np.split(answers, cuts, axis=1), np.split(active, cuts), strict=True
    )
    return np.concatenate(
        [np.asarray(kdjax.specialists.combine(g, s, sets, a)) for g, s, a in parts]
    )


def coverage_rows(labels: np.ndarray, outcomes: Sequence[Outcome]) -> list[Row]:
    """Count by the number of specialists that cover the right class, over all outcomes."""
    members = [kdjax.specialists.membership(o.class_sets, o.before.shape[1]) for o in outcomes]
    covering = np.concatenate([np.asarray(member).sum(0)[labels] for member in members])
    was, now = verdicts(labels, outcomes)
    rows = []
    for count in np.unique(covering):
        here = covering == count
        kinds = (here, was & here, now & ~was & here, was & ~now & here)
        rows.append(Row(int(count), *(int(kind.sum()) for kind in kinds)))
    return rows


def verdicts(labels: np.ndarray, outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the generalist and the panel are right, [outcomes * examples] each."""
    was = [o.before.argmax(-1) == labels for o in outcomes]
    now = [o.after.argmax(-1) == labels for o in outcomes]
    return np.concatenate(was), np.concatenate(now)


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
    lines = []
    for row in rows:
        counts, change = (f"{row.num_specialists}", f"{row.num_images}"), row.gained - row.lost
        lines.append((*counts, f"{change:+d}", f"{row.relative(change):+.1f} %"))
    title = "The gain by coverage (paper: 0.0 % for none to +14.1 % for ten or more)"
    return runs.report.Table(columns, tuple(lines), title)


def cluster_table(study: Study, sets: np.ndarray) -> Table:
    """Name every specialist's classes, the most typical first."""
    known = set(study.label_names) == set(superclasses.OF)
    columns = ("", "classes, the most typical first", *(["superclass of most"] if known else []))
    lines = []
    for i, classes in enumerate(sets):
        names = [study.label_names[c] for c in classes]
        most = [superclasses.most_frequent(names)] if known else []
        lines.append((str(i + 1), ", ".join(names).replace("_", " "), *most))
    return runs.report.Table(columns, tuple(lines), "What the specialists are for")


def agreement_note(study: Study, sets: np.ndarray) -> list[str]:
    """Say how far the sets are the data's superclasses, where it has some."""
    if set(study.label_names) != set(superclasses.OF):
        return []
    names = [[study.label_names[c] for c in classes] for classes in sets]
    first, whole = (superclasses.pairs_shared([n[:k] for n in names]) for k in (5, len(names[0])))
    return [
        f"CIFAR-100 has 20 superclasses of five classes. Of the pairs among the five most typical "
        f"classes of a set {first:.0%} share a superclass, of all pairs in a set {whole:.0%}; by "
        f"chance it would be 4 %."
    ]


def flips_note(labels: np.ndarray, outcomes: Sequence[Outcome]) -> str:
    """Say how many verdicts changed."""
    was, now = verdicts(labels, outcomes)
    gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
    return (
        f"Of {len(was):,} answers, all seeds together, {gained:,} became right and {lost:,} wrong; "
        f"by luck alone the difference, {gained - lost:+d}, would have a standard deviation of "
        f"{(gained + lost) ** 0.5:.0f}."
    )


def interval_notes(gains: Sequence[float], ahead: Sequence[float]) -> list[str]:
    """Say how sure the gain is, and that over a generalist trained as long."""
    if len(ahead) < 2:
        return []
    return [
        f"95 % intervals of the means over {len(ahead)} seeds, Student's: relative gain in top-1 "
        f"accuracy {interval(gains)} %, ahead of a generalist trained as long "
        f"{interval(ahead)} points."
    ]


def figure(rows: list[Row]) -> Any:
    """Draw the relative change against coverage."""
    changes = [row.relative(row.gained - row.lost) for row in rows]
    whiskers = np.array([row.relative((row.gained + row.lost) ** 0.5) for row in rows])
    line = runs.report.Line([row.num_specialists for row in rows], changes, whiskers)
    xlabel = "specialists covering the right class"
    ylabel = "change in accuracy, % of the generalist's"
    return runs.report.plot_lines({"with specialists": line}, xlabel=xlabel, ylabel=ylabel)


if __name__ == "__main__":
    run_script("specialists", __doc__, run, data_name="cifar100")
