"""Part of stage 8, locate: layers that one side has in one piece and the other in several, so that
what they return are no sites of each other: query, key and value, projected apart or together.

What such a layer returns is not compared as a value. That it holds what the several return tells
that it is right, and that what is wrong behind it is not its doing. So does a part of what a single
one returns: a padded sequence that the code behind cuts on one side alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from crosscheck.aligning.alignment import Alignment, Edge
from crosscheck.aligning.distances import NOTICED
from crosscheck.aligning.fingerprints import SAME_VALUE
from crosscheck.aligning.layout import cut_of
from crosscheck.arrays import dtype_name, is_float
from crosscheck.judging.precision import coarser_unit
from crosscheck.taps import Kind
from crosscheck.trace import Trace, owner

__all__ = ["Parts"]


class Parts:
    """Which layers return in one piece what several return on the other side, or a part of it.

    Args:
        reference, candidate: runs in which both are given the same.
    """

    def __init__(self, alignment: Alignment, reference: Trace, candidate: Trace) -> None:
        self._runs = reference, candidate
        aligned = {(p.reference, p.candidate) for p in alignment.pairs}
        self._edges: dict[tuple[str, str], Edge] = {}
        for edge in alignment.edges:
            ends = edge.pair.reference, edge.pair.candidate
            if ends not in aligned:
                self._edges[ends] = edge
        self._known: dict[tuple[str, str], bool] = {}

    def of(self, reference: str, candidate: str) -> tuple[list[str], list[str]]:
        """The layers of either side that do together what the two are parts of."""
        edge = self._edges[reference, candidate]
        ours = map(owner, (edge.reference, *edge.also_reference))
        theirs = map(owner, (edge.candidate, *edge.also_candidate))
        return list(dict.fromkeys(ours)), list(dict.fromkeys(theirs))

    def are_sent_the_same(self, reference: str, candidate: str) -> bool:
        """Whether the cotangents that arrive at them hold the same numbers on both sides."""
        ours, theirs = self._values(self._edges[reference, candidate], "cotangent")
        return len(ours) != len(theirs) and _hold_the_same(ours, theirs)

    def are_right(self, reference: str, candidate: str) -> bool:
        """Whether one of two layers returns, in whatever order, the numbers of the other one and of
        those that are given the same beside it; or a part of what the other one returns."""
        ends = reference, candidate
        if ends not in self._edges:
            return False
        if ends not in self._known:
            self._known[ends] = self._agree(self._edges[ends])
        return self._known[ends]

    def _agree(self, edge: Edge) -> bool:
        ours, theirs = self._values(edge, "activation")
        if len(ours) == len(theirs):
            return len(ours) == 1 and bool(cut_of(theirs[0], ours[0], SAME_VALUE))
        return _hold_the_same(ours, theirs)

    def _values(self, edge: Edge, kind: Kind) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The values of a kind at the layers of either side; none where one has none."""
        several = self.of(edge.pair.reference, edge.pair.candidate)
        made = [
            [run.values.get((kind, layer)) for layer in layers]
            for run, layers in zip(self._runs, several, strict=True)
        ]
        ours, theirs = ([v for v in side if v is not None and is_float(v)] for side in made)
        if (len(ours), len(theirs)) != (len(several[0]), len(several[1])):
            return [], []
        return ours, theirs


def _hold_the_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """Whether several arrays hold the numbers of several others, in whatever order."""
    if not ours or not theirs:
        return False
    unit = coarser_unit(*(dtype_name(v.dtype) for v in (ours[0], theirs[0])))
    a, b = _sorted(ours), _sorted(theirs)
    if a.shape != b.shape:
        return False
    return bool(np.linalg.norm(a - b) <= min(NOTICED * unit, SAME_VALUE) * np.linalg.norm(a))


def _sorted(values: Iterable[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.asarray(v, np.float64).ravel() for v in values]))
