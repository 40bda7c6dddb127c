"""What `check_loss`, `check_term` and `audit` share: laws, and what was found of each."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Verdict = tuple[bool | None, str]
"""Whether a check passed (None: it does not apply), and why."""

Check = Callable[[Any], Verdict | None]
"""Looks at a loss or a term; it returns a verdict, or raises an AssertionError where it fails."""


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


def examine(subject: str, checks: Mapping[str, Check], looked_at: Any) -> list[Finding]:
    """Run checks, each to its end, and return what each of them found.

    Args:
        subject: the name of what is looked at.
        checks: by the law that each of them holds.
        looked_at: what every check is called with.
    """
    return [Finding(subject, law, *_verdict(check, looked_at)) for law, check in checks.items()]


def by_law(checks: Iterable[Check]) -> dict[str, Check]:
    """Name checks by the first line of their text."""
    texts = ((getattr(check, "func", check).__doc__ or "", check) for check in checks)
    return {text.split("\n")[0].rstrip("."): check for text, check in texts}


def raise_failures(subject: str, findings: Iterable[Finding]) -> None:
    """Raise an AssertionError that names every law that is broken, if one is."""
    report = Report(tuple(findings))
    if not report.passed:
        head = f"{subject} fails {len(report.failures)} of {len(report.findings)} checks"
        lines = [f"- {finding.check}: {finding.detail}" for finding in report.failures]
        raise AssertionError("\n".join([head, *lines]))


def _verdict(check: Check, looked_at: Any) -> Verdict:
    try:
        return check(looked_at) or (True, "")
    except AssertionError as error:
        return False, " ".join(str(error).split())
    except Exception as error:
        return False, f"raised {type(error).__name__}: {error}"
