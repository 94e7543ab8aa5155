"""Part of stage 7, judge: does the free run depart by more than its parts add up to?

A model may agree stretch by stretch and depart as a whole, where one call leaves a state behind
that the next one reads. It may also depart because honest rounding adds up, or is magnified on the
way: an ill-conditioned layer in front is enough. To tell the two apart the reference runs freely in
float64 with the candidate's own local errors added, each at its site. What comes out is where an
honest candidate ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crosscheck.arrays import is_inexact, widest
from crosscheck.compare import compare
from crosscheck.comparisons import Item, value_of
from crosscheck.errors import SideFailed
from crosscheck.judging.evidence import Evidence
from crosscheck.judging.fill import errors
from crosscheck.judging.judge import Judge, in_reference_layout
from crosscheck.judging.noise import AGREE, DIVERGE
from crosscheck.judging.noise import judge as judge_errors
from crosscheck.memory import new_values
from crosscheck.observers import Key
from crosscheck.results import Divergence, SiteResult
from crosscheck.taps import Kind

__all__ = ["seen_only_free"]


def seen_only_free(
    e: Evidence,
    judge: Judge,
    results: Mapping[Item, SiteResult],
    divergences: Sequence[Divergence],
) -> list[str]:
    """An output that departs in the free run though nothing was introduced anywhere: say so."""
    if e.tolerance is not None or any(d.phase in ("weights", "forward") for d in divergences):
        return []
    forward = [i for i, r in results.items() if i.phase == "forward" and r.free_ratio is not None]
    for item in forward[-1:]:
        ratio = results[item].free_ratio
        if ratio is not None and ratio > DIVERGE and not _adds_up(e, judge, item, forward):
            return [
                f"`{item.candidate}` departs in the free run ({ratio:.3g} x its floor) though no "
                "stretch between aligned sites does: look for state that one call leaves for "
                "another"
            ]
    return []


def _adds_up(e: Evidence, judge: Judge, item: Item, forward: Sequence[Item]) -> bool:
    """Whether local errors, carried on by the reference, come to what the free run is off by."""
    reference = value_of(item, e.free_reference, side="reference")
    raw = value_of(item, e.free_candidate, side="candidate")
    if judge.free_oracle is None or not e.reference.adapter.capabilities.forcing:
        return False
    truth = value_of(item, judge.free_oracle, side="reference")
    value = None if reference is None else in_reference_layout(item, raw, reference)
    if reference is None or truth is None or value is None:
        return False
    try:
        carried = replace(e.reference, cotangents=None).record(
            _Added(_local_errors(e, judge, forward)), float64=True
        )
    except SideFailed:
        return False
    moved = value_of(item, carried, side="reference")
    if moved is None:
        return False
    response = compare(moved, truth)
    floor = judge.floor(item, value).with_perturbation(response.l2, response.maximum)
    return judge_errors(*errors(value, reference, truth), floor).ratio <= AGREE


def _local_errors(e: Evidence, judge: Judge, items: Sequence[Item]) -> Mapping[Key, np.ndarray]:
    """What the candidate, forced, was off by at each site."""
    found = new_values()
    for item in items:
        truth = None if e.whole_oracle is None else value_of(item, e.whole_oracle, side="reference")
        raw = value_of(item, e.forced, side="candidate")
        value = None if truth is None else in_reference_layout(item, raw, truth)
        if truth is None or value is None or not (is_inexact(truth) and is_inexact(value)):
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            error = value.astype(widest(truth)) - truth
        found[item.reference_key] = np.where(np.isfinite(error), error, 0.0)
    return found


class _Added:
    """An observer that adds to the values it has something for."""

    def __init__(self, errors: Mapping[Key, np.ndarray]) -> None:
        self._errors = errors

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> np.ndarray | None:
        error = self._errors.get((kind, site))
        return None if error is None or error.shape != value.shape else value + error
