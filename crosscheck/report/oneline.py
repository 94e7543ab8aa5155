"""Stage 10, report: the whole finding in one line, for a test's summary or a table."""

from __future__ import annotations

import math

from crosscheck.report import headline, words
from crosscheck.report.words import Page, Unit
from crosscheck.results import Cause, Divergence, Report

__all__ = ["cause_text", "summary"]

_WIDE = 10_000  # characters: whoever shows the line cuts it, names stay whole


def summary(report: Report) -> str:
    """``diverge: first at `norm` (3168 x the rounding floor): eps 1e-06 instead of 1e-05``."""
    page = Page(width=_WIDE, unit=Unit.of(report))
    first = report.first_divergence
    if first is None:
        return headline.verdict_sentence(report, page)
    cause = cause_text(first.causes[0], page) if first.causes else ""
    line = f"{report.verdict}: first {_place(report, first, page)}{_size(first, page)}"
    return f"{line}: {cause}" if cause else line


def cause_text(cause: Cause, page: Page) -> str:
    """A cause as far as it is known; one that reproducing did not confirm is no more than that."""
    statement = page.prose(cause.statement)
    return statement if cause.verified else f"consistent with: {statement}"


def _place(report: Report, first: Divergence, page: Page) -> str:
    row = words.row_of(report, first)
    if first.phase != "forward":
        return f"in {words.blamed(first, page, row=row)}"
    name = page.name(first.site)
    return f"in the input of {name}" if row is not None and row.kind == "input" else f"at {name}"


def _size(first: Divergence, page: Page) -> str:
    if not math.isfinite(first.ratio):
        return ""
    return f" ({words.ratio_text(first.ratio)} x {page.unit.name})"
