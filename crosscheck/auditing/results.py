"""What an audit gives back: frozen, plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["AuditReport", "Finding", "Severity", "Status"]

Severity = Literal["wrong", "suspicious", "note"]
Status = Literal["pass", "fail", "skipped", "error"]


@dataclass(frozen=True)
class Finding:
    """One check of an audit.

    Attributes:
        check: its name, as in `crosscheck.checks` and in ``skip=``.
        status: ``pass``, ``fail``, ``skipped`` (nothing to look at here), ``error`` (the check
            raised: what it would have found is not known).
        severity: of a failure: ``wrong`` (a mistake), ``suspicious`` (usually one), ``note``.
        statement: a line: what is the matter, or what was looked at; why it was skipped.
        tensor: the site or parameter that it is about, ``""`` for none.
        number: the measurement behind the statement; None for none.
        seconds: that it took.
        details: further numbers, for pictures and JSON.
    """

    check: str
    status: Status
    severity: Severity
    statement: str
    tensor: str = ""
    number: float | None = None
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status == "fail"


@dataclass(frozen=True)
class AuditReport:
    """All checks of one implementation. ``print(report)`` shows them."""

    findings: tuple[Finding, ...]
    framework: str
    version: str
    name: str = ""
    seed: int = 0

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Failures that are mistakes."""
        return tuple(f for f in self.findings if f.failed and f.severity == "wrong")

    @property
    def suspicious(self) -> tuple[Finding, ...]:
        """Failures that usually are."""
        return tuple(f for f in self.findings if f.failed and f.severity == "suspicious")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Checks that raised."""
        return tuple(f for f in self.findings if f.status == "error")

    @property
    def verdict(self) -> str:
        """``"wrong"``, ``"incomplete"`` (a check raised), ``"suspicious"`` or ``"healthy"``: the
        worst, notes left out."""
        if self.wrong:
            return "wrong"
        if self.errors:
            return "incomplete"
        return "suspicious" if self.suspicious else "healthy"

    def raise_if_wrong(self, *, strict: bool = False) -> None:
        """Raise an AssertionError that lists what is wrong, and the checks that raised (``strict``:
        and what is suspicious)."""
        found = [*self.wrong, *self.errors, *(self.suspicious if strict else ())]
        if found:
            raise AssertionError("\n".join(f"{f.check}: {f.statement}" for f in found))

    def to_json(self) -> str:
        """The report as JSON, schema 1."""
        findings = [
            {
                "check": f.check,
                "status": f.status,
                "severity": f.severity,
                "statement": f.statement,
                "tensor": f.tensor,
                "number": f.number,
                "seconds": round(f.seconds, 4),
                "details": dict(f.details),
            }
            for f in self.findings
        ]
        whole = {
            "schema": 1,
            "verdict": self.verdict,
            "name": self.name,
            "seed": self.seed,
            "model": {"framework": self.framework, "version": self.version},
            "findings": findings,
        }
        return json.dumps(_strict(whole), indent=1, allow_nan=False)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON atomically."""
        from crosscheck.report.write import write_atomically

        write_atomically(path, self.to_json() + "\n")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained page with the histograms, atomically."""
        from crosscheck.auditing.html import render
        from crosscheck.report.html.pages import restyled
        from crosscheck.report.write import write_atomically

        write_atomically(path, restyled(render(self)))

    def __str__(self) -> str:
        from crosscheck.auditing.text import to_text

        return to_text(self)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no Inf: they are written as text."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
