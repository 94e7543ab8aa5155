"""Part of stage 7, judge: pairs of sites whose values are one quantity, and whose cotangents two.

A cotangent belongs to a variable, not to what it holds. One side drops out in each branch, the
other once for both; one keeps the last step beside the sequence that it is cut from. While nothing
is dropped, such layers return the same, but the uses of the value are spread otherwise: more hangs
on one of the two. Forcing the cotangent of the one onto the other then makes everything behind it
wrong.

So where one of the two values is one that its side holds elsewhere too, or a slice of what the
layer was given (else there is but one variable that a cotangent can belong to), it is asked whether
the cotangents are two things. They are

- if every gradient of the free runs agrees, far more closely than the cotangents of the pair do:
  nothing is forced there, and however the uses are spread, the same comes back to parameters and
  inputs;
- if all that comes back to the value, wherever a side holds it, agrees in a forced run, and what
  comes back to the pair does not. A mistake behind it is not looked away from: it is compared, with
  the pair's own cotangent passed on;
- if the candidate, forced again with its own cotangent at the pair, becomes right behind it, where
  it was wrong, and nothing becomes wrong. A mistake would reach what lies behind, now that nothing
  mends it. (This is for where something else is wrong as well.)

Such a pair is compared forward only. Recorded runs are free, so that their judgements say so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from crosscheck.aligning.fingerprints import PreparedTrace, is_slice, repeating
from crosscheck.aligning.layout import Two, relative_error, relative_errors
from crosscheck.compare import compare_each
from crosscheck.comparisons import Item, SiteItems, value_of
from crosscheck.judging.evidence import Evidence
from crosscheck.observers import Forcer, Recorder
from crosscheck.results import SiteResult
from crosscheck.trace import Trace, owner

P = TypeVar("P", Item, SiteResult)

__all__ = ["used_otherwise", "used_otherwise_as_recorded"]

AGREES = 1e-3
"""Relative 2-norm up to which a gradient of the free runs agrees where a cotangent is off by 1 or
more; where it is off by less, so much less."""
TOGETHER = 1e-5
"""The same for sums of cotangents in a forced run, where rounding has not grown."""
FAINT = 1e-3
"""The error of a gradient is relative to its own norm, or to so much of the largest one's: of a
gradient that is zero but for rounding (a bias before a norm) nothing is known."""
CLEARLY = 0.01
"""Relative 2-norm from which on two cotangents are two things, and not one that is off."""
MOST_TRIED = 3
"""Pairs for each of which the candidate is run again, the first ones of the backward pass."""
FOUND = ("value", "anchor", "order")
"""How pairs were found that may be two variables; others are said to be one."""


def used_otherwise(results: Mapping[Item, SiteResult], e: Evidence) -> frozenset[str]:
    """The reference's sites of the pairs that are to be compared forward only."""
    asked = {
        item: result.metrics.rel_l2
        for item, result in results.items()
        if item.kind == "cotangent"
        and item.by in FOUND
        and result.verdict != "agree"
        and result.metrics is not None
    }
    if not asked or not e.free_reference.values:
        return frozenset()
    holders = _Several(e.free_reference, e.free_candidate)
    several = holders.of(asked)
    largest = _largest_gradient_error(results, e) if several else None
    if largest is None:
        return frozenset()
    found = [i for i in several if largest <= AGREES * min(asked[i], 1.0)]
    if several and not found:
        together = _together(several, holders, e)
        found = [i for i, error in together.items() if error <= TOGETHER * min(asked[i], 1.0)]
    found = found or [i for i in several[:MOST_TRIED] if _is_mended_without(i, results, e)]
    return frozenset(item.reference for item in found)


def _together(items: Sequence[Item], holders: _Several, e: Evidence) -> dict[Item, float]:
    """The relative error of all that comes back to the value of a pair: of the sum over the layers
    that made it, in a run that is forced everywhere but where the value is held. Without those of
    which a layer has no cotangent that could be added."""
    held = [(holders.held(0, i.reference), holders.held(1, i.candidate)) for i in items]
    apart = {
        p.reference
        for p in e.alignment.pairs
        if any(p.reference in ours or p.candidate in theirs for ours, theirs in held)
    }
    alignment = e.alignment.forward_only(apart)
    forcer = Forcer(alignment.forced_on_candidate(e.free_reference))
    run = e.candidate.record(forcer, recorder=Recorder(frozenset({"cotangent"})))
    errors = {}
    for item in items:
        ours = _sum(e.free_reference, holders.makers(0, item.reference))
        theirs = _sum(run, holders.makers(1, item.candidate))
        made = None if theirs is None or item.layout is None else item.layout.to_reference(theirs)
        if ours is not None and made is not None:
            errors[item] = relative_error(made, ours) if made.shape == ours.shape else math.inf
    return errors


def _sum(run: Trace, sites: Iterable[str]) -> np.ndarray | None:
    """Of the cotangents at some sites, in double precision; None if one is missing or unlike."""
    total: np.ndarray | None = None
    for site in sites:
        value = run.values.get(("cotangent", site))
        if value is None or (total is not None and total.shape != value.shape):
            return None
        total = value.astype(np.result_type(value, np.float64)) + (0 if total is None else total)
    return total


def _is_mended_without(item: Item, results: Mapping[Item, SiteResult], e: Evidence) -> bool:
    """Whether what comes back behind a pair is right where the pair's own cotangent is not forced,
    was wrong where it was, and nothing is worse."""
    alignment = e.alignment.forward_only({item.reference})
    forcer = Forcer(alignment.forced_on_candidate(e.free_reference))
    cotangents = Recorder(frozenset({"cotangent", "input_cotangent"}))
    run = e.candidate.record(forcer, recorder=cotangents)
    others = SiteItems(alignment, e.free_reference).shown_by(run, backward=True)[0]
    others += e.gradient_items(run)[0]
    before, pairs = [], []
    for other in others:
        seen = results[other].metrics if other in results else None
        both = _both(other, e.free_reference, run)
        if other.phase in ("backward", "parameter_gradient") and seen is not None and both:
            before.append(seen.rel_l2)
            pairs.append(both)
    change = list(zip(before, relative_errors(pairs), strict=True))
    worse = any(now > AGREES and now > 10 * then for then, now in change)
    return not worse and any(then > CLEARLY and now < AGREES * then for then, now in change)


def used_otherwise_as_recorded(
    results: Sequence[SiteResult], reference: Trace, candidate: Trace
) -> frozenset[str]:
    """The same of the results of two runs of which neither was forced."""
    inputs = {*reference.info.inputs}
    asked = [
        r
        for r in results
        if r.kind == "cotangent" and r.verdict != "agree" and r.aligned_by in FOUND
    ]
    back = [
        r
        for r in results
        if r.phase == "parameter_gradient" or (r.kind == "cotangent" and r.reference in inputs)
    ]
    if not asked or not back or any(r.verdict != "agree" for r in back):
        return frozenset()
    clearly = [r for r in asked if r.metrics is not None and r.metrics.rel_l2 >= CLEARLY]
    return frozenset(r.reference for r in _Several(reference, candidate).of(clearly))


def _largest_gradient_error(items: Iterable[Item], e: Evidence) -> float | None:
    """Of all that comes back to parameters and inputs in the free runs; None where that is nothing,
    or cannot be compared."""
    inputs = e.free_reference.info.inputs
    pairs = []
    for item in items:
        back = item.kind == "cotangent" and item.reference in inputs
        if item.phase == "parameter_gradient" or back:
            both = _both(item, e.free_reference, e.free_candidate)
            if both is None:
                return None
            pairs.append(both)
    found = compare_each(pairs)
    most = max((d.truth_l2 for d in found), default=0.0)
    if most == 0.0 or any(d.mismatch for d in found):
        return None
    return max(d.l2 / max(d.truth_l2, FAINT * most) for d in found)


def _both(item: Item, reference: Trace, candidate: Trace) -> Two | None:
    """The candidate's value of an item in the reference's layout, and the reference's."""
    ours = value_of(item, reference, side="reference")
    theirs = value_of(item, candidate, side="candidate")
    made = None if theirs is None or item.layout is None else item.layout.to_reference(theirs)
    return None if ours is None or made is None or made.shape != ours.shape else (made, ours)


class _Several:
    """Tells pairs of which either side holds the value more than once."""

    def __init__(self, reference: Trace, candidate: Trace) -> None:
        self._sides = [PreparedTrace.of(trace) for trace in (reference, candidate)]
        self._alike = [_by_print(side) for side in self._sides]

    def of(self, pairs: Iterable[P]) -> list[P]:
        return [p for p in pairs if self._is_held(0, p.reference) or self._is_held(1, p.candidate)]

    def makers(self, number: int, site: str) -> list[str]:
        """Where a side holds the value of a site, other than in what encloses such a place, and
        where it only goes through."""
        side, held = self._sides[number], self.held(number, site)
        enclosing = frozenset[str]().union(*(side.ancestors(one) for one in held))
        sources = side.trace.info.sources
        return [
            one
            for one in held
            if one not in enclosing
            and not any(sources.get(s) in held for s in side.trace.inputs_of(owner(one)))
        ]

    def held(self, number: int, site: str) -> set[str]:
        """Where a side holds the value of a site, with the site."""
        side = self._sides[number]
        alike = self._alike[number][side.prints_of([site])[0].tobytes()]
        return {site, *repeating(side, site, alike)}

    def _is_held(self, number: int, site: str) -> bool:
        side = self._sides[number]
        given = (side.trace.values["input", s] for s in side.trace.inputs_of(owner(site)))
        return len(self.held(number, site)) > 1 or any(
            is_slice(side.value(site), whole) for whole in given
        )


def _by_print(side: PreparedTrace) -> dict[bytes, list[str]]:
    """The sites within a model by the fingerprints of their values."""
    ends = {*side.trace.info.inputs, *side.trace.info.outputs}
    sites = [site for site in side.order if site not in ends]
    found: defaultdict[bytes, list[str]] = defaultdict(list)
    for site, one in zip(sites, side.prints_of(sites), strict=True):
        found[one.tobytes()].append(site)
    return found
