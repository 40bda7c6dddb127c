"""Section 4: an ensemble distilled into one net of the size of its members.

    python -m experiments.hinton2015.ensemble --data.dir DIR

Ten nets that differ in nothing but their seed, the mean of their probabilities, and one net that
learns from it. The paper does this for speech, which is not public; here it is CIFAR-100.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments import hinton2015
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script
from kdjax import runs

if TYPE_CHECKING:
    from experiments.hinton2015.networks import Cohort

NUM_MEMBERS, TEMPERATURES, HARD_WEIGHT = 10, (1.0, 2.0, 5.0, 10.0), 0.5
MEMBER, STUDENT = Recipe(epochs=8), Recipe(epochs=30)
QUICK = Recipe(epochs=20, batch_size=64)
NOTES = [
    "The gain is the ensemble's accuracy less the mean accuracy of its members; what is "
    "transferred is the part of it that the mean distilled net has. Members and distilled nets are "
    "3072-256-256-100 without regularization, 8 and 30 passes over the images as they are; the "
    "second row trains from labels for as long as the students do. The ensemble averages "
    "probabilities at the temperature of the distillation. All four temperatures of the paper are "
    "shown; the row of the claim is T = 2."
]


def run(study: Study) -> Findings:
    """Train the members at once, then the students of their mean, and compare."""
    networks, formatted = hinton2015.networks, runs.numbers.mean_and_deviation
    spec = networks.mlp_spec(study, study.pick((256, 256), (16, 16)))
    recipe, examples = study.pick(STUDENT, QUICK), study.train._asdict()
    ten = networks.Cohort(study, spec, study.pick(MEMBER, QUICK), examples, range(NUM_MEMBERS))
    members = networks.train(ten, "ensemble/members")
    # Seeds that no member has: a student must not start as one of them.
    seeds = [NUM_MEMBERS + seed for seed in study.seeds(3)]
    cohort = networks.Cohort(study, spec, recipe, examples, seeds)
    longer = networks.train(cohort, "ensemble/longer")
    alone = accuracies(longer.logits(study.run, study.test.image), study.test.label)
    logits = members.logits(study.run, study.test.image)
    single = accuracies(logits, study.test.label)
    mean = runs.evaluation.mean_of(logits, 1.0)[None]
    together = accuracies(mean, study.test.label)
    rows = [
        ("one member", f"{formatted(single, 2)} %", ""),
        ("one net, trained as long as students", f"{formatted(alone, 2)} %", ""),
        ("the ensemble of ten", f"{together[0]:.2f} %", "100 %"),
    ]
    gain = together[0] - float(np.mean(single))
    train_logits = members.logits(study.run, examples["image"])
    shares = {}
    for temperature in study.pick(TEMPERATURES, TEMPERATURES[:2]):
        answers = {"teacher_logits": runs.evaluation.mean_of(train_logits, temperature)}
        accuracy = students(cohort._replace(examples=examples | answers), temperature)
        shares[temperature] = float(np.mean(accuracy) - np.mean(single)) / gain * 100
        share = f"{shares[temperature]:.0f} %"
        rows.append((f"distilled, T = {temperature:g}", f"{formatted(accuracy, 2)} %", share))
    what = "share of the ensemble's gain that one net keeps, T = 2"
    claim = Claim(what, "86 %", (shares[2.0],), unit="%", bar=80.0, at_least=True)
    table = runs.report.Table(("net", "test accuracy", "of the gain"), tuple(rows))
    return Findings([claim], tables=[table], notes=NOTES)


def students(cohort: Cohort, temperature: float) -> tuple[float, ...]:
    """Distil the stored ensemble at a temperature; return test accuracies in per cent."""
    name, study = f"ensemble/distilled_{temperature:g}", cohort.study
    trained = hinton2015.networks.distil(
        cohort, name, temperature=temperature, soft_weight=1 - HARD_WEIGHT
    )
    return accuracies(trained.logits(study.run, study.test.image), study.test.label)


def accuracies(logits: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Return every member's accuracy in per cent."""
    return tuple(100 - 100 * e / len(labels) for e in hinton2015.networks.errors(logits, labels))


if __name__ == "__main__":
    run_script("ensemble", __doc__, run, data_name="cifar100")
