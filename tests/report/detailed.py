"""Reports with details, made from arrays, for the tests of the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crosscheck.details.spread import Values, examine
from crosscheck.results import Details, Report, SiteDetail, SiteResult, WeightPair
from tests.report import samples

SHAPE = (2, 128, 64)


def detail(site: SiteResult, *, everywhere: bool = False) -> SiteDetail:
    """Of values that differ at the last index of axis 1, or everywhere and nowhere alike."""
    random = np.random.default_rng(5)
    truth = random.standard_normal(SHAPE)
    reference = truth.astype(np.float32)
    candidate = reference.copy()
    candidate[:, -1] += 1e-3
    if everywhere:
        candidate += 1e-3 * random.standard_normal(SHAPE).astype(np.float32)
    top = replace(samples.metrics(1.0), max_abs=1e-3)
    return examine(replace(site, metrics=top), Values(reference, candidate, truth))


def looked_into(report: Report, count: int = 3) -> Report:
    """``report`` with details of those that do not agree, ``count`` at most, and a weight map."""
    chosen = [s for s in report.sites if s.verdict != "agree"][:count] or [report.sites[0]]
    pairs = [WeightPair(f"{s.candidate}/kernel", f"{s.reference}.weight", "transpose", (64, 64))
             for s in report.sites[:4]]  # fmt: skip
    details = Details(
        sites=tuple(detail(s) for s in chosen),
        weights=tuple(pairs),
        command="crosscheck run models/gpt --candidate keras --seed 7",
    )
    return replace(report, details=details)
