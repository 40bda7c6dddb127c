"""Section 3: a digit that the student has never seen.

    python -m experiments.hinton2015.unseen_digit --data.dir DIR

All threes are left out of the transfer set, then all digits but sevens and eights. The teacher's
soft targets still tell the student what the others look like; what is wrong is mostly a bias.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hinton2015 import group, mnist, teacher
from experiments.hinton2015 import lab as labs
from experiments.hinton2015.lab import Claim, Findings, Lab
from kdjax import teachers
from kdjax.specialists import match_class_prior

THREE, PAIR = 3, (7, 8)
RECIPE, QUICK = group.Recipe(epochs=30, batch_size=64), group.Recipe(epochs=20, batch_size=64)
TEMPERATURE = 20.0
OFFSETS = np.arange(-30.0, 30.01, 0.1)
NOTES = [
    "The paper raised or lowered the bias by the amount that was best on the test set. The rows "
    "'found on the test set' do the same, student by student, so that figures compare; they are "
    "no estimate of anything. The rows 'class prior' use no label: "
    "`kdjax.specialists.match_class_prior` gives each class the share that it has among the "
    "teacher's training labels, on the unlabelled images that are measured. The rows 'teacher's "
    "mass' use no image but those of the transfer "
    "set: each class gets the teacher's mean probability there, at temperature 1.",
]


def run(lab: Lab) -> Findings:
    """Distil on both reduced transfer sets and correct the biases in three ways."""
    big = teacher.obtain(lab)
    labels = lab.train.label
    without_three = students(lab, "unseen_digit/without_3", big, labels != THREE)
    only_pair = students(lab, "unseen_digit/only_7_and_8", big, np.isin(labels, PAIR))
    prior = np.bincount(labels, minlength=len(lab.label_names)) / len(labels)
    claims = []
    logits, transfer = without_three
    truth = lab.test.label
    threes = truth == THREE
    fixes = corrections(lab, logits, transfer, big, labels != THREE, prior, [THREE])
    for name, paper, bar in (
        ("as distilled", ("206", "133"), 206.0),
        ("bias of 3 found on the test set", ("109", "14"), 109.0),
        ("biases from the class prior", ("", ""), None),
        ("biases from the teacher's mass", ("", ""), None),
    ):
        fixed = fixes[name.split(" of ")[0].split(" from ")[-1]]
        errors = group.errors(fixed, truth)
        on_threes = group.errors(fixed[:, threes], truth[threes])
        claims += [
            Claim(f"no 3 seen, {name}", paper[0], errors, bar=bar),
            Claim(f"of these on the {threes.sum()} threes", paper[1], on_threes),
        ]
    logits, transfer = only_pair
    fixes = corrections(lab, logits, transfer, big, np.isin(labels, PAIR), prior, list(PAIR))
    for name, percent, bar in (
        ("as distilled", "47.3 %", 47.3),
        ("bias of 7 and 8 found on the test set", "13.2 %", 13.2),
        ("biases from the class prior", "", None),
        ("biases from the teacher's mass", "", None),
    ):
        fixed = fixes[name.split(" of ")[0].split(" from ")[-1]]
        errors = tuple(100 * e / len(truth) for e in group.errors(fixed, truth))
        claims.append(Claim(f"only 7 and 8 seen, {name}", percent, errors, unit="%", bar=bar))
    return Findings(claims, notes=NOTES)


def students(
    lab: Lab, name: str, big: teacher.Trained, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distil on the kept examples; return test and transfer logits of all members."""
    seeds = lab.seeds(5)
    answered = big.answered(lab.train._asdict())
    examples = {key: x[kept] for key, x in answered.items()}
    trained = group.train_group(
        lab,
        name,
        mnist.spec_of(lab),
        lab.pick(RECIPE, QUICK),
        examples,
        seeds=seeds,
        settings=group.constant(len(seeds), temperature=TEMPERATURE, soft_weight=1.0),
        objective_fn=group.soft_and_hard,
        teacher=teachers.stored(),
    )
    return group.test_logits(lab, trained), group.all_logits(trained, examples["image"])


def corrections(
    lab: Lab,
    logits: np.ndarray,
    transfer: np.ndarray,
    big: teacher.Trained,
    kept: np.ndarray,
    prior: np.ndarray,
    classes: Sequence[int],
) -> dict[str, np.ndarray]:
    """Return the test logits of all members as they are and after each correction."""
    mass = np.asarray(jax.nn.softmax(jnp.asarray(big.train_logits[kept]), axis=-1)).mean(0)

    def each(bias_fn: Callable[[int], Any]) -> np.ndarray:
        return np.stack([z + np.asarray(bias_fn(i)) for i, z in enumerate(logits)])

    return {
        "as distilled": logits,
        "bias": each(lambda i: best_offset(logits[i], lab.test.label, classes)),
        "the class prior": each(lambda i: match_class_prior(logits[i], prior)),
        "the teacher's mass": each(lambda i: match_class_prior(transfer[i], mass)),
    }


def best_offset(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Find the one number to add to some classes that gives the fewest errors; uses the labels."""
    raised = np.isin(np.arange(logits.shape[-1]), classes).astype(np.float32)
    errors = [group.errors((logits + b * raised)[None], labels)[0] for b in OFFSETS]
    best = OFFSETS[np.flatnonzero(np.asarray(errors) == min(errors))]
    return np.asarray(np.median(best) * raised, np.float32)


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    labs.main("unseen_digit", __doc__ or "", run, args)


if __name__ == "__main__":
    main()
