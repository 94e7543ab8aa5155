"""Stage 7 at work: take one item's values from every run and judge them (formulas: `noise`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from crosscheck.arrays import dtype_name, is_float
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
    Tolerance,
    floors,
    judge_each,
    underflow,
    unit_roundoff,
    within,
)
from crosscheck.judging.quantised import SHARE, Steps
from crosscheck.judging.reductions import Reductions
from crosscheck.memory import within_limit
from crosscheck.results import Metrics, SiteResult
from crosscheck.trace import Trace
from crosscheck.weights import Transform

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
AT_ONCE = 1 << 24
"""Elements that are compared in one call, and so held at once where a layout takes a copy."""
BYTES = 32  # for each of them: two sides in float32 and the oracle in float64, forced and free
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
        looks: list[_Look] = []
        results: dict[Item, SiteResult] = {}
        elements = 0
        for item in items:
            looks.append(self._look(item, value_of(item, candidate, side="candidate")))
            elements += looks[-1].reference.size
            if elements > within_limit(AT_ONCE, BYTES):
                results |= self._results(looks)
                looks, elements = [], 0
        return results | self._results(looks)

    def free_ratios(self, items: Iterable[Item]) -> dict[Item, float | None]:
        """ρ of the free runs alone; None where they have no such values."""
        found: dict[Item, float | None] = {}
        some: list[tuple[Item, Arrays]] = []
        elements = 0
        for item in items:
            reference = value_of(item, self.reference, side="reference")
            assert reference is not None, item
            arrays, found[item] = self._free(item, reference)
            if arrays is not None:
                some.append((item, arrays))
                elements += reference.size
            if elements > within_limit(AT_ONCE, BYTES):
                found |= self._judged_freely(some)
                some, elements = [], 0
        return found | self._judged_freely(some)

    def _judged_freely(self, some: Sequence[tuple[Item, Arrays]]) -> dict[Item, float]:
        if not some:
            return {}
        seen = compare_three([arrays for _, arrays in some])
        floors = [self._free_floor(item, arrays[0]) for item, arrays in some]
        judged = judge_each(*errors_of(seen), floors)
        return {item: one.ratio for (item, _), one in zip(some, judged, strict=True)}

    def _look(self, item: Item, raw: np.ndarray | None) -> _Look:
        reference = value_of(item, self.reference, side="reference")
        assert reference is not None, item
        value = in_reference_layout(item, raw, reference)
        forced = None
        if value is not None:
            forced = value, reference, self.truth(item, reference)
            if self.ties and item in self.ties:
                kept = ~self.ties[item]
                forced = value[kept], reference[kept], forced[2][kept]
        return _Look(item, reference, raw, value, forced, *self._free(item, reference))

    def _results(self, looks: Sequence[_Look]) -> dict[Item, SiteResult]:
        """The results of what is looked at, from one pass over all of it."""
        self.reductions.ahead(look.item for look in looks)
        for look in looks:
            if look.forced is not None and not self._by_floor(look):
                look.judgement = self._plainly(*look.forced[:2])
        forced = [(look, look.forced) for look in looks if look.forced and not look.judgement]
        seen = compare_three([arrays for _, arrays in forced])
        floors = [self.floor(look.item, arrays[0]) for look, arrays in forced]
        judged = judge_each(*errors_of(seen), floors)
        for (look, _), judgement, metrics in zip(forced, judged, seen.metrics, strict=True):
            look.judgement = judgement
            look.metrics = None if self.ties and look.item in self.ties else metrics
        ratios = self._judged_freely([(look.item, look.free) for look in looks if look.free])
        for look in looks:
            look.free_ratio = ratios.get(look.item, look.free_ratio)
        return {look.item: self._result(look) for look in looks}

    def _by_floor(self, look: _Look) -> bool:
        """Whether it is judged by its error and not by equality or a tolerance."""
        return look.is_float and (self.tolerance is None or look.item.phase == "weights")

    def _plainly(self, value: np.ndarray, reference: np.ndarray) -> Judgement:
        if not (is_float(value) and is_float(reference)):
            return exact(value, reference)
        assert self.tolerance is not None
        return within(self.tolerance, value, reference)

    def _result(self, look: _Look) -> SiteResult:
        return site_result(
            look.item,
            look.reference,
            look.raw,
            look.value,
            look.judgement,
            look.metrics,
            free_ratio=look.free_ratio,
            notes=self._notes(look.item, look.reference),
        )

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
        reference = value_of(item, self.reference, side="reference")
        assert reference is not None, item
        truth = self.truth(item, reference)
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
        unit, tiny = _rounding(value.dtype, value.dtype if reference is None else reference.dtype)
        floor = Floor(
            unit=unit,
            reduction=self.reductions.length(item),
            scale=self.reductions.scale(item),
            tiny=max(SHARE * self._step(item), tiny),
        )
        measured = self.perturbations.get(item) if self.perturbations else None
        return floor if measured is None else floor.with_perturbation(measured.l2, measured.maximum)

    def _step(self, item: Item) -> float:
        held = self.steps.held
        return held.get(item.candidate_key, 0.0) if held else 0.0

    def _free(self, item: Item, reference: np.ndarray) -> tuple[Arrays | None, float | None]:
        """The free runs' values with the reference's float64, whose error is that of all roundings
        from the input on. Or (None, the free ratio) where that needs no comparison."""
        if self.free_oracle is None or item.phase == "weights":
            return None, None
        truth = value_of(item, self.free_oracle, side="reference")
        raw = value_of(item, self.free_candidate, side="candidate")
        if truth is None or raw is None or not is_float(raw):
            return None, None
        value = in_reference_layout(item, raw, reference)
        return (None, math.inf) if value is None else ((value, reference, truth), None)

    def _free_floor(self, item: Item, value: np.ndarray) -> Floor:
        return self.floor(item, value)


@cache
def _rounding(*dtypes: np.dtype) -> tuple[float, float]:
    """The unit roundoff of the coarser dtype, and what underflow may lose."""
    return unit_roundoff(*dtypes), max(map(underflow, dtypes))


@dataclass
class _Look:
    """One item's values, before they are compared, and then what was found.

    Attributes:
        reference, raw: of the two sides, in their own layouts.
        value: ``raw`` in the reference's layout; None if there is none.
        forced: what is judged, without ties; None like ``value``.
        free: of the free runs; None where ``free_ratio`` is known without a comparison.
    """

    item: Item
    reference: np.ndarray
    raw: np.ndarray | None
    value: np.ndarray | None
    forced: Arrays | None
    free: Arrays | None
    free_ratio: float | None
    judgement: Judgement | None = None
    metrics: Metrics | None = None

    @property
    def is_float(self) -> bool:
        return self.value is not None and is_float(self.value) and is_float(self.reference)


def in_reference_layout(
    item: Item, raw: np.ndarray | None, reference: np.ndarray
) -> np.ndarray | None:
    """The candidate's value as a view in the reference's layout; None if no layout maps it."""
    if raw is None:
        return np.zeros(reference.shape, reference.dtype)
    if isinstance(item.layout, Transform):
        value = item.layout.to_reference(raw)
    else:
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
    return SiteResult.of(
        phase=item.phase,
        kind=item.kind,
        reference=item.reference,
        candidate=item.candidate,
        shape=reference.shape,
        dtype=dtype_name(reference.dtype),
        verdict="diverge" if judgement is None else judgement.verdict,
        noise_floor=0.0 if judgement is None else judgement.noise_floor,
        ratio=math.inf if judgement is None else judgement.ratio,
        free_ratio=free_ratio,
        metrics=metrics,
        candidate_shape=seen.shape,
        candidate_dtype=dtype_name(seen.dtype),
        aligned_by=item.by,
        notes=notes,
        step=1,
    )


def _metrics(value: np.ndarray, reference: np.ndarray) -> Metrics:
    if not _equal(value, reference) or not value.size or not np.isfinite(value).all():
        return describe(value, reference)
    first = (0,) * value.ndim
    return Metrics(0.0, 0.0, first, 1.0, 0, 0, float(reference[first]), float(value[first]))


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
