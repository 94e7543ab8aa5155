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
        several = (
            dict.fromkeys(map(owner, (edge.reference, *edge.also_reference))),
            dict.fromkeys(map(owner, (edge.candidate, *edge.also_candidate))),
        )
        made = [
            [run.values.get(("activation", layer)) for layer in layers]
            for run, layers in zip(self._runs, several, strict=True)
        ]
        ours, theirs = ([v for v in side if v is not None and is_float(v)] for side in made)
        if (len(ours), len(theirs)) != (len(several[0]), len(several[1])):
            return False
        if len(ours) == len(theirs):
            return len(ours) == 1 and bool(cut_of(theirs[0], ours[0], SAME_VALUE))
        unit = coarser_unit(*(dtype_name(v.dtype) for v in (ours[0], theirs[0])))
        a, b = _sorted(ours), _sorted(theirs)
        if a.shape != b.shape:
            return False
        return bool(np.linalg.norm(a - b) <= min(NOTICED * unit, SAME_VALUE) * np.linalg.norm(a))


def _sorted(values: Iterable[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.asarray(v, np.float64).ravel() for v in values]))
