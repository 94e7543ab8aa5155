"""Part of stage 5, align: how far the values of a run are from the reference's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import Layout, Two, relative_errors
from crosscheck.arrays import is_float
from crosscheck.judging.noise import unit_roundoff
from crosscheck.taps import Kind
from crosscheck.trace import Trace

__all__ = ["NOTICED", "Asked", "Distances", "noticed", "rounding_between"]

ROUNDINGS = 4.0
"""Unit roundoffs of a coarse type that two honest values may be apart, relatively."""
COARSEST = 2.0**-8
"""Unit roundoff of bfloat16: in coarser types, unrelated values would pass for the same."""
NOTICED = 100.0
"""Unit roundoffs from which on a difference at the end of a stretch is looked into where nothing
differs by more: a defect may fade (behind a large residual) until its values pass for the same."""

Asked = tuple[Kind, str, str, Layout]
"""Kind of value, reference site, candidate site, and the layout between them."""


class Distances:
    """Relative errors of the values of one run, each computed once.

    What is going to be asked for is better named `ahead`: thousands of small values are compared
    in one call.
    """

    def __init__(self, reference: Trace, run: Trace) -> None:
        self.run = run
        self._truths = reference.values
        self._known: dict[Asked, float] = {}

    def of(self, kind: Kind, reference: str, candidate: str, layout: Layout) -> float:
        """‖value − truth‖ / ‖truth‖ (`layout.relative_error`); inf without a value."""
        asked = kind, reference, candidate, layout
        if asked not in self._known:
            self.ahead([asked])
        return self._known[asked]

    def ahead(self, asked: Iterable[Asked]) -> None:
        """Compute what is not known yet."""
        new = [one for one in dict.fromkeys(asked) if one not in self._known]
        there = [one for one in new if (one[0], one[2]) in self.run.values]
        self._known |= dict.fromkeys(new, math.inf)
        self._known |= zip(there, relative_errors(self._values(there)), strict=True)

    def _values(self, asked: Iterable[Asked]) -> Iterator[Two]:
        for kind, r, c, layout in asked:
            yield layout.to_reference(self.run.values[kind, c]), self._truths[kind, r]


def rounding_between(*runs: Trace) -> float:
    """The relative error that rounding may leave between values of some runs, by the coarsest type
    that any of them shows. (Under autocast a norm returns float32, made of what a product has
    rounded.)"""
    types = {v.dtype for run in runs for v in run.activations().values() if is_float(v)}
    return ROUNDINGS * min(unit_roundoff(*types), COARSEST)


def noticed(same: float, *values: np.ndarray) -> float:
    """The relative error from which on values differ by more than `NOTICED` unit roundoffs, at most
    ``same`` (see `Pairing`); in coarse types that is all that can be noticed."""
    floats = [value.dtype for value in values if is_float(value)]
    coarse = same > SAME_VALUE
    return min(NOTICED * unit_roundoff(*floats), same) if floats and not coarse else same
