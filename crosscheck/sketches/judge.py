"""Stage 7, judge, where the reference is a sketch: an estimate of ‖a − b‖ over the recorded floor.

Each of these is at most the true error, or an unbiased estimate of its square; the largest counts:

    2-norm   ‖Sa − Sb‖,   |‖a‖ − ‖b‖|,   √n |mean a − mean b|
    maximum  |aᵢ − bᵢ| at the sampled places,   |max|a| − max|b||
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.arrays import is_inexact
from crosscheck.comparisons import Item
from crosscheck.judging.noise import unit_roundoff, verdict_of
from crosscheck.results import Metrics, SiteResult
from crosscheck.sketches.make import Record
from crosscheck.sketches.project import Numbers, Plan, measure
from crosscheck.traces.file import named_dtype

__all__ = ["Reading", "difference", "judged", "read", "unlike"]


@dataclass(frozen=True)
class Reading:
    """How a candidate's value, in the reference's layout, differs from what was sketched.

    Attributes:
        l2: estimated ‖a − b‖.
        maximum: a lower bound of max |a − b|.
        mismatch: whether NaN, Inf or fill are not the same in number.
    """

    numbers: Numbers
    l2: float
    maximum: float
    mismatch: int


def read(value: np.ndarray, record: Record, plan: Plan) -> Reading:
    """Sketch a value of the record's shape and compare."""
    return difference(measure(value, plan), record, plan)


def difference(theirs: Numbers, record: Record, plan: Plan) -> Reading:
    """Compare a value of the record's shape that has been sketched."""
    ours = record.numbers
    apart = float(np.linalg.norm(theirs.projected - ours.projected))
    mean = math.sqrt(record.size) * abs(theirs.mean - ours.mean)
    places = np.abs(theirs.sampled - ours.sampled)
    whole = record.size <= plan.rows
    if whole:
        places = np.abs(theirs.projected - ours.projected)
    top = float(places.max(initial=0.0))
    return Reading(
        numbers=theirs,
        l2=apart if whole else max(apart, _apart(theirs.l2, ours.l2), mean),
        maximum=max(top, _apart(theirs.maximum, ours.maximum)),
        mismatch=int(np.abs(theirs.counts - ours.counts).sum()),
    )


def _apart(one: float, other: float) -> float:
    """|one - other|; nothing where one is not known."""
    return 0.0 if math.isnan(one - other) else abs(one - other)


def judged(
    item: Item, reading: Reading, record: Record, shape: tuple[int, ...], dtype: np.dtype
) -> SiteResult:
    """Judge one value.

    Args:
        shape, dtype: of the candidate's value, in its own layout.
    """
    ratio = _ratio(reading, dtype, record)
    verdict, scale = verdict_of(ratio), record.numbers.scale
    return replace(
        unlike(item, record, shape, dtype),
        verdict=verdict,
        noise_floor=record.floor[0] / scale if scale > 0 else 0.0,
        ratio=ratio,
        metrics=_metrics(reading, record),
        notes=() if verdict == "agree" else (_moved(record.numbers, reading.numbers),),
    )


def _ratio(reading: Reading, dtype: np.dtype, record: Record) -> float:
    stored = named_dtype(record.dtype)
    both_float = is_inexact(np.empty(0, dtype)), is_inexact(np.empty(0, stored))
    if both_float[0] != both_float[1] or reading.mismatch:
        return math.inf
    if not both_float[0]:
        return math.inf if reading.l2 or reading.maximum else 0.0
    unit = max(1.0, unit_roundoff(dtype) / max(unit_roundoff(stored), 1e-300))
    pairs = (reading.l2, record.floor[0]), (reading.maximum, record.floor[1])
    return max(
        found / (unit * floor) if floor > 0 else (math.inf if found else 0.0)
        for found, floor in pairs
    )


def _metrics(reading: Reading, record: Record) -> Metrics:
    a, b = reading.numbers.projected, record.numbers.projected
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    scale = record.numbers.scale
    return Metrics(
        rel_l2=reading.l2 / scale if scale > 0 else reading.l2,
        max_abs=reading.maximum,
        worst_index=None,
        cosine=float(a @ b) / norms if norms > 0 else float(reading.l2 == 0.0),
        nonfinite=int(max(reading.numbers.counts[:3].sum(), record.numbers.counts[:3].sum())),
        nonfinite_mismatch=reading.mismatch,
    )


def _moved(ours: Numbers, theirs: Numbers) -> str:
    return (
        f"norm {ours.scale:.6g} -> {theirs.scale:.6g}, mean {ours.mean:.6g} -> {theirs.mean:.6g}, "
        f"largest {ours.maximum:.6g} -> {theirs.maximum:.6g}"
    )


def unlike(item: Item, record: Record, shape: tuple[int, ...], dtype: np.dtype) -> SiteResult:
    """The result of two values whose shapes no layout maps onto each other."""
    return SiteResult(
        phase=item.phase,
        kind=item.kind,
        reference=item.reference,
        candidate=item.candidate,
        shape=record.shape,
        dtype=record.dtype,
        verdict="diverge",
        noise_floor=0.0,
        ratio=math.inf,
        free_ratio=None,
        metrics=None,
        candidate_shape=shape,
        candidate_dtype=dtype.name,
        aligned_by=item.by,
    )
