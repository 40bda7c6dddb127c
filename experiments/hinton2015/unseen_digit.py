"""Section 3: a digit that the student has never seen.

    python -m experiments.hinton2015.unseen_digit --data.dir DIR

All threes are left out of the transfer set, then all digits but sevens and eights. The teacher's
soft targets still tell the student what the others look like; what is wrong is mostly a bias.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import kdjax
from experiments import hinton2015
from experiments.hinton2015 import mnist
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script

if TYPE_CHECKING:
    from experiments.hinton2015.teacher import Trained

THREE, PAIR = 3, (7, 8)
RECIPE, QUICK = Recipe(epochs=30, batch_size=64), Recipe(epochs=20, batch_size=64)
OFFSETS = np.arange(-30.0, 30.01, 0.1)
AS_DISTILLED = "as distilled"
FOUND, PRIOR, MASS = "found on the test set", "the class prior", "the teacher's mass"
"""Where a correction of the biases comes from."""
NOTES = [
    "The paper raised or lowered the bias by the amount that was best on the test set. The rows "
    "'found on the test set' do the same, student by student, so that figures compare; they are "
    "no estimate of anything. The rows 'class prior' use no label: "
    "`kdjax.specialists.match_class_prior` gives each class the share that it has among the "
    "teacher's training labels, on the unlabeled images that are measured. The rows 'teacher's "
    "mass' use no image but those of the transfer set: each class gets the teacher's mean "
    "probability there, at temperature 1."
]


def run(study: Study) -> Findings:
    """Distil on both reduced transfer sets and correct the biases in three ways."""
    teacher = hinton2015.teacher.obtain(study)
    labels, truth = study.train.label, study.test.label
    errors, threes = hinton2015.networks.errors, truth == THREE
    fixed = students(study, "unseen_digit/without_3", teacher, labels != THREE, [THREE])
    claims = []
    for name, correction, paper, on_threes, bar in (
        (AS_DISTILLED, AS_DISTILLED, "206", "133", 206.0),
        (f"bias of 3 {FOUND}", FOUND, "109", "14", 109.0),
        (f"biases from {PRIOR}", PRIOR, "", "", None),
        (f"biases from {MASS}", MASS, "", "", None),
    ):
        logits, what = fixed[correction], f"of these on the {threes.sum()} threes"
        claims.append(Claim(f"no 3 seen, {name}", paper, errors(logits, truth), bar=bar))
        claims.append(Claim(what, on_threes, errors(logits[:, threes], truth[threes])))
    kept = np.isin(labels, PAIR)
    fixed = students(study, "unseen_digit/only_7_and_8", teacher, kept, list(PAIR))
    for name, correction, percent, bar in (
        (AS_DISTILLED, AS_DISTILLED, "47.3 %", 47.3),
        (f"bias of 7 and 8 {FOUND}", FOUND, "13.2 %", 13.2),
        (f"biases from {PRIOR}", PRIOR, "", None),
        (f"biases from {MASS}", MASS, "", None),
    ):
        shares = tuple(100 * e / len(truth) for e in errors(fixed[correction], truth))
        claims.append(Claim(f"only 7 and 8 seen, {name}", percent, shares, unit="%", bar=bar))
    return Findings(claims, notes=NOTES)


def students(
    study: Study, name: str, teacher: Trained, kept: np.ndarray, unseen: list[int]
) -> dict[str, np.ndarray]:
    """Distil on the kept examples; return the test logits of all members after each correction."""
    answered = teacher.answered(study.train._asdict())
    examples = {key: x[kept] for key, x in answered.items()}
    cohort = mnist.students(study, study.pick(RECIPE, QUICK), examples)
    temperature = hinton2015.teacher.TEMPERATURE
    trained = hinton2015.networks.distil(cohort, name, temperature=temperature)
    logits = trained.logits(study.run, study.test.image)
    transfer = trained.logits(study.run, examples["image"])
    labels = study.train.label
    prior = np.bincount(labels, minlength=len(study.label_names)) / len(labels)
    mass = np.mean(softmax(teacher.train_logits[kept]), axis=0)
    match = kdjax.specialists.match_class_prior

    def each(bias_fn: Callable[[int], Any]) -> np.ndarray:
        return np.stack([z + np.asarray(bias_fn(i)) for i, z in enumerate(logits)])

    return {
        AS_DISTILLED: logits,
        FOUND: each(lambda i: best_offset(logits[i], study.test.label, unseen)),
        PRIOR: each(lambda i: match(logits[i], prior)),
        MASS: each(lambda i: match(transfer[i], mass)),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, in float32."""
    # Here and not above: flags are read before the seconds that this import takes.
    import jax

    return np.asarray(jax.nn.softmax(np.asarray(logits), axis=-1))


def best_offset(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Find the one number to add to some classes that gives the fewest errors; uses the labels."""
    raised = np.isin(np.arange(logits.shape[-1]), classes).astype(np.float32)
    errors = [hinton2015.networks.errors((logits + b * raised)[None], labels)[0] for b in OFFSETS]
    best = OFFSETS[np.flatnonzero(np.asarray(errors) == min(errors))]
    return np.asarray(np.median(best) * raised, np.float32)


if __name__ == "__main__":
    run_script("unseen_digit", __doc__, run)
