"""The page of a suite: its jobs with what was found, and the way to each report. Renders only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from crosscheck.report.html.pages import page
from crosscheck.report.words import Page
from crosscheck.suite.classify import gibibytes
from crosscheck.suite.jobs import FAILED, JobResult, Status, SuiteResult
from crosscheck.suite.summary import closing_line, counts, evidence

__all__ = ["NAME", "render"]

NAME = "index.html"
"""Of the page, in the folder of the reports."""
_PAPER = Page(width=100)


def render(result: SuiteResult) -> str:
    """An HTML document; its links lead to the reports beside it."""
    bad = [r for r in result.results if r.status not in ("agree", "skipped")]
    return page(
        "suite.html",
        badge=_badge(result),
        counts=counts(result),
        closing=closing_line(result).partition("; ")[2],
        groups=[
            *_group("look at these", bad, is_open=True),
            *_group("agree", (r for r in result.results if r.status == "agree"), is_open=not bad),
            *_group("skipped", (r for r in result.results if r.status == "skipped")),
        ],
        not_run=[_PAPER.clean(job.id) for job in result.not_run],
        environment=[(k, _PAPER.prose(_shown(v))) for k, v in result.environment.items()],
    )


def _badge(result: SuiteResult) -> tuple[str, str]:
    """Class and word of what the whole suite comes to."""
    if result.interrupted:
        return "failed", "interrupted"
    if result.exit_status == 0:
        return "agree", "agree"
    if result.exit_status == 1:
        worst = "diverge" if result.count("diverge") else "suspect"
        return worst, worst
    return "failed", "failed" if result.results else "nothing was run"


def _group(title: str, some: Iterable[JobResult], *, is_open: bool = False) -> list[dict[str, Any]]:
    rows = [_row(r) for r in some]
    return [{"title": title, "rows": rows, "open": is_open}] if rows else []


def _row(r: JobResult) -> dict[str, Any]:
    ratio = "" if r.largest_ratio is None else f"{r.largest_ratio:.2g}"
    return {
        "job": _PAPER.clean(r.job.id),
        "report": quote(r.html.rpartition("/")[2]) if r.html else "",
        "status": r.status,
        "tone": _tone(r.status),
        "ratio": ratio,
        "seconds": f"{r.seconds:.1f} s" + (" (kept)" if r.resumed else ""),
        "memory": gibibytes(r.peak_memory_bytes),
        "found": _PAPER.prose(evidence(r) if r.status == "agree" else r.message),
        "details": [] if r.status == "agree" else [_PAPER.prose(line) for line in r.details],
        "output": "\n".join(_PAPER.clean(line) for line in r.output.strip("\n").splitlines()),
        "again": _PAPER.clean(r.job.command),
    }


def _tone(status: Status) -> str:
    return "failed" if status in FAILED else status


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)
