"""Make the picture of the dark knowledge: `python docs/make_picture.py`.

A teacher learns the digits that scikit-learn ships; what it says of four test digits is drawn as it
is and softened, into docs/_static/dark-knowledge.svg. It takes some seconds and needs no network.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402

from kdjax import data, loop, models, step, teachers, terms  # noqa: E402
from kdjax.losses import tempered_softmax  # noqa: E402
from kdjax.objective import combine  # noqa: E402

TEMPERATURE, STEPS = 4.0, 1500
# On what is white in the dark as well: a page's own colors cannot reach into a picture.
PAPER, INK, SHARP, SOFT = "#ffffff", "#30343b", "#9aa3ad", "#d9622b"


def taught() -> tuple[data.Dataset, np.ndarray]:
    """Return the digits, and what a teacher that has learned them says of the test digits."""
    digits = data.load("digits")
    network = models.normalized(models.mlp(10, widths=(256, 256)), digits.mean, digits.std)
    objective, optimizer = combine({"hard": terms.cross_entropy()}, {"hard": 1.0}), optax.adam(1e-3)
    arrays = digits.train._asdict()
    batch = next(data.train_batches(arrays, seed=0, batch_size=64))
    answers = teachers.absent().apply((), batch)
    state = step.init_train_state(jax.random.key(0), network, objective, optimizer, batch, answers)
    train_step = step.with_teacher(
        step.make_train_step(network, objective, optimizer), teachers.absent()
    )
    batches = data.train_batches(arrays, seed=0, batch_size=64)
    state = loop.fit(train_step, state, batches, num_steps=STEPS)
    outputs, _ = network.apply(
        state.params["student"], state.model_state, digits.test.image, train=False
    )
    return digits, np.asarray(outputs.logits)


def picture(digits: data.Dataset, logits: np.ndarray) -> plt.Figure:
    """Draw four digits, a row each, beside the probabilities of their classes."""
    soft = np.asarray(tempered_softmax(logits, TEMPERATURE))
    sharp = np.asarray(tempered_softmax(logits, 1.0))
    right = logits.argmax(-1) == digits.test.label
    doubt = np.where(right, 1 - soft.max(-1), 0)
    chosen = [max(np.flatnonzero(digits.test.label == c), key=doubt.__getitem__) for c in (7, 3, 9)]
    figure, grid = plt.subplots(
        3, 3, figsize=(7.2, 3.3), width_ratios=(0.55, 2, 2), facecolor=PAPER, layout="constrained"
    )
    for (image, one, other), i in zip(grid, chosen, strict=True):
        image.imshow(digits.test.image[i, ..., 0], cmap="gray_r", interpolation="nearest")
        image.set(xticks=[], yticks=[])
        for axes, probabilities, color in ((one, sharp[i], SHARP), (other, soft[i], SOFT)):
            axes.bar(range(10), probabilities, color=color, width=0.75)
            axes.set(xticks=range(10), yticks=[], ylim=(0, 1), facecolor=PAPER)
            axes.spines[["left", "right", "top"]].set_visible(False)
            axes.tick_params(length=0, labelsize=8, colors=INK)
    grid[0, 0].set_title("an image", fontsize=9, color=INK)
    grid[0, 1].set_title("the teacher's answer, T = 1", fontsize=9, color=INK)
    grid[0, 2].set_title(
        f"softened, T = {TEMPERATURE:g}: what the student learns", fontsize=9, color=SOFT
    )
    return figure


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"], plt.rcParams["svg.fonttype"] = "kdjax", "none"
    path = ROOT / "docs" / "_static" / "dark-knowledge.svg"
    picture(*taught()).savefig(path, metadata={"Date": None})
    print(path, path.stat().st_size, "bytes")
