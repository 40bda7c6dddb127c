"""The big network of section 3, which most of the scripts learn from."""

from typing import NamedTuple

import numpy as np

from experiments.hinton2015 import networks
from experiments.hinton2015.study import Recipe, Study
from kdjax import data
from kdjax.runs import evaluation
from kdjax.runs.evaluation import Arrays, Run
from kdjax.types import Model, Variables

RECIPE = Recipe(epochs=140, batch_size=128, augment=("translate", "warp"), max_norm=3.5)
QUICK = Recipe(epochs=20, batch_size=64, max_norm=3.5)
TEMPERATURE = 20.0


class Trained(NamedTuple):
    """The teacher, and its logits for all images: the mean over each image's views, [examples, k].

    `one_look` are its logits for the test images from one pass over each. Views are the copies of
    an image that are shifted by up to `around` pixels.
    """

    run: Run
    model: Model
    variables: Variables
    train_logits: np.ndarray
    test_logits: np.ndarray
    one_look: np.ndarray
    around: int

    def answered(self, examples: Arrays) -> Arrays:
        """Put the logits for all training examples beside them."""
        return {**examples, "teacher_logits": self.train_logits}

    def answered_shifts(self, examples: Arrays, *, max_shift: int) -> Arrays:
        """Make a transfer set of all shifted copies of some examples, each with its own answer.

        A view of a copy is an example shifted by the sum of both shifts: all are answered once.
        """
        views = data.all_shifts(examples["image"], max_shift=max_shift + self.around)
        logits = _logits(self.run, self.model, self.variables, views)
        side, size = 2 * (max_shift + self.around) + 1, 2 * self.around + 1
        grid = logits.reshape(side, side, *logits.shape[1:])
        corners = [(i, j) for i in range(side - size + 1) for j in range(side - size + 1)]
        windows = [
            grid[i : i + size, j : j + size].reshape(-1, *logits.shape[1:]) for i, j in corners
        ]
        answers = np.concatenate([evaluation.mean_of(window, TEMPERATURE) for window in windows])
        return {**shifted(examples, max_shift=max_shift), "teacher_logits": answers}


def shifted(examples: Arrays, *, max_shift: int) -> Arrays:
    """Put all copies of the examples, shifted by up to some pixels, into one set."""
    images = data.all_shifts(examples["image"], max_shift=max_shift)
    others = {name: np.concatenate([x] * len(images)) for name, x in examples.items()}
    return {**others, "image": images.reshape(-1, *images.shape[2:])}


def obtain(study: Study) -> Trained:
    """Train 784-1200-1200-10 with dropout, max-norm and warps, or read what another script did."""
    spec = networks.mlp_spec(study, study.pick((1200, 1200), (64, 64)), dropout=0.1)
    recipe, seeds = study.pick(RECIPE, QUICK), [study.settings.seed]
    cohort = networks.Cohort(study, spec, recipe, study.train._asdict(), seeds)
    trained = networks.train(cohort, "teacher")
    teacher = study.run, trained.model, trained.member(0)
    max_shift = study.pick(1, 0)
    train, test = (
        look_around(*teacher, x.image, max_shift=max_shift) for x in (study.train, study.test)
    )
    one_look = networks.predict(*teacher, study.test.image)
    return Trained(*teacher, train, test, one_look, max_shift)


def look_around(
    run: Run, model: Model, variables: Variables, images: np.ndarray, *, max_shift: int
) -> np.ndarray:
    """Average a network's probabilities over all shifted copies of each image: logits.

    A network that was trained on shifted images has an opinion on each copy; their mean errs less
    than one of them does. The average is taken at the temperature of the distillation.
    """
    views = data.all_shifts(images, max_shift=max_shift)
    return evaluation.mean_of(_logits(run, model, variables, views), TEMPERATURE)


def _logits(run: Run, model: Model, variables: Variables, views: np.ndarray) -> np.ndarray:
    return np.stack([networks.predict(run, model, variables, view) for view in views])
