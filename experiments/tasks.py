"""Distil other tasks than one class of many, on small sets of real data.

    python -m experiments.tasks --task multi-label
    python -m experiments.tasks --task pixels --num-seeds 3 --workdir runs/pixels

The data is written as a `.npz` file, as yours may be, and distilled by `experiments.distill`:

    multi-label   the digits of scikit-learn: even, above four, prime, with a loop
    binary        the same digits: even or odd, one logit
    regression    the diabetes set of scikit-learn, one number from rows of ten
    embeddings    the digits: 16 numbers each, close for one class and apart for others; 30 have
                  a class, and the teacher embeds all
    pixels        collages of the digits: the class of each pixel, of faint ones none
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

import kdjax
from kdjax.runs import distill, flags
from kdjax.runs.flags import flag
from kdjax.runs.settings import POSITIVE, SEED

TaskName = Literal["multi-label", "binary", "regression", "embeddings", "pixels"]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which task, how long and how often, and where the results go."""

    task: TaskName = flag("What is learned.", default="multi-label")
    epochs: int | None = flag("As that of distill, of all trainings.", POSITIVE)
    num_seeds: int = flag("Students of each kind.", POSITIVE, default=5)
    seed: int = flag("The first of the seeds.", SEED, default=0)
    workdir: Path | None = flag("Where data and results go. Default: runs/tasks-TASK.")


def run(settings: Settings) -> None:
    """Write the data, and distil on it."""
    make, own = TASKS[settings.task]
    directory = settings.workdir or Path("runs") / f"tasks-{settings.task}"
    with flags.plain_errors(settings, resume_with="the same command"):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{settings.task}.npz"
        arrays = make()
        more = unlabelled_files(arrays.pop("unlabelled", np.zeros(0)), directory / "unlabelled")
        np.savez(path, **arrays)  # type: ignore[arg-type]
    given = ["--task", settings.task, "--data.dir", str(path), "--workdir", str(directory)]
    given += ["--num-seeds", str(settings.num_seeds), "--seed", str(settings.seed)]
    given += [*own.split(), *more]
    given += ["--epochs", str(settings.epochs)] if settings.epochs else []
    print(f"python -m experiments.distill {shlex.join(given)}", flush=True)
    distill.main(given)


def main(args: list[str] | None = None, program: str = "python -m experiments.tasks") -> None:
    """Run the command line: some flags, or those of the process; a help page names the program."""
    settings, command = flags.read(Settings, program, __doc__ or "", args)
    with flags.plain_errors(settings, resume_with=command):
        flags.check(settings)
    run(settings)


def unlabelled_files(images: np.ndarray, folder: Path) -> list[str]:
    """Write images without labels, if there are some; return the flag that reads them."""
    if not len(images):
        return []
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    return ["--data.unlabelled", str(folder)]


def digits() -> tuple[Arrays, Arrays]:
    """Return the digits of 8x8 pixels to train and to test on."""
    found = kdjax.data.load("digits", validation_fraction=0.0)
    train, test = ({"x": np.asarray(x.image), "y": np.asarray(x.label)} for x in found[1:4:2])
    return train, test


def labeled_by(rows: list[list[bool]] | list[bool]) -> Arrays:
    """Return the digits with what is true of each, by its class."""
    (train, test), true = digits(), np.array(rows, np.int32)
    of_test = {"x_test": test["x"], "y_test": true[test["y"]]}
    return {"x_train": train["x"], "y_train": true[train["y"]], **of_test}


def multi_label() -> Arrays:
    """Four labels of a digit, each true or false by itself."""
    return labeled_by(
        [[n % 2 == 0, n > 4, n in (2, 3, 5, 7), n in (0, 6, 8, 9)] for n in range(10)]
    )


def binary() -> Arrays:
    """Even or odd."""
    return labeled_by([n % 2 == 0 for n in range(10)])


def regression() -> Arrays:
    """How far diabetes has come in a year, from ten measurements."""
    from sklearn.datasets import load_diabetes

    rows, values = load_diabetes(return_X_y=True)
    return {"x_train": rows, "y_train": values}


def embeddings() -> Arrays:
    """The digits with their classes, a tenth of them to choose by, and once more without."""
    found = labeled_by([*range(10)])
    apart = {f"{kind}_validation": found[f"{kind}_train"][::10] for kind in "xy"}
    train = {f"{kind}_train": np.delete(found[f"{kind}_train"], np.s_[::10], 0) for kind in "xy"}
    return {**found, **train, **apart, "unlabelled": train["x_train"]}


def pixels() -> Arrays:
    """Collages of four places for digits: of each pixel the digit's class, or the background."""
    train, test = (collages(x, n, seed) for seed, (x, n) in enumerate(zip(digits(), (400, 100),
                   strict=True)))  # fmt: skip
    return {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]}


def collages(examples: Arrays, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay digits on 16x16 noisy pixels: a label is 0 without a digit, 255 where one is faint."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(examples["x"]), (count, 2, 2))
    there = rng.random((count, 2, 2, 1, 1)) < 0.7
    places = there * examples["x"][chosen][..., 0]
    classes = 1 + examples["y"][chosen][..., None, None]
    labels = np.select([places > 127, places > 50], [classes, 255], 0)
    image, label = (x.swapaxes(2, 3).reshape(count, 16, 16) for x in (places, labels))
    noisy = np.clip(image + 25 * rng.normal(size=image.shape), 0, 255)
    return noisy.astype(np.uint8), label


TASKS: Mapping[TaskName, tuple[Callable[[], Arrays], str]] = {
    "multi-label": (multi_label, "--data.student-examples 100"),
    "binary": (binary, "--data.student-examples 100"),
    # A teacher of few steps: a long training would learn 300 examples by heart.
    "regression": (
        regression,
        "--data.student-examples 40 --teacher.widths 32 --teacher.dropout 0.2 --teacher.epochs 40",
    ),
    "embeddings": (embeddings, "--data.student-examples 30 --embedding-size 16"),
    # In batches of 64 there would be too few steps for the rare pixels of a digit.
    "pixels": (
        pixels,
        "--data.student-examples 30 --batch-size 16 --optimizer.learning-rate 1e-2 --epochs 300 "
        "--teacher.epochs 30 --teacher.widths 16 32",
    ),
}
"""How the data of each task is made, and flags for its size."""

if __name__ == "__main__":
    main()
