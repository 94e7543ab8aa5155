"""Part of stage 7, judge: pairs of sites whose values are one quantity, and whose cotangents two.

A cotangent belongs to a variable, not to what it holds. One side drops out in each branch, the
other once for both; one keeps the last step beside the sequence that it is cut from. While nothing
is dropped, such layers return the same, but the uses of the value are spread otherwise: more hangs
on one of the two. Forcing the cotangent of the one onto the other then makes everything behind it
wrong.

The free runs tell it from a mistake. There nothing is forced, and however the uses are spread, what
comes back to the parameters and the inputs is the same. So a pair is compared forward only where

- its cotangents differ,
- one of its values is a value that its side holds elsewhere too, or a slice of what the layer was
  given (else there is but one variable that a cotangent can belong to), and
- every gradient of the free runs agrees, far more closely than those cotangents do.

Recorded runs are free, so that their judgements say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from crosscheck.aligning.fingerprints import PreparedTrace, is_slice, repeating
from crosscheck.compare import compare_each
from crosscheck.comparisons import Item, value_of
from crosscheck.judging.evidence import Evidence
from crosscheck.results import SiteResult
from crosscheck.trace import Trace, owner

__all__ = ["used_otherwise", "used_otherwise_as_recorded"]

AGREES = 1e-3
"""Relative 2-norm up to which a gradient of the free runs agrees where a cotangent is off by 1 or
more; where it is off by less, so much less."""
FAINT = 1e-3
"""The error of a gradient is relative to its own norm, or to so much of the largest one's: of a
gradient that is zero but for rounding (a bias before a norm) nothing is known."""
CLEARLY = 0.01
"""Relative 2-norm from which on two recorded cotangents are two things, and not one that is off."""
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
    largest = _largest_gradient_error(results, e)
    if largest is None:
        return frozenset()
    return frozenset(
        item.reference
        for item, error in asked.items()
        if largest <= AGREES * min(error, 1.0)
        and _is_one_of_several(item.reference, item.candidate, e.free_reference, e.free_candidate)
    )


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
    return frozenset(
        r.reference
        for r in asked
        if r.metrics is not None
        and r.metrics.rel_l2 >= CLEARLY
        and _is_one_of_several(r.reference, r.candidate, reference, candidate)
    )


def _largest_gradient_error(items: Iterable[Item], e: Evidence) -> float | None:
    """Of all that comes back to parameters and inputs in the free runs; None where that is nothing,
    or cannot be compared."""
    inputs = e.free_reference.info.inputs
    pairs = []
    for item in items:
        back = item.kind == "cotangent" and item.reference in inputs
        if item.phase != "parameter_gradient" and not back:
            continue
        ours = value_of(item, e.free_reference, side="reference")
        theirs = value_of(item, e.free_candidate, side="candidate")
        made = None if theirs is None or item.layout is None else item.layout.to_reference(theirs)
        if ours is None or made is None or made.shape != ours.shape:
            return None
        pairs.append((made, ours))
    found = compare_each(pairs)
    most = max((d.truth_l2 for d in found), default=0.0)
    if most == 0.0 or any(d.mismatch for d in found):
        return None
    return max(d.l2 / max(d.truth_l2, FAINT * most) for d in found)


def _is_one_of_several(r: str, c: str, reference: Trace, candidate: Trace) -> bool:
    """Whether either side holds the value of a pair more than once."""
    return _is_repeated(reference, r) or _is_repeated(candidate, c)


def _is_repeated(trace: Trace, site: str) -> bool:
    side = PreparedTrace.of(trace)
    ends = {*trace.info.inputs, *trace.info.outputs}
    if repeating(side, site, [other for other in side.order if other not in ends]):
        return True
    given = (trace.values["input", slot] for slot in trace.inputs_of(owner(site)))
    return any(is_slice(side.value(site), whole) for whole in given)
