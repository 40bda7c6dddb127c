"""Section 3, further: the best 784-800-800-10 that we know how to distil.

    python -m experiments.hinton2015.record --data.dir DIR

The student of the paper's table, taught on all copies of the images that are shifted by at most one
pixel: half a million images, each of which the teacher answers from nine looks.
Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
"""

from experiments import hinton2015
from experiments.hinton2015 import mnist
from experiments.hinton2015.study import Claim, Findings, Recipe, Study, run_script

# The set is 9 times as large: these are the steps of 40 passes over the images as they are.
RECIPE = Recipe(epochs=40 / 9, batch_size=64)
QUICK = Recipe(epochs=2, batch_size=64)
NOTES = [
    "Steps, batches, temperature and weights are those of the students on images as they are. The "
    "copies were chosen on 6,000 validation images."
]


def run(study: Study) -> Findings:
    """Train the students on the shifted copies, whose soft targets are stored; count errors."""
    teacher = hinton2015.teacher.obtain(study)
    copies = teacher.answered_shifts(study.train._asdict(), max_shift=1)
    cohort = mnist.students(study, study.pick(RECIPE, QUICK), copies)
    errors = hinton2015.networks.test_errors(study, mnist.taught(cohort, "record/students"))
    claim = Claim("distilled, T = 20, shifted transfer set", "74", errors, bar=74.0)
    return Findings([claim], notes=NOTES)


if __name__ == "__main__":
    run_script("record", __doc__, run)
