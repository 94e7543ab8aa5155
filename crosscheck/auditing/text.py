"""An audit as text: what failed first, then a line for every check."""

from __future__ import annotations

import textwrap

from crosscheck.auditing.results import AuditReport, Finding

__all__ = ["to_text"]

MARKS = {"wrong": "WRONG", "suspicious": "suspicious", "note": "note"}
WIDTH = 100


def to_text(report: AuditReport) -> str:
    """The report as plain text."""
    known = ("pass", "fail", "skipped", "error")
    counts = {s: sum(f.status == s for f in report.findings) for s in known}
    name = f" ({report.name})" if report.name else ""
    lines = [
        f"{report.verdict}{name}: {counts['pass']} checks pass, {counts['fail']} do not, "
        f"{counts['skipped']} skipped" + (f", {counts['error']} raised" if counts["error"] else "")
    ]
    order = {"wrong": 0, "suspicious": 1, "note": 2}
    for finding in sorted(
        (f for f in report.findings if f.failed), key=lambda f: order[f.severity]
    ):
        lines += ["", *_wrapped(f"{MARKS[finding.severity]}: {finding.check}", finding.statement)]
    lines.append("")
    width = max((len(f.check) for f in report.findings), default=0)
    for finding in report.findings:
        lines += _row(finding, width)
    return "\n".join(lines)


def _wrapped(title: str, text: str) -> list[str]:
    return [title, *textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")]


def _row(finding: Finding, width: int) -> list[str]:
    marks = {"pass": "ok", "skipped": "-", "error": "ERROR"}
    mark = marks.get(finding.status, MARKS[finding.severity])
    start = f"  {mark:10} {finding.check:{width}}  "
    text = finding.statement if finding.status != "fail" else "see above"
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [
        start.rstrip()
    ]
