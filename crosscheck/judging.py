"""Stage 7 at work: take one item's values from every run and judge them (formulas: `noise`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.compare import Difference, compare, describe
from crosscheck.comparisons import Item, value_of
from crosscheck.noise import (
    Floor,
    Judgement,
    Tolerance,
    floors,
    judge,
    underflow,
    unit_roundoff,
    within,
)
from crosscheck.quantised import SHARE, Steps
from crosscheck.reductions import Reductions
from crosscheck.results import SiteResult
from crosscheck.trace import Trace
from crosscheck.weights import Transform

__all__ = [
    "Judge",
    "Perturbation",
    "exact",
    "in_reference_layout",
    "judge_weights",
    "relative",
    "shrinks",
    "without_fill",
]

FILL, FILL_SHARE = 1e4, 1e-3
"""Masks are at least so large, and all that is not masked is a smaller share of them."""
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
    """

    reference: Trace
    oracle: Trace | None
    free_oracle: Trace | None
    free_candidate: Trace
    reductions: Reductions
    tolerance: Tolerance | None = None
    perturbations: Mapping[Item, Perturbation] = field(default_factory=dict)
    ties: Mapping[Item, np.ndarray] = field(default_factory=dict)
    doubted: frozenset[Item] = frozenset()
    steps: Steps = field(default_factory=Steps)

    def judge(self, item: Item, candidate: Trace) -> SiteResult:
        """Judge one item of a forced run."""
        reference = value_of(item, self.reference, side="reference")
        assert reference is not None, item
        return self.judge_value(item, reference, value_of(item, candidate, side="candidate"))

    def judge_value(self, item: Item, reference: np.ndarray, raw: np.ndarray | None) -> SiteResult:
        """Judge the candidate's value ``raw`` (own layout; None: it never arrived, so zero)."""
        value = in_reference_layout(item, raw, reference)
        judgement = None if value is None else self._judgement(item, value, reference)
        result = site_result(item, reference, raw, value, judgement)
        notes: tuple[str, ...] = ()
        if self.oracle is None and self.tolerance is None:
            notes = (NO_ORACLE,)
        if self._step(item):
            notes += (QUANTISED.format(self._step(item)),)
        if item in self.doubted:
            notes += (DOUBTED,)
        if item in self.ties:
            notes += (TIES.format(np.count_nonzero(self.ties[item]), reference.size),)
        return replace(result, free_ratio=self._free_ratio(item), notes=notes)

    def _judgement(self, item: Item, value: np.ndarray, reference: np.ndarray) -> Judgement:
        truth = self.truth(item, reference)
        if item in self.ties:
            kept = ~self.ties[item]
            value, reference, truth = value[kept], reference[kept], truth[kept]
        if not (is_float(value) and is_float(reference)):
            return exact(value, reference)
        if self.tolerance is not None and item.phase != "weights":
            return within(self.tolerance, value, reference)
        return judge(*errors(value, reference, truth), self.floor(item, value))

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
        dtypes = [value.dtype] + ([] if reference is None else [reference.dtype])
        floor = Floor(
            unit=unit_roundoff(*dtypes),
            reduction=self.reductions.length(item),
            scale=self.reductions.scale(item),
            tiny=max([SHARE * self._step(item), *(underflow(d) for d in dtypes)]),
        )
        measured = self.perturbations.get(item)
        return floor if measured is None else floor.with_perturbation(measured.l2, measured.maximum)

    def _step(self, item: Item) -> float:
        return self.steps.held.get(item.candidate_key, 0.0)

    def _free_ratio(self, item: Item) -> float | None:
        """The free run's error over the reference's own, accumulated from the input on."""
        if self.free_oracle is None or item.phase == "weights":
            return None
        reference = value_of(item, self.reference, side="reference")
        truth = value_of(item, self.free_oracle, side="reference")
        raw = value_of(item, self.free_candidate, side="candidate")
        if reference is None or truth is None or raw is None or not is_float(raw):
            return None
        value = in_reference_layout(item, raw, reference)
        if value is None:
            return math.inf
        return judge(*errors(value, reference, truth), self.floor(item, value)).ratio


def errors(
    value: np.ndarray, reference: np.ndarray, truth: np.ndarray
) -> tuple[Difference, Difference]:
    """The candidate's and the reference's error against the oracle.

    NaN and Inf must be where the reference has them. Usually the oracle has them there too, but
    what overflows in float32 (two attention masks, added up) may well be finite in float64.
    """
    value, reference, truth = without_fill(value, reference, truth)
    candidate, own = compare(value, truth), compare(reference, truth)
    if own.mismatch:
        candidate = replace(candidate, mismatch=compare(value, reference).mismatch)
    return candidate, own


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


def judge_weights(
    item: Item, reference: np.ndarray, candidate: np.ndarray, step: float = 0.0
) -> SiteResult:
    """A parameter against its counterpart: equal up to the cast between their dtypes, or, if it is
    quantised, up to half a step."""
    value = in_reference_layout(item, candidate, reference)
    if value is None:
        return site_result(item, reference, candidate, None, None)
    unit = unit_roundoff(value.dtype, reference.dtype)
    floor = Floor(unit=unit, tiny=max(SHARE * step, Floor.tiny))
    same = compare(reference, reference)
    judgement = judge(compare(value, reference), same, floor)
    result = site_result(item, reference, candidate, value, judgement)
    return replace(result, notes=(QUANTISED.format(step),)) if step else result


def site_result(
    item: Item,
    reference: np.ndarray,
    raw: np.ndarray | None,
    value: np.ndarray | None,
    judgement: Judgement | None,
) -> SiteResult:
    """Put a judgement on record; without one (no common layout) the site diverges."""
    seen = reference if raw is None else raw
    return SiteResult(
        phase=item.phase,
        kind=item.kind,
        reference=item.reference,
        candidate=item.candidate,
        shape=tuple(reference.shape),
        dtype=reference.dtype.name,
        verdict="diverge" if judgement is None else judgement.verdict,
        noise_floor=0.0 if judgement is None else judgement.noise_floor,
        ratio=math.inf if judgement is None else judgement.ratio,
        free_ratio=None,
        metrics=None if value is None else describe(value, reference),
        candidate_shape=tuple(seen.shape),
        candidate_dtype=seen.dtype.name,
        aligned_by=item.by,
    )


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
