"""A teacher of other classes: a linear layer over its logits, fitted to the training labels."""

import dataclasses

import numpy as np

from kdjax import models
from kdjax._extras import needs
from kdjax.data import Dataset
from kdjax.models import Network
from kdjax.runs import evaluation
from kdjax.runs.console import say
from kdjax.runs.evaluation import Run
from kdjax.types import Variables


def fitted(run: Run, dataset: Dataset, teacher: Network) -> Network:
    """Give a teacher the classes of the data, by what it says of the training examples.

    Args:
        run: where it answers.
        dataset: the examples; those of training are used.
        teacher: with classes of its own.

    Returns:
        The teacher with a linear layer over its logits, which need no path as its embedding would.
    """
    answers = evaluation.predict(run, teacher.model, teacher.variables, dataset.train._asdict())
    labels = np.asarray(dataset.train.label)
    probe = fit(answers, labels, dataset.num_classes)
    spec = dataclasses.replace(
        teacher.spec,
        num_classes=dataset.num_classes,
        probed_classes=answers.shape[-1],
        label_names=dataset.label_names,
    )
    say(
        f"teacher        a linear layer over its {answers.shape[-1]} logits, fitted to "
        f"{len(labels)} labels, gives it the {dataset.num_classes} classes of the data"
    )
    own = teacher.variables
    variables = Variables({"network": own.params, "probe": probe}, own.state)
    return Network(spec, models.build(spec), variables)


def fit(answers: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Fit multinomial logistic regression with a unit Gaussian prior on standardized answers.

    Args:
        answers: [examples, classes of the teacher].
        labels: [examples], from 0 on.
        num_classes: how many there are; one that no label names is never answered.

    Returns:
        `kernel` [classes of the teacher, num_classes] and `bias` [num_classes].
    """
    with needs("data"):
        from sklearn.linear_model import LogisticRegression

    mean, std = answers.mean(axis=0), answers.std(axis=0) + 1e-6
    found = LogisticRegression(max_iter=1000).fit((answers - mean) / std, labels)
    weights, bias = found.coef_, found.intercept_
    if len(found.classes_) == 2:
        weights, bias = (np.concatenate([-x / 2, x / 2]) for x in (weights, bias))
    kernel = np.zeros((answers.shape[-1], num_classes), np.float32)
    # So far below the others that its probability is zero.
    whole = np.full(num_classes, -100.0, np.float32)
    kernel[:, found.classes_] = weights.T / std[:, None]
    whole[found.classes_] = bias - weights @ (mean / std)
    return {"kernel": kernel, "bias": whole}
