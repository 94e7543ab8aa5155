"""Part of stage 7, judge: errors against the oracle, without what stands for minus infinity."""

from __future__ import annotations

import numpy as np

from crosscheck.compare import Difference, Differences, Threes, compare_three

__all__ = ["FILL", "errors", "errors_of", "without_fill"]

FILL, FILL_SHARE = 1e4, 1e-3
"""Masks are at least so large, and all that is not masked is a smaller share of them."""


def errors(
    value: np.ndarray, reference: np.ndarray, truth: np.ndarray
) -> tuple[Difference, Difference]:
    """The candidate's and the reference's error against the oracle.

    NaN and Inf must be where the reference has them. Usually the oracle has them there too, but
    what overflows in float32 (two attention masks, added up) may well be finite in float64.
    """
    found = errors_of(compare_three([(value, reference, truth)]))
    return found[0][0], found[1][0]


def errors_of(seen: Threes) -> tuple[Differences, Differences]:
    """`errors` of many values that have been compared; changes ``seen``."""
    for i in np.flatnonzero(seen.between.truth_max >= FILL).tolist():
        kept = without_fill(*seen.groups[i])
        if kept[0] is not seen.groups[i][0]:
            again = compare_three([kept])
            for one, other in ((seen.candidate, again.candidate), (seen.own, again.own)):
                one.table[i] = other.table[0]
            seen.between.mismatch[i] = again.between.mismatch[0]
    unlike = seen.own.mismatch > 0
    seen.candidate.mismatch[unlike] = seen.between.mismatch[unlike]
    return seen.candidate, seen.own


def without_fill(
    value: np.ndarray, reference: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three without what stands for minus infinity: huge, and the very same on both sides.

    Attention scores are masked with -1e9 or the lowest float. Beside such a number everything else
    is rounding; left in, it would hide any mistake in the scores.
    """
    size = np.abs(reference)
    largest = float(np.max(size, initial=0.0, where=np.isfinite(size)))
    if largest < FILL:
        return value, reference, truth
    fill = (size > FILL_SHARE * largest) & (value == reference)
    if not fill.any() or not (size[~fill] < FILL_SHARE * largest).all() or fill.all():
        return value, reference, truth
    return value[~fill], reference[~fill], truth[~fill]
