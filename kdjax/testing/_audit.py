"""`audit`: an objective held against what it should satisfy, on the first batch of real data."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.testing import _findings
from kdjax.testing._probe import Probe, cast
from kdjax.types import Array, Batch, Objective, Outputs, TermInputs

CHECKS: Mapping[str, Callable[[Probe], _findings.Verdict]] = {
    "finite": _findings.finite,
    "zero at equality": _findings.zero_at_equality,
    "shift invariance": _findings.shift_invariance,
    "T^2 slope": _findings.temperature_scale,
    "mask neutrality": _findings.mask_neutrality,
    "accumulation": _findings.accumulation,
    "teacher gradient": _findings.teacher_gradient,
    "bfloat16": _findings.low_precision,
}


class Finding(NamedTuple):
    """What one check says of one term; `passed` is None where the check does not apply."""

    term: str
    check: str
    passed: bool | None
    detail: str

    @property
    def name(self) -> str:
        """Term and check in one."""
        return f"{self.term}: {self.check}"


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings; printed, it is a table."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return tuple(finding for finding in self.findings if finding.passed is False)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        marks = {True: "ok", False: "FAIL", None: "-"}
        rows = [("term", "check", "", "what was found")]
        rows += [(f.term, f.check, marks[f.passed], f.detail) for f in self.findings]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


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
        exempt: for the name of a term, the checks that it need not pass. Names that the objective
            does not have are passed over, so that one table can serve several objectives.

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
    batch = jax.tree.map(jnp.asarray, dict(batch))
    mask = batch.get("mask")
    if mask is None:
        mask = jnp.ones(jax.tree.leaves(batch)[0].shape[:1], bool)
    inputs = TermInputs(
        batch, cast(student_outputs, jnp.float32), cast(teacher_outputs, jnp.float32), mask
    )
    variables = objective.init(jax.random.key(0) if key is None else key, inputs)
    exempt = _checked(exempt or {})
    findings = []
    for name in sorted(variables.params):
        probe = Probe(objective, name, variables, inputs)
        findings += _findings_of(probe, exempt.get(name, ()))
    return Report(tuple(findings))


def _findings_of(probe: Probe, exempt: Collection[str]) -> list[Finding]:
    found: list[Finding] = []
    for check, fn in CHECKS.items():
        passed, detail = fn(probe)
        broken = passed is False
        if broken and check in exempt:
            passed, detail = None, f"exempt; {detail}"
        found.append(Finding(probe.name, check, passed, detail))
        if check == "finite" and broken:
            break  # nothing more can be said of a nan
    return found


def _checked(exempt: Mapping[str, Collection[str]]) -> Mapping[str, Collection[str]]:
    for name, checks in exempt.items():
        unknown = [check for check in checks if check not in CHECKS]
        if unknown:
            raise ValueError(
                f"audit: exempt has {unknown} for {name!r}, expected checks out of {list(CHECKS)}"
            )
    return exempt
