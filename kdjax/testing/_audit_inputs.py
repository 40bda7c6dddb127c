"""What the audit checks of the batch and the networks' outputs, before it asks terms."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdjax._steps import check_batch, mask_of
from kdjax.metrics import are_probabilities, counted, spread
from kdjax.teachers import check_logits
from kdjax.testing._harness import Check, Verdict
from kdjax.types import TermInputs


def entries(given: TermInputs) -> Verdict:
    """Look for what is no number, and for logits that are none."""
    return _refusal(check_batch, given.batch)


def mask(given: TermInputs) -> Verdict:
    """Look for weights that are none, and for a mask of other examples."""
    return _refusal(mask_of, given.batch, len(given.student.logits))


def label(given: TermInputs) -> Verdict:
    """Look for labels that are no class, and for distributions over classes that are none."""
    if "label" not in given.batch:
        return None, "the batch has no label"
    labels, shape = np.asarray(given.batch["label"]), given.student.logits.shape
    if labels.dtype.kind in "iu" and labels.shape == shape[:-1]:
        valid = np.asarray(counted(spread(mask_of(given.batch, shape[0]), labels.shape)))
        wrong = labels[((labels < 0) | (labels >= shape[-1])) & valid]
        if wrong.size:
            return False, (
                f"label {wrong[0]} is no class of {shape[-1]}: leave it out by batch['mask'], or "
                "exempt it where the loss ignores it"
            )
        return True, f"classes out of {shape[-1]}"
    if labels.dtype.kind not in "iub" and labels.shape == shape:
        if are_probabilities(labels):
            return True, "class probabilities"
        sums = labels.astype(np.float64).sum(-1)
        return False, (
            f"rows of label sum to {sums.min():.4g} up to {sums.max():.4g}: class probabilities "
            "sum to 1; exempt real-valued targets of a loss that means them"
        )
    return None, f"of shape {labels.shape} and type {labels.dtype}: no classes of the student's"


def logits(given: TermInputs) -> Verdict:
    """Look for probabilities in the place of logits, and for a class axis of one."""
    networks = {"student": given.student, "teacher": given.teacher}
    for whose, outputs in networks.items():
        if outputs is None:
            continue
        if outputs.logits.shape[-1] < 2:
            return False, (
                f"the {whose} has one logit, whose softmax is 1 whatever it is: exempt it where "
                "the losses take a sigmoid"
            )
        passed, words = _refusal(check_logits, f"the {whose}'s logits", outputs.logits)
        if not passed:
            return passed, words
    return True, "of several classes, not probabilities"


CHECKS: Mapping[str, Check] = {"entries": entries, "mask": mask, "label": label, "logits": logits}


def _refusal(check: Callable[..., Any], *args: Any) -> Verdict:
    """Return a check that raises as a verdict."""
    try:
        check(*args)
    except (TypeError, ValueError) as error:
        return False, str(error)
    return True, ""
