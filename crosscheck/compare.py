"""Stage 6, compare: arrays in one layout -> how they differ. One pass over memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from crosscheck.arrays import is_float
from crosscheck.errors import DeviceUnavailable
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.pairs import group_sums, pair_sums
from crosscheck.results import Metrics

__all__ = [
    "Difference",
    "Tally",
    "Three",
    "Two",
    "compare",
    "compare_each",
    "compare_three",
    "compare_two",
    "describe",
    "equal",
    "root_mean_square",
    "tally",
]

SAMPLE = 4096
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Difference:
    """The error of ``value`` against ``truth``, in absolute norms.

    Attributes:
        size: number of elements.
        l2, maximum: ‖value − truth‖₂ and max |value − truth| over elements finite in both.
            Norms beyond the float64 range are its largest number, so that ratios stay defined.
        truth_l2, truth_max: ‖truth‖₂ and max |truth| over the same elements.
        mismatch: elements that are NaN or Inf on one side, or of another kind or sign.
    """

    size: int
    l2: float
    maximum: float
    truth_l2: float
    truth_max: float
    mismatch: int

    @property
    def rms_truth(self) -> float:
        """Root mean square of ``truth``."""
        return self.truth_l2 / math.sqrt(self.size) if self.size else 0.0


@dataclass(frozen=True)
class Three:
    """A candidate's value, the reference's and the truth, seen in one pass.

    Attributes:
        candidate, own: the errors of value and reference against the truth.
        between: value against reference.
        metrics: the same for the report, as `describe` has it.
    """

    candidate: Difference
    own: Difference
    between: Difference
    metrics: Metrics


@dataclass(frozen=True)
class Two:
    """A candidate's value against the reference's, seen in one pass; ``metrics`` as in `Three`."""

    between: Difference
    metrics: Metrics


@dataclass(frozen=True)
class Tally:
    """How many elements differ, and by how much.

    Attributes:
        over: how many of ``size`` elements differ by more than the given floor.
        ulps: the quantiles 0.5, 0.9, 0.99 and 1 of |candidate − reference| in a sample, in units in
            the last place: of the reference's value, in the coarser of the two dtypes. NaN where no
            sampled element is finite on both sides.
    """

    size: int
    over: int
    ulps: tuple[float, ...]


def compare(value: Any, truth: Any) -> Difference:
    """The error of ``value`` against ``truth`` (same shape, any dtypes; computed in float64).

    Two tensors on one CUDA device (PyTorch's, or CuPy and JAX arrays through DLPack) are compared
    there; that takes Triton.
    """
    s = _sums(value, truth)
    return _difference(s, s.count + s.nonfinite)


def compare_each(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Difference]:
    """`compare` for many (value, truth), each of one shape, in one call."""
    sums = group_sums(pairs)
    return [_difference(s, truth.size) for (s,), (_, truth) in zip(sums, pairs, strict=True)]


def compare_three(groups: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[Three]:
    """Compare (value, reference, truth), each of one shape, for many sites in one call."""
    found: dict[int, Three] = {}
    # Where the truth is the reference itself, two of the three comparisons are one.
    two = [i for i, (_, reference, truth) in enumerate(groups) if truth is reference]
    for i, (s,) in zip(two, group_sums([groups[i][:2] for i in two]), strict=True):
        value, reference, _ = groups[i]
        if not s.mismatch and s.unit == 1.0:
            between = _difference(s, value.size)
            own = Difference(value.size, 0.0, 0.0, between.truth_l2, between.truth_max, 0)
            found[i] = Three(between, own, between, _metrics(s, value, reference))
    three = [i for i in range(len(groups)) if i not in found]
    for i, sums in zip(three, group_sums([groups[i] for i in three]), strict=True):
        value, reference, _ = groups[i]
        candidate, own, between = (_difference(s, value.size) for s in sums)
        found[i] = Three(candidate, own, between, _metrics(sums[2], value, reference))
    return [found[i] for i in range(len(groups))]


def compare_two(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Two]:
    """Compare (value, reference), each of one shape, for many sites in one call."""
    return [
        Two(_difference(s, value.size), _metrics(s, value, reference))
        for (s,), (value, reference) in zip(group_sums(groups), groups, strict=True)
    ]


def equal(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bool]:
    """Whether the two arrays of each pair hold the same numbers, and NaN in the same places."""
    floats = [a.shape == b.shape and is_float(a) and is_float(b) for a, b in pairs]
    seen = iter(group_sums([p for p, one in zip(pairs, floats, strict=True) if one]))
    return [
        _is_none(next(seen)[0]) if one else np.array_equal(a, b, equal_nan=True)
        for (a, b), one in zip(pairs, floats, strict=True)
    ]


def _is_none(s: PairSums) -> bool:
    return s.max_diff == 0.0 and s.mismatch == 0


def root_mean_square(value: np.ndarray) -> float:
    """Of the finite elements; 0 where there is none."""
    s = pair_sums(value, value)
    return math.sqrt(s.a2 / s.count) * s.unit if s.count else 0.0


def _difference(s: PairSums, size: int) -> Difference:
    norms = math.sqrt(s.diff2), s.max_diff, math.sqrt(s.b2), s.max_b
    if s.unit != 1.0 or not math.isfinite(s.diff2 + s.b2):
        norms = tuple(min(norm * s.unit, sys.float_info.max) for norm in norms)  # type: ignore[assignment]
    return Difference(size, *norms, s.mismatch)


def describe(candidate: Any, reference: Any) -> Metrics:
    """The metrics of the report: candidate against reference, as both ran; where they lie, as with
    `compare`."""
    return _metrics(_sums(candidate, reference), candidate, reference)


def _sums(a: Any, b: Any) -> PairSums:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return pair_sums(a, b)
    try:
        from crosscheck.kernels.triton_pair import pair_sums as on_device
    except ImportError as error:
        raise DeviceUnavailable(
            f"{type(a).__name__} against {type(b).__name__}: tensors are compared on their device "
            "by Triton, which is not installed here. Fix: pip install triton, or give NumPy arrays"
        ) from error
    return on_device(a, b)


def _metrics(s: PairSums, candidate: Any, reference: Any) -> Metrics:
    flat = s.first_mismatch if s.mismatch else s.argmax
    index = None
    if flat >= 0:
        index = _index(flat, reference.shape)
    norms = math.sqrt(s.a2) * math.sqrt(s.b2)
    equal = s.diff2 == 0.0  # then it is 1, which a product of roots need not give
    return Metrics(
        rel_l2=math.sqrt(s.diff2 / s.b2) if s.b2 > 0.0 else math.sqrt(s.diff2) * s.unit,
        max_abs=s.max_diff * s.unit,
        worst_index=index,
        cosine=1.0 if equal else (s.ab / norms if norms > 0.0 else 0.0),
        nonfinite=s.nonfinite,
        nonfinite_mismatch=s.mismatch,
        worst_reference=None if index is None else float(reference[index]),
        worst_candidate=None if index is None else float(candidate[index]),
    )


def _index(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Where the element with that number lies (NumPy's own takes longer than a comparison)."""
    places: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        places.append(place)
    return tuple(reversed(places))


def tally(candidate: np.ndarray, reference: np.ndarray, floor: float, *, seed: int = 0) -> Tally:
    """How many elements are off by more than ``floor`` (absolute), and by how many units in the
    last place those of a sample are: one from each of 4,096 equal stretches, drawn by ``seed``.

    Args:
        candidate, reference: floating point, of one shape.
    """
    over = group_sums([(candidate, reference)], [floor])[0][0].over
    places: Any = ...
    if reference.size > SAMPLE:
        drawn = np.arange(SAMPLE) + np.random.Generator(np.random.Philox(seed)).random(SAMPLE)
        flat = (drawn * (reference.size / SAMPLE)).astype(np.int64)
        places = np.unravel_index(flat, reference.shape)
    a, b = (v[places].astype(np.float64).ravel() for v in (candidate, reference))
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    info = max((ml_dtypes.finfo(v.dtype) for v in (candidate, reference)), key=lambda i: i.eps)
    unit = np.ldexp(float(info.eps), np.frexp(b)[1] - 1)
    off = np.abs(a - b) / np.maximum(unit, float(info.smallest_subnormal))
    ulps = np.quantile(off, QUANTILES) if off.size else np.full(len(QUANTILES), np.nan)
    return Tally(reference.size, over, tuple(ulps.tolist()))
