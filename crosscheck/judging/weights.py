"""Stage 7 for parameters: is what the candidate holds what the reference holds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crosscheck.compare import Two, compare_two
from crosscheck.comparisons import Item
from crosscheck.judging.judge import QUANTISED, exact, in_reference_layout, site_result
from crosscheck.judging.noise import Floor, Judgement, judge, unit_roundoff
from crosscheck.judging.quantised import SHARE
from crosscheck.results import SiteResult

__all__ = ["judge_weights"]


def judge_weights(
    cases: Sequence[tuple[Item, np.ndarray, np.ndarray]],
    steps: Mapping[str, float] | None = None,
) -> list[SiteResult]:
    """Parameters against their counterparts: equal up to the cast between their dtypes, or, if one
    is quantised, up to half a step.

    Args:
        cases: (item, the reference's value, the candidate's).
        steps: of quantised parameters, by the candidate's name.
    """
    values = [in_reference_layout(item, raw, truth) for item, truth, raw in cases]
    pairs = [
        (value, truth)
        for value, (_, truth, _) in zip(values, cases, strict=True)
        if value is not None
    ]
    seen = dict(zip((id(v) for v, _ in pairs), compare_two(pairs), strict=True))
    found = []
    for (item, truth, raw), value in zip(cases, values, strict=True):
        if id(value) in seen:
            step = (steps or {}).get(item.candidate, 0.0)
            found.append(_judged_weight(item, truth, raw, seen[id(value)], step))
        else:
            judgement = None if value is None else exact(value, truth)
            found.append(site_result(item, truth, raw, value, judgement))
    return found


def _judged_weight(
    item: Item, truth: np.ndarray, raw: np.ndarray, seen: Two, step: float
) -> SiteResult:
    unit = unit_roundoff(raw.dtype, truth.dtype)
    error, metrics = seen.between, seen.metrics
    equal = raw.dtype == truth.dtype and error.maximum == 0.0 and not metrics.nonfinite
    if equal and not step:
        return site_result(item, truth, raw, None, Judgement(unit, 0.0, "agree"), metrics)
    floor = Floor(unit=unit, tiny=max(SHARE * step, Floor.tiny))
    same = replace(error, l2=0.0, maximum=0.0)
    notes = (QUANTISED.format(step),) if step else ()
    return site_result(item, truth, raw, None, judge(error, same, floor), metrics, notes=notes)
