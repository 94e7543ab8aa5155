"""Part of stage 8, locate: what two layers were given, where that is not compared as a value."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crosscheck.aligning.alignment import Alignment, Edge
from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import cut_of
from crosscheck.aligning.unlike import handed_on
from crosscheck.arrays import is_float
from crosscheck.results import SiteResult
from crosscheck.trace import Trace, owner

__all__ = ["Given", "slots_of"]


@dataclass(frozen=True)
class Given:
    """What the layers of a result were given, in runs that are given the same."""

    alignment: Alignment
    reference: Trace
    candidate: Trace

    def is_something_else(self, result: SiteResult) -> bool:
        """Whether two layers, without layers in them, have inputs of which none are compared,
        none are alike and the candidate's are made by the code around it, though once they
        returned the same: what they return now says nothing about them."""
        ours, theirs = owner(result.reference), owner(result.candidate)
        if result.aligned_by != "value" or result.metrics is None:
            return False
        slots = self._slots(result)
        if result.metrics.rel_l2 <= SAME_VALUE or not self._are_unseen(slots):
            return False
        if None not in [self.candidate.info.sources.get(slot) for slot in slots[1]]:
            return False
        calls = (*self.reference.info.parents.items(), *self.candidate.info.parents.items())
        if any(home in (ours, theirs) for _, home in calls):
            return False
        return not any(_are_alike(r, c) for r, c in itertools.product(*self._values(slots)))

    def is_unseen(self, result: SiteResult) -> bool:
        """Whether two layers have inputs of which none are compared, nor is what made one of the
        candidate's: code around it, or a layer without partner."""
        slots = self._slots(result)
        made = (self.candidate.info.sources.get(slot) for slot in slots[1])
        return self._are_unseen(slots) and any(s is None or s not in self._aligned for s in made)

    def handed_on(self, result: SiteResult) -> tuple[str | None, str | None]:
        """Of two layers of which one returns what it is given (a dropout that is off) and the other
        one does not: that input, of the reference or of the candidate. The code before it does what
        the other layer does, unless what both were given is compared: that layer is wrong then."""
        ours = handed_on(self.reference, result.reference)
        theirs = handed_on(self.candidate, result.candidate)
        if (ours is None) == (theirs is None) or ours in self._compared[0]:
            return None, None
        return (None, None) if theirs in self._compared[1] else (ours, theirs)

    def is_padded(self, result: SiteResult) -> bool | None:
        """Whether one of two layers was given what the other one was with a border around it, each
        a single value; None where neither has a shape that lies within the other."""
        ours, theirs = self._values(self._slots(result))
        if (len(ours), len(theirs)) != (1, 1) or not (is_float(ours[0]) and is_float(theirs[0])):
            return None
        return cut_of(theirs[0], ours[0], SAME_VALUE)

    @cached_property
    def _compared(self) -> tuple[frozenset[str], frozenset[str]]:
        slots = slots_of(self.alignment.edges)
        return slots["reference"], slots["candidate"]

    @cached_property
    def _aligned(self) -> frozenset[str]:
        return frozenset(pair.candidate for pair in self.alignment.pairs)

    def _slots(self, result: SiteResult) -> tuple[list[str], list[str]]:
        return (
            self.reference.inputs_of(owner(result.reference)),
            self.candidate.inputs_of(owner(result.candidate)),
        )

    def _values(
        self, slots: tuple[list[str], list[str]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return (
            [self.reference.values["input", slot] for slot in slots[0]],
            [self.candidate.values["input", slot] for slot in slots[1]],
        )

    def _are_unseen(self, slots: tuple[list[str], list[str]]) -> bool:
        return all(slots) and not any(map(frozenset.intersection, self._compared, slots))


def slots_of(edges: Iterable[Edge]) -> dict[str, frozenset[str]]:
    """The input slots of either side that these edges compare."""
    slots = [slot for edge in edges for slot in edge.slots()]
    return {
        "reference": frozenset(r for r, _ in slots),
        "candidate": frozenset(c for _, c in slots),
    }


def _are_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two values hold nearly the same numbers, in whatever layout."""
    if a.size != b.size or is_float(a) != is_float(b):
        return False
    left, right = (np.sort(v.astype(np.float64), None) for v in (a, b))
    return bool(np.allclose(left, right, rtol=1e-2, atol=1e-4, equal_nan=True))
