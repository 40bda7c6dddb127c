"""Section 3: a big regularized net on MNIST, taught to a smaller one without regularization.

    python -m experiments.hinton2015.mnist --data.dir DIR

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import hinton2015
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script

if TYPE_CHECKING:
    from experiments.hinton2015.networks import Cohort, Networks
    from kdjax.models import NetworkSpec
    from kdjax.runs.evaluation import Arrays

STUDENT = Recipe(epochs=40, batch_size=64)
QUICK = Recipe(epochs=20, batch_size=64)
SOFT_WEIGHT = 0.9
NOTES = [
    "Networks see all 60,000 training images. Recipes were chosen on 6,000 of them, set aside "
    "(--data.validation-fraction 0.1). Teacher: dropout 0.1 on hidden units, norms of incoming "
    "weights at most 3.5, 140 epochs of Adam in batches of 128 with a cosine to zero; images moved "
    "by up to two pixels, and their parts by up to two more, each on its own (kdjax.data.warp). "
    "The teacher answers with the mean over the nine copies of an image that are shifted by at "
    "most one pixel. Students: 40 epochs in batches of 64, with labels alone as with the teacher, "
    "images as they are, no regularization but the soft targets, which have nine tenths of the "
    "weight."
]


def run(study: Study) -> Findings:
    """Train the teacher and the students, and put their errors beside the paper's."""
    teacher = hinton2015.teacher.obtain(study)
    examples, recipe = teacher.answered(study.train._asdict()), study.pick(STUDENT, QUICK)
    distilled = taught(students(study, recipe, examples), "mnist/distilled")
    labels, errors = study.test.label, hinton2015.networks.errors
    scratch = hinton2015.networks.test_errors(study, labels_alone(study))
    best = hinton2015.networks.test_errors(study, distilled)
    nine = errors(teacher.test_logits[None], labels)
    claims = [
        Claim("teacher, one look", "67", errors(teacher.one_look[None], labels), bar=67.0),
        Claim("teacher as it teaches, mean over nine looks", "", nine, headline=True),
        Claim("labels alone", "146", scratch),
        Claim("distilled, T = 20", "74", best, bar=74.0),
    ]
    return Findings(claims, notes=NOTES)


def spec_of(study: Study) -> NetworkSpec:
    """Describe the student."""
    return hinton2015.networks.mlp_spec(study, study.pick((800, 800), (32, 32)))


def students(study: Study, recipe: Recipe, examples: Arrays) -> Cohort:
    """Return the students of a recipe and some examples."""
    return hinton2015.networks.Cohort(study, spec_of(study), recipe, examples, study.seeds(5))


def taught(cohort: Cohort, name: str) -> Networks:
    """Distil the stored teacher as the paper's table does."""
    temperature = hinton2015.teacher.TEMPERATURE
    return hinton2015.networks.distil(
        cohort, name, temperature=temperature, soft_weight=SOFT_WEIGHT
    )


def labels_alone(study: Study) -> Networks:
    """Train the students that see no teacher."""
    cohort = students(study, study.pick(STUDENT, QUICK), study.train._asdict())
    return hinton2015.networks.train(cohort, "mnist/scratch")


if __name__ == "__main__":
    run_script("mnist", __doc__, run)
