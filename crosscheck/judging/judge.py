"""Stage 7 at work: take one item's values from every run and judge them (formulas: `noise`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from crosscheck.arrays import dtype_name, is_inexact
from crosscheck.compare import (
    Difference,
    compare,
    compare_three,
    describe,
)
from crosscheck.comparisons import Item, value_of
from crosscheck.judging.fill import errors_of, without_fill
from crosscheck.judging.noise import (
    Floor,
    Judgement,
    Terms,
    Tolerance,
    floors,
    judge_each,
    underflow,
    unit_roundoff,
    within,
)
from crosscheck.judging.quantised import SHARE, Steps
from crosscheck.judging.reductions import Reductions
from crosscheck.memory import portions
from crosscheck.results import Metrics, SiteResult
from crosscheck.trace import Trace

__all__ = [
    "Judge",
    "Perturbation",
    "exact",
    "in_reference_layout",
    "relative",
    "shrinks",
    "without_fill",
]

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A candidate's value, the reference's and the truth, in one layout."""
BYTES = 32  # for each element: two sides in float32 and the oracle in float64, forced and free
DOUBTED = (
    "the reference does something else in float64 (draws random numbers?): judged against its own "
    "value"
)
QUANTISED = "quantised: judged by its step of {:.3g}"
TIES = "tie: {} of {} elements can fall either way within rounding; left out"
NO_ORACLE = "floor from float32 perturbations: the reference does not run in float64"


@dataclass(frozen=True)
class Perturbation:
    """RMS response of the oracle at one item, in the two norms."""

    l2: float
    maximum: float


@dataclass
class Judge:
    """Judges items against the traces of one check.

    Attributes:
        reference: the reference's free run.
        oracle: the reference in float64, forced at the aligned sites; None if it cannot run there.
        free_oracle: the reference in float64, free.
        free_candidate: the candidate's free run, for the free ratio.
        perturbations: measured e_pert by item.
        doubted: items at which the oracle does not do what the reference does.
        steps: of a quantised candidate.
        ties: by item, where its elements can fall either way within rounding (`ties`).
        masked: items masked by another number to the same effect (`crosscheck.explain.masks`): that
            the free runs differ there says nothing.
    """

    reference: Trace
    oracle: Trace | None
    free_oracle: Trace | None
    free_candidate: Trace
    reductions: Reductions
    tolerance: Tolerance | None = None
    perturbations: Mapping[Item, Perturbation] = field(default_factory=dict)
    ties: Mapping[Item, np.ndarray] = field(default_factory=dict)
    masked: frozenset[Item] = frozenset()
    doubted: frozenset[Item] = frozenset()
    steps: Steps = field(default_factory=Steps)

    def judge(self, item: Item, candidate: Trace) -> SiteResult:
        """Judge one item of a forced run."""
        return self.judge_many([item], candidate)[item]

    def judge_many(self, items: Iterable[Item], candidate: Trace) -> dict[Item, SiteResult]:
        """Judge items of a forced run; thousands of small values are compared in one call."""
        looks = (self._look(item, value_of(item, candidate, side="candidate")) for item in items)
        results: dict[Item, SiteResult] = {}
        for some in portions(looks, lambda look: look.reference.size, BYTES):
            results |= self._results(some)
        return results

    def free_ratios(self, items: Iterable[Item]) -> dict[Item, float | None]:
        """ρ of the free runs alone; None where they have no such values."""
        values = ((item, self._reference(item)) for item in items)
        found: dict[Item, float | None] = {}
        for some in portions(values, lambda one: one[1].size, BYTES):
            found |= self._freely(some)
        return found

    def _freely(self, values: Iterable[tuple[Item, np.ndarray]]) -> dict[Item, float | None]:
        """The free ratios of items with these values of the reference."""
        found: dict[Item, float | None] = {}
        some: list[tuple[Item, Arrays]] = []
        for item, reference in values:
            arrays, found[item] = self._free(item, reference)
            if arrays is not None:
                some.append((item, arrays))
        if some:
            seen = compare_three([arrays for _, arrays in some])
            floors = [self._terms(item, *arrays[:2], free=True) for item, arrays in some]
            judged = judge_each(*errors_of(seen), floors)
            found |= {item: one.ratio for (item, _), one in zip(some, judged, strict=True)}
        return found

    def _reference(self, item: Item) -> np.ndarray:
        value = value_of(item, self.reference, side="reference")
        assert value is not None, item
        return value

    def _look(self, item: Item, raw: np.ndarray | None) -> _Look:
        reference = self._reference(item)
        value = in_reference_layout(item, raw, reference)
        forced = None
        if value is not None:
            forced = value, reference, self.truth(item, reference)
            if self.ties and item in self.ties:
                kept = ~self.ties[item]
                forced = value[kept], reference[kept], forced[2][kept]
        return _Look(item, reference, raw, value, forced)

    def _results(self, looks: Sequence[_Look]) -> dict[Item, SiteResult]:
        """The results of what is looked at, from one pass over all of it."""
        self.reductions.ahead(look.item for look in looks)
        judgements: list[Judgement | None] = [None] * len(looks)
        metrics: list[Metrics | None] = [None] * len(looks)
        by_floor: list[tuple[int, Arrays]] = []
        for i, look in enumerate(looks):
            if look.forced is None:
                continue
            if self._by_floor(look.item, look.forced):
                by_floor.append((i, look.forced))
            else:
                judgements[i] = self._plainly(*look.forced[:2])
        seen = compare_three([arrays for _, arrays in by_floor])
        floors = [self._terms(looks[i].item, *arrays[:2]) for i, arrays in by_floor]
        judged = judge_each(*errors_of(seen), floors)
        for (i, _), judgement, described in zip(by_floor, judged, seen.metrics, strict=True):
            judgements[i] = judgement
            metrics[i] = None if self.ties and looks[i].item in self.ties else described
        values = ((look.item, look.reference) for look in looks)
        ratios = self._freely(values) if self._has_free_truth else {}
        return {
            look.item: site_result(
                *look[:4],
                judgement,
                described,
                free_ratio=ratios.get(look.item),
                notes=self._notes(look.item, look.reference),
            )
            for look, judgement, described in zip(looks, judgements, metrics, strict=True)
        }

    def _by_floor(self, item: Item, arrays: Arrays) -> bool:
        """Whether it is judged by its error and not by equality or a tolerance."""
        judged = self.tolerance is None or item.phase == "weights"
        return judged and _are_float(arrays[0].dtype, arrays[1].dtype)

    def _plainly(self, value: np.ndarray, reference: np.ndarray) -> Judgement:
        if not (is_inexact(value) and is_inexact(reference)):
            return exact(value, reference)
        assert self.tolerance is not None
        return within(self.tolerance, value, reference)

    def _notes(self, item: Item, reference: np.ndarray) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        if self.oracle is None and self.tolerance is None:
            notes = (NO_ORACLE,)
        if step := self._step(item):
            notes += (QUANTISED.format(step),)
        if self.doubted and item in self.doubted:
            notes += (DOUBTED,)
        if self.ties and item in self.ties:
            notes += (TIES.format(np.count_nonzero(self.ties[item]), reference.size),)
        return notes

    def plain_eta_max(self, item: Item, value: np.ndarray) -> float:
        """η in the maximum norm, from the unit roundoff alone: nobody's own error counts."""
        truth = self.truth(item, self._reference(item))
        return floors(compare(truth, truth), self.floor(item, value))[1]

    def truth(self, item: Item, reference: np.ndarray) -> np.ndarray:
        """The oracle's value of an item; the reference's own where there is no oracle."""
        if self.oracle is None or item in self.doubted:
            return reference
        oracle = value_of(item, self.oracle, side="reference")
        return reference if oracle is None else oracle

    def floor(self, item: Item, value: np.ndarray) -> Floor:
        """The floor of an item whose candidate value is ``value``."""
        reference = value_of(item, self.reference, side="reference")
        return Floor(*self._terms(item, value, value if reference is None else reference))

    def _terms(
        self, item: Item, value: np.ndarray, reference: np.ndarray, *, free: bool = False
    ) -> Terms:
        """The attributes of the floor, of which objects would take longer than all the rest; of the
        free runs' values if ``free``."""
        unit, tiny = _rounding(value.dtype, reference.dtype)
        step = self._step(item)
        measured = self.perturbations.get(item) if self.perturbations else None
        return (
            unit,
            self.reductions.length(item),
            self.reductions.scale(item),
            0.0 if measured is None else measured.l2,
            0.0 if measured is None else measured.maximum,
            max(SHARE * step, tiny) if step else tiny,
        )

    def _step(self, item: Item) -> float:
        held = self.steps.held
        return held.get(item.candidate_key, 0.0) if held else 0.0

    @property
    def _has_free_truth(self) -> bool:
        return self.free_oracle is not None

    def _free(self, item: Item, reference: np.ndarray) -> tuple[Arrays | None, float | None]:
        """The free runs' values with the reference's float64, whose error is that of all roundings
        from the input on. Or (None, the free ratio) where that needs no comparison."""
        if self.free_oracle is None or item.phase == "weights":
            return None, None
        truth = value_of(item, self.free_oracle, side="reference")
        raw = value_of(item, self.free_candidate, side="candidate")
        if truth is None or raw is None or not is_inexact(raw):
            return None, None
        value = in_reference_layout(item, raw, reference)
        return (None, math.inf) if value is None else ((value, reference, truth), None)


@cache
def _are_float(*dtypes: np.dtype) -> bool:
    return all("float" in dtype.name or dtype.kind == "c" for dtype in dtypes)


@cache
def _rounding(*dtypes: np.dtype) -> tuple[float, float]:
    """The unit roundoff of the coarser dtype, and what underflow may lose."""
    return unit_roundoff(*dtypes), max(map(underflow, dtypes))


class _Look(NamedTuple):
    """One item's values, before they are compared.

    Attributes:
        reference, raw: of the two sides, in their own layouts.
        value: ``raw`` in the reference's layout; None if there is none.
        forced: what is judged, without ties; None like ``value``.
    """

    item: Item
    reference: np.ndarray
    raw: np.ndarray | None
    value: np.ndarray | None
    forced: Arrays | None


def in_reference_layout(
    item: Item, raw: np.ndarray | None, reference: np.ndarray
) -> np.ndarray | None:
    """The candidate's value as a view in the reference's layout; None if no layout maps it."""
    if raw is None:
        return np.zeros(reference.shape, reference.dtype)
    value = None if item.layout is None else item.layout.to_reference(raw)
    return value if value is not None and value.shape == reference.shape else None


def exact(value: np.ndarray, reference: np.ndarray) -> Judgement:
    """Integers and booleans: equal or not. A float against an integer is never equal."""
    kinds = {"b": 0, "i": 1, "u": 1}
    same_kind = kinds.get(value.dtype.kind) == kinds.get(reference.dtype.kind)
    if same_kind and np.array_equal(value, reference):
        return Judgement(noise_floor=0.0, ratio=0.0, verdict="agree")
    return Judgement(noise_floor=0.0, ratio=math.inf, verdict="diverge")


def site_result(
    item: Item,
    reference: np.ndarray,
    raw: np.ndarray | None,
    value: np.ndarray | None,
    judgement: Judgement | None,
    metrics: Metrics | None = None,
    *,
    free_ratio: float | None = None,
    notes: tuple[str, ...] = (),
) -> SiteResult:
    """Put a judgement on record; without one (no common layout) the site diverges.

    Args:
        metrics: `describe` of value and reference, if that is known already.
    """
    if metrics is None and value is not None:
        metrics = _metrics(value, reference)
    seen = reference if raw is None else raw
    noise_floor, ratio, verdict = judgement or Judgement(0.0, math.inf, "diverge")
    made = {
        "phase": item.phase,
        "kind": item.kind,
        "reference": item.reference,
        "candidate": item.candidate,
        "shape": reference.shape,
        "dtype": dtype_name(reference.dtype),
        "verdict": verdict,
        "noise_floor": noise_floor,
        "ratio": ratio,
        "free_ratio": free_ratio,
        "metrics": metrics,
        "candidate_shape": seen.shape,
        "candidate_dtype": dtype_name(seen.dtype),
        "aligned_by": item.by,
        "notes": notes,
        "step": 1,
    }
    return SiteResult.of(made)


def _metrics(value: np.ndarray, reference: np.ndarray) -> Metrics:
    if not _equal(value, reference) or not value.size or not np.isfinite(value).all():
        return describe(value, reference)
    first = (0,) * value.ndim
    number = float(reference[first].real)  # of a complex number the part that comes first
    return Metrics(0.0, 0.0, first, 1.0, 0, 0, number, number)


def _equal(value: np.ndarray, reference: np.ndarray) -> bool:
    """Bit for bit, zeros of either sign and without NaN: what a copy or the same kernel gives."""
    return value.dtype == reference.dtype and np.array_equal(value, reference)


def shrinks(wide: Difference, narrow: Difference, *, factor: float = 1e-3) -> bool | None:
    """Precision scaling: does an error vanish in float64? True: rounding. False: a bug.

    None where it is neither clearly gone nor clearly still there.
    """
    before, after = relative(narrow), relative(wide)
    if after <= max(factor * before, 1e-13):
        return True
    return False if after >= 0.3 * before else None


def relative(difference: Difference) -> float:
    """The larger of the two relative errors of a difference."""
    l2 = difference.l2 / difference.truth_l2 if difference.truth_l2 > 0 else difference.l2
    top = difference.maximum / difference.truth_max if difference.truth_max > 0 else 0.0
    return max(l2, top)
