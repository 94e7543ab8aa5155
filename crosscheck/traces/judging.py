"""Part of stage 7, judge: the noise floor where one side is a recorded run.

No oracle can be run any more. What the recorder measured takes its place: the error e of each value
against the same run in float64, accumulated from the inputs on,

    η = max( e, max(½√n, 1)·u·‖y_r‖ ) .

A candidate that is forced onto the recorded values has only its own stretches to answer for. If
those are the recorder's, from each site to the next, e is the error of the stretch by itself.

Where it measured nothing (a foreign program, a model that does not run in float64), the rounding of
a value is reckoned from the lengths of all sums behind it, in quadrature along the run:

    n = Σ max(nᵢ, 4) over the values i up to and with this one,  η = ½√n·u·‖y_r‖ .

The candidate is measured against the reference's own value, whose error is part of the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from crosscheck.aligning.fingerprints import PreparedTrace, repeating
from crosscheck.arrays import is_inexact
from crosscheck.comparisons import Item, value_of
from crosscheck.judging.judge import Arrays, Judge, in_reference_layout
from crosscheck.judging.noise import Terms
from crosscheck.taps import COTANGENT_OF
from crosscheck.traces.recorded import RecordedTrace
from crosscheck.traces.rounding import item_key

__all__ = ["TraceJudge"]

MEASURED = "floor from the rounding that was recorded with the reference's trace"
RECKONED = "floor from the lengths of the sums up to here: the trace holds no measured rounding"


@dataclass
class TraceJudge(Judge):
    """Judges against a reference that is a `RecordedTrace`.

    Attributes:
        forced: whether the candidate is forced onto the recorded values.
    """

    reference: RecordedTrace
    forced: bool = False
    _lengths: dict[tuple[str, str], float] = field(default_factory=dict, init=False)
    _dense: bool | None = field(default=None, init=False)

    def _notes(self, item: Item, reference: np.ndarray) -> tuple[str, ...]:
        """Where the floor comes from."""
        if not is_inexact(reference) or self.tolerance is not None:
            return ()
        return (MEASURED if self._is_measured(item) else RECKONED,)

    def _terms(
        self, item: Item, value: np.ndarray, reference: np.ndarray, *, free: bool = False
    ) -> Terms:
        """Measured when the reference was recorded, else reckoned."""
        unit, reduction, scale, l2, top, tiny = super()._terms(item, value, reference, free=free)
        rounding = self.reference.rounding
        floors = self.reference.local if self._is_local() and not free else rounding
        measured = floors.get(item_key(item), rounding.get(item_key(item)))
        if measured is None:
            return unit, self._length(item), scale, l2, top, tiny
        return unit, reduction, scale, measured.l2, measured.maximum, tiny

    def _is_local(self) -> bool:
        """Whether the candidate is forced at every site at which the recorder was."""
        if self._dense is None:
            aligned = self.reductions.aligned
            side = PreparedTrace.of(self.reference)
            self._dense = all(
                site in aligned or repeating(side, site, aligned) for site in side.order
            )
        return self.forced and self._dense

    @property
    def _has_free_truth(self) -> bool:
        return True

    def _free(self, item: Item, reference: np.ndarray) -> tuple[Arrays | None, float | None]:
        """The free run, whose truth is the recorded value."""
        if item.phase == "weights":
            return None, None
        raw = value_of(item, self.free_candidate, side="candidate")
        if raw is None or not is_inexact(raw):
            return None, None
        value = in_reference_layout(item, raw, reference)
        return (None, math.inf) if value is None else ((value, reference, reference), None)

    def _is_measured(self, item: Item) -> bool:
        return item_key(item) in self.reference.rounding

    def _length(self, item: Item) -> float:
        if not self._lengths:
            self._lengths = self._accumulated()
        own = max(4.0, self.reductions.length(item))
        return self._lengths.get(item_key(item), max(self._lengths.values(), default=0.0) + own)

    def _accumulated(self) -> dict[tuple[str, str], float]:
        """(kind, site) -> n, summed along the run."""
        total = 0.0
        found: dict[tuple[str, str], float] = {}
        cotangents = set(COTANGENT_OF.values())
        for kind, site in self.reference.values:
            phase = "backward" if kind in cotangents else "forward"
            item = Item(phase, kind, site, site, None, "")  # type: ignore[arg-type]
            known = ("activation", site) in self.reference.values or kind == "input"
            total += max(4.0, self.reductions.length(item) if known else 1.0)
            found[kind, site] = total
        return found
