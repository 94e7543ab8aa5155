"""Extreme inputs make honest code round badly: what only they show must outlast float64.

A check is strict with an error that is large and vanishes in float64, since it may be a lower
precision at work (TF32, a cast). Where the same site agrees on the inputs as given, it is not: that
would have shown there. What is left is a formula at the end of its range, such as 1 - tanh² of a
saturated unit, which two implementations round to different few digits.
"""

from __future__ import annotations

import math
from dataclasses import replace

from crosscheck.compare import Difference, compare
from crosscheck.comparisons import Item, gradient_items, site_items, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.judge import in_reference_layout, shrinks
from crosscheck.observers import Forcer
from crosscheck.results import Report, SiteResult, worst
from crosscheck.single import Outcome
from crosscheck.trace import Trace

__all__ = ["without_rounding"]

PHASES = ("forward", "backward", "parameter_gradient")
NOTE = "rounding: it vanishes in float64, and agrees on the inputs as given"
Key = tuple[str, str, str, str]


def without_rounding(outcome: Outcome, base: Report) -> Report:
    """The report of a probe, in which such rounding agrees.

    Args:
        base: the report on the inputs as given.
    """
    report, e = outcome.report, outcome.evidence
    agreed = {_key(s) for s in base.sites if s.verdict == "agree"}
    open_ = [
        s
        for s in report.sites
        if s.verdict != "agree" and s.phase in PHASES and math.isfinite(s.ratio)
        if s.metrics is not None and _key(s) in agreed
    ]
    if not open_ or e is None or outcome.oracle is None or e.tolerance is not None:
        return report
    excused = _vanishing(e, outcome.oracle, {_key(s) for s in open_})
    if not excused:
        return report
    sites = tuple(
        replace(s, verdict="agree", notes=(*s.notes, NOTE))
        if s.verdict != "agree" and _key(s) in excused
        else s
        for s in report.sites
    )
    gone = {(s.phase, name) for s in open_ if _key(s) in excused for name in _names(s)}
    left = tuple(d for d in report.divergences if (d.phase, d.site) not in gone)
    return replace(report, sites=sites, divergences=left, verdict=worst([s.verdict for s in sites]))


def _vanishing(e: Evidence, oracle: Trace, wanted: set[Key]) -> set[Key]:
    """The comparisons whose error is gone when the candidate runs in float64."""
    if not e.candidate.adapter.capabilities.float64:
        return set()
    forced = e.alignment.forced_on_candidate(e.free_reference)
    try:
        wide = e.candidate.record(Forcer(forced), float64=True)
    except SideFailed:
        return set()
    backward = e.reference.cotangents is not None
    items, _ = site_items(e.alignment, e.free_reference, e.forced, backward=backward)
    if backward:
        items += gradient_items(e.match, e.free_reference, e.forced)[0]
    found: set[Key] = set()
    for item in items:
        key = (item.phase, str(item.kind), item.reference, item.candidate)
        if key in wanted:
            errors = [_error(item, trace, oracle) for trace in (wide, e.forced)]
            if errors[0] is not None and errors[1] is not None and shrinks(errors[0], errors[1]):
                found.add(key)
    return found


def _error(item: Item, trace: Trace, oracle: Trace) -> Difference | None:
    truth = value_of(item, oracle, side="reference")
    raw = value_of(item, trace, side="candidate")
    if truth is None or raw is None:
        return None
    value = in_reference_layout(item, raw, truth)
    return None if value is None else compare(value, truth)


def _key(site: SiteResult) -> Key:
    return site.phase, site.kind, site.reference, site.candidate


def _names(site: SiteResult) -> tuple[str, str]:
    return site.reference, site.candidate
