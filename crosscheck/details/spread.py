"""Part of stage 10, report: where inside a tensor the two sides differ, and by how much.

How the squared difference is spread along every axis, histograms, the elements that differ most.
All of it is bounded, whatever the size of the tensor: so many bins, one block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crosscheck.details.concentration import Plane, sentences
from crosscheck.results import (
    Element,
    HeatMap,
    Histogram,
    Profile,
    SiteDetail,
    SiteResult,
)

__all__ = ["Values", "examine"]

BLOCK = 1 << 20  # elements: 8 MiB in float64
SAMPLE = 1 << 15  # elements of a histogram
BINS, PROFILE_BINS, HEAT_BINS = 40, 64, 32
WORST = 8
DECADES = 12  # of a logarithmic histogram


@dataclass(frozen=True)
class Values:
    """One comparison's arrays, all in the reference's layout; the oracle's where there is one."""

    reference: np.ndarray
    candidate: np.ndarray
    oracle: np.ndarray | None = None


def examine(result: SiteResult, values: Values) -> SiteDetail:
    """What can be said of one comparison beyond its metrics."""
    phase, kind, reference, candidate, step = result.key
    known = SiteDetail(result.phase, kind, reference, candidate, step)
    if not values.reference.size or values.reference.dtype.kind == "c":
        return known
    spread = _Spread.of(values, result)
    heat, plane = spread.heat()
    sampled = _sampled(values)
    return SiteDetail(
        phase=result.phase,
        kind=kind,
        reference=reference,
        candidate=candidate,
        step=step,
        where=sentences(
            spread.shares, spread.top, values.reference.shape, plane, spread.mismatches
        ),
        profiles=tuple(_profile(axis, share) for axis, share in spread.shares.items()),
        heat=heat,
        values=_values(sampled),
        errors=_errors(sampled),
        worst=spread.worst(),
    )


# -- where -----------------------------------------------------------------------------------------


@dataclass
class _Spread:
    """The squared difference of two arrays: its sums along each axis, and its largest elements.

    Where NaN or Inf is on one side only, those elements are counted instead: they are the finding.

    Attributes:
        scale: the largest finite difference, so that no square overflows.
        shares: axis -> the share of each index; axes of length 1 and tensors without any left out.
        top: (share, index) of the largest elements, largest first.
    """

    values: Values
    scale: float
    mismatches: int
    shares: dict[int, np.ndarray] = field(default_factory=dict)
    top: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)

    @classmethod
    def of(cls, values: Values, result: SiteResult) -> _Spread:
        metrics = result.metrics
        scale = metrics.max_abs if metrics is not None else 0.0
        made = cls(values, scale or 1.0, metrics.nonfinite_mismatch if metrics is not None else 0)
        made._sum()
        return made

    def _sum(self) -> None:
        shape = self.values.reference.shape
        sums = {axis: np.zeros(n) for axis, n in enumerate(shape) if n > 1}
        top: list[tuple[float, int]] = []
        inner = math.prod(shape[1:])
        for start, squares in self._blocks():
            for axis, total in sums.items():
                along = squares.sum(axis=tuple(a for a in range(squares.ndim) if a != axis))
                if axis == 0:
                    total[start : start + len(along)] = along
                else:
                    total += along
            top = sorted([*top, *_largest(squares, start * inner)], key=lambda t: (-t[0], t[1]))
            del top[WORST:]
        whole = float(next(iter(sums.values())).sum()) if sums else 0.0
        if whole > 0:
            self.shares = {axis: total / whole for axis, total in sums.items()}
        self.top = [
            (square / (whole or 1.0), tuple(int(i) for i in np.unravel_index(flat, shape)))
            for square, flat in top
        ]

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first index of axis 0, squares) of blocks that are not too large."""
        reference, candidate = self.values.reference, self.values.candidate
        if reference.size <= BLOCK:
            yield 0, self._only_block
            return
        rows = max(1, BLOCK // max(1, math.prod(reference.shape[1:])))
        for start in range(0, len(reference), rows):
            stop = start + rows
            yield start, self._squares(candidate[start:stop], reference[start:stop])

    @cached_property
    def _only_block(self) -> np.ndarray:
        return self._squares(
            np.atleast_1d(self.values.candidate), np.atleast_1d(self.values.reference)
        )

    def _squares(self, candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        ours, theirs = wide(reference), wide(candidate)
        if self.mismatches:
            finite = np.isfinite(ours) & np.isfinite(theirs)
            same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
            only_one: np.ndarray = ~finite & ~same
            return wide(only_one)
        with np.errstate(invalid="ignore", over="ignore"):
            theirs -= ours
            difference = theirs / self.scale
            difference *= difference
        # Where it is not finite, both sides hold the same NaN or Inf.
        squares: np.ndarray = np.where(np.isfinite(difference), difference, 0.0)
        return squares

    def heat(self) -> tuple[HeatMap | None, Plane | None]:
        """The map over the two axes along which the difference is least even, and what a sentence
        says of it; None where there are no two axes."""
        if len(self.shares) < 2:
            return None, None
        rows, columns = sorted(sorted(self.shares, key=self._evenness)[:2])
        shape = self.values.reference.shape
        bins = _bins(shape[rows], HEAT_BINS), _bins(shape[columns], HEAT_BINS)
        strips, ring = np.zeros((shape[rows], bins[1])), 0.0
        for start, squares in self._blocks():
            others = tuple(a for a in range(squares.ndim) if a not in (rows, columns))
            sums = squares.sum(axis=others)
            first = start if rows == 0 else 0
            strips[first : first + len(sums)] += _binned(sums, bins[1], axis=1)
            ring += _border(sums, first, shape[rows])
        cells = _binned(strips, bins[0])
        total = cells.sum()
        counts = np.multiply.outer(_counts(shape[rows], bins[0]), _counts(shape[columns], bins[1]))
        amplitude = np.sqrt(cells / counts)
        amplitude = np.round(amplitude / amplitude.max(), 3)
        heat = HeatMap(
            rows, columns, shape[rows], shape[columns], tuple(map(tuple, amplitude.tolist()))
        )
        inside = min(shape[rows], shape[columns]) > 4
        plane = Plane((rows, columns), ring / total if inside else None, cells / total)
        return heat, plane

    def sentences(self, plane: Plane | None) -> tuple[str, ...]:
        """What stands out, in words; where the sides agree it would be chance."""
        shape = self.values.reference.shape
        return sentences(self.shares, self.top, shape, plane, self.mismatches)

    def _evenness(self, axis: int) -> float:
        """The entropy of the shares over its largest value, log n."""
        share = self.shares[axis]
        there = share[share > 0]
        return -float(np.sum(there * np.log(there))) / math.log(len(share))

    def worst(self) -> tuple[Element, ...]:
        """The elements that differ most; none where nothing differs."""
        v = self.values
        return tuple(
            Element(
                index,
                float(v.reference[index]),
                float(v.candidate[index]),
                None if v.oracle is None else float(v.oracle[index]),
            )
            for share, index in self.top
            if share > 0
        )


def _largest(squares: np.ndarray, before: int) -> list[tuple[float, int]]:
    flat = squares.reshape(-1)
    there = np.flatnonzero(flat > 4 * flat.mean())  # a partition of all of them takes far longer
    if len(there) < WORST:
        there = np.flatnonzero(flat)
    if len(there) > WORST:
        there = there[np.argpartition(flat[there], -WORST)[-WORST:]]
    return [(float(flat[i]), before + int(i)) for i in there]


def _border(plane: np.ndarray, first: int, length: int) -> float:
    """The sum over the outermost rows and columns of a plane that begins with row ``first``."""
    inner = slice(1 if first == 0 else 0, -1 if first + len(plane) >= length else None)
    return float(plane.sum() - plane[inner, 1:-1].sum())


def _bins(length: int, most: int) -> int:
    return min(length, most)


def _starts(length: int, bins: int) -> np.ndarray:
    """The first index of each bin, where index i belongs to bin i·bins // length."""
    return -(-np.arange(bins) * length // bins)


def _counts(length: int, bins: int) -> np.ndarray:
    return np.diff(np.append(_starts(length, bins), length))


def _binned(sums: np.ndarray, bins: int, axis: int = 0) -> np.ndarray:
    if bins == sums.shape[axis]:
        return sums
    return np.add.reduceat(sums, _starts(sums.shape[axis], bins), axis=axis)


def _profile(axis: int, share: np.ndarray) -> Profile:
    shown = np.round(_binned(share, _bins(len(share), PROFILE_BINS)), 4)
    return Profile(axis, len(share), tuple(shown.tolist()))


# -- how much --------------------------------------------------------------------------------------


def wide(array: np.ndarray) -> np.ndarray:
    """In float64, whatever it was (bfloat16, integers, booleans)."""
    return array.astype(np.float64)


@dataclass(frozen=True)
class _Sample:
    """Some elements of both sides and the oracle, flat, in float64; ``n`` of ``size``."""

    reference: np.ndarray
    candidate: np.ndarray
    oracle: np.ndarray | None
    sampled: int


def _sampled(values: Values) -> _Sample:
    size = values.reference.size
    if size <= SAMPLE:
        flat = [a if a is None else wide(a).reshape(-1) for a in _all(values)]
        return _Sample(flat[0], flat[1], flat[2], 0)  # type: ignore[arg-type]
    # At random: any stride may be in step with an axis.
    there = np.unravel_index(
        np.random.default_rng(0).integers(size, size=SAMPLE), values.reference.shape
    )
    flat = [a if a is None else wide(a[there]) for a in _all(values)]
    return _Sample(flat[0], flat[1], flat[2], SAMPLE)  # type: ignore[arg-type]


def _all(values: Values) -> Iterable[np.ndarray | None]:
    return values.reference, values.candidate, values.oracle


def _values(s: _Sample) -> Histogram | None:
    sides = [a[np.isfinite(a)] for a in (s.reference, s.candidate)]
    return _histogram(sides, sampled=s.sampled)


def _errors(s: _Sample) -> Histogram | None:
    """|value - oracle| of both sides, by its logarithm."""
    if s.oracle is None:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        found = [np.abs(a - s.oracle) for a in (s.reference, s.candidate)]
    found = [a[np.isfinite(a)] for a in found]
    zeros = tuple(int(np.count_nonzero(a == 0)) for a in found)
    logs = [np.log10(a[a > 0]) for a in found]
    top = max((float(a.max()) for a in logs if a.size), default=0.0)
    return _histogram(logs, least=top - DECADES, unit="log10", zeros=zeros, sampled=s.sampled)


def _histogram(
    sides: Sequence[np.ndarray],
    *,
    least: float = -math.inf,
    unit: str = "value",
    zeros: tuple[int, ...] = (),
    sampled: int = 0,
) -> Histogram | None:
    """Both sides in the same bins; what is below ``least`` is in the first."""
    there = [a for a in sides if a.size]
    if not there:
        return None
    low = max(min(float(a.min()) for a in there), least)
    high = max(float(a.max()) for a in there)
    if not math.isfinite(high - low):
        return None
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    counts = []
    for a in sides:
        places = ((a - low) * (BINS / (high - low))).astype(np.int64).clip(0, BINS - 1)
        counts.append(tuple(np.bincount(places, minlength=BINS).tolist()))
    return Histogram(low, high, counts[0], counts[1], unit, sampled, zeros)  # type: ignore[arg-type]
