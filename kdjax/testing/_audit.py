"""`audit`: an objective held against what it should satisfy, on the first batch of real data."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax._steps import mask_of
from kdjax.losses._inputs import TopK, in_full
from kdjax.metrics import counted
from kdjax.testing import _audit_checks, _audit_inputs
from kdjax.testing._harness import Check, Finding, Report, examine
from kdjax.testing._probe import Probe, cast, of_objective
from kdjax.types import (
    Array,
    Batch,
    Metrics,
    Objective,
    Outputs,
    PyTree,
    TermInputs,
    Variables,
)

CHECKS: Mapping[str, Check] = {
    "zero at equality": _audit_checks.zero_at_equality,
    "shift invariance": _audit_checks.shift_invariance,
    "T^2 slope": _audit_checks.temperature_scale,
    "mask neutrality": _audit_checks.mask_neutrality,
    "accumulation": _audit_checks.accumulation,
    "teacher gradient": _audit_checks.teacher_gradient,
    "bfloat16": _audit_checks.low_precision,
}


def audit(
    objective: Objective,
    batch: Batch,
    student_outputs: Outputs,
    teacher_outputs: Outputs | None = None,
    *,
    key: Array | None = None,
    exempt: Mapping[str, Collection[str]] | None = None,
) -> Report:
    """Check every term of an objective on the first batch, before a training is spent on it.

    What they are given is looked at first, as `inputs`: whether the batch holds numbers, the mask
    marks or weighs its examples, labels are classes or sum to 1, and logits are none of
    probabilities or of a single class. If not, nothing is said of terms.

    The terms are looked at from outside, through values and gradients alone:

    - finite: loss and gradients are;
    - zero at equality: a student that equals the teacher costs nothing;
    - shift invariance: a constant added to an example's logits changes nothing;
    - T^2 slope: soft targets carry the factor T^2, whatever T is;
    - mask neutrality: what stands in masked examples leaves no trace;
    - accumulation: the halves of the batch add up to the whole;
    - teacher gradient: there is none;
    - bfloat16: outputs in bfloat16 are finite and computed with in float32.

    A property that a term cannot have (cross-entropy is not zero at equality) does not apply,
    and is reported so. Where a method breaks one on purpose (raw logits are not invariant to a
    shift), exempt it.

    Args:
        objective: as `kdjax.objective.combine` makes it.
        batch: arrays [batch, ...], with a `mask` if some examples do not count.
        student_outputs: the student's for this batch.
        teacher_outputs: the teacher's, None where there is none.
        key: for parameters and state of the terms; `jax.random.key(0)` by default.
        exempt: for the name of a term, or `inputs`, the checks that it need not pass. Names that
            the objective does not have are passed over, so that one table can serve several
            objectives.

    Returns:
        A report: `report.passed`, `report.failures`, and a table as its string.

    Raises:
        ValueError: if `exempt` names a check that does not exist.

    Example:
        >>> from kdjax import terms
        >>> from kdjax.objective import combine
        >>> from kdjax.testing import audit, term_inputs
        >>> objective = combine({"soft": terms.soft_targets(temperature=4.0)}, {"soft": 1.0})
        >>> batch, student, teacher, _ = term_inputs()
        >>> audit(objective, batch, student, teacher).passed
        True
    """
    exempt = _checked(exempt or {})
    if teacher_outputs is not None and isinstance(teacher_outputs.logits, TopK):
        full = in_full(
            TopK(*map(jnp.asarray, teacher_outputs.logits)), student_outputs.logits.shape[-1]
        )
        teacher_outputs = teacher_outputs._replace(logits=np.asarray(full))
    given = TermInputs(batch, student_outputs, teacher_outputs, jnp.ones((), bool))
    findings = [
        _spared(finding, exempt.get("inputs", ()))
        for finding in examine("inputs", _audit_inputs.CHECKS, given)
    ]
    if not Report(tuple(findings)).passed:
        return Report(tuple(findings))
    size = len(student_outputs.logits)
    objective, batch = _for_examples(objective, jax.tree.map(jnp.asarray, dict(batch)), size)
    mask = counted(mask_of(batch, size))
    inputs = TermInputs(
        batch, cast(student_outputs, np.float32), cast(teacher_outputs, np.float32), mask
    )
    variables = objective.init(jax.random.key(0) if key is None else key, inputs)
    for name in sorted(variables.params):
        probe = of_objective(name, objective, variables, inputs)
        findings += _findings_of(probe, exempt.get(name, ()))
    return Report(tuple(findings))


def _for_examples(objective: Objective, batch: Batch, size: int) -> tuple[Objective, Batch]:
    """Keep what is one for the whole batch, such as a scalar, from checks that change examples."""
    whole = {name: x for name, x in batch.items() if getattr(x, "shape", (size,))[:1] != (size,)}

    def seen(inputs: TermInputs) -> TermInputs:
        return inputs._replace(batch={**inputs.batch, **whole})

    def init(key: Array, inputs: TermInputs) -> Variables:
        return objective.init(key, seen(inputs))

    def apply(
        params: PyTree, state: PyTree, inputs: TermInputs, **keywords: Any
    ) -> tuple[Array, PyTree, Metrics]:
        return objective.apply(params, state, seen(inputs), **keywords)

    rest = {name: x for name, x in batch.items() if name not in whole}
    return Objective(init, apply, objective.couples_batch), rest


def _findings_of(probe: Probe, exempt: Collection[str]) -> list[Finding]:
    first = examine(probe.name, {"finite": _audit_checks.finite}, probe)
    # Nothing more can be said of a nan.
    checks = {} if first[0].passed is False else CHECKS
    return [_spared(f, exempt) for f in (*first, *examine(probe.name, checks, probe))]


def _spared(finding: Finding, exempt: Collection[str]) -> Finding:
    if finding.passed is False and finding.check in exempt:
        return finding._replace(passed=None, detail=f"exempt; {finding.detail}")
    return finding


def _checked(exempt: Mapping[str, Collection[str]]) -> Mapping[str, Collection[str]]:
    known = ["finite", *CHECKS, *_audit_inputs.CHECKS]
    for name, checks in exempt.items():
        unknown = [check for check in checks if check not in known]
        if unknown:
            raise ValueError(
                f"audit: exempt has {unknown} for {name!r}, expected checks out of {known}"
            )
    return exempt
