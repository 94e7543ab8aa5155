"""Stage 6, compare: arrays in one layout -> how they differ. One pass over memory."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from crosscheck.arrays import any_complex, is_float, real_parts
from crosscheck.errors import DeviceUnavailable
from crosscheck.kernels.blocked import PairSums
from crosscheck.kernels.on_device import DeviceArray
from crosscheck.kernels.pairs import group_rows
from crosscheck.results import Metrics

__all__ = [
    "Difference",
    "Differences",
    "Tally",
    "Three",
    "Threes",
    "Two",
    "compare",
    "compare_each",
    "compare_three",
    "compare_two",
    "describe",
    "equal",
    "root_mean_squares",
    "tally",
]

SAMPLE = 4096
QUANTILES = (0.5, 0.9, 0.99, 1.0)
FIELDS = len(fields(PairSums))
COUNT, DIFF2, A2, B2, AB, MAX_DIFF, ARGMAX, MAX_A, MAX_B = range(9)
OVER, NONFINITE, MISMATCH, FIRST_MISMATCH, UNIT = range(9, FIELDS)
"""The columns of `crosscheck.kernels.pairs.group_rows`."""


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


class Differences:
    """Many `Difference`, as columns: float64 (n,) each."""

    def __init__(self, table: np.ndarray) -> None:
        """``table``: float64 (n, 6), a row for each; the columns are views of it."""
        self.table = table
        self.size, self.l2, self.maximum = table[:, 0], table[:, 1], table[:, 2]
        self.truth_l2, self.truth_max, self.mismatch = table[:, 3], table[:, 4], table[:, 5]

    def __getitem__(self, i: int) -> Difference:
        size, l2, maximum, truth_l2, truth_max, mismatch = self.table[i].tolist()
        return Difference(int(size), l2, maximum, truth_l2, truth_max, int(mismatch))


Groups = Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]


class Threes:
    """Many `Three`, as columns; the metrics are made when they are asked for.

    Attributes:
        groups: what was compared: value, reference and truth of each.
        candidate, own, between: as in `Three`.
    """

    def __init__(self, groups: Groups, rows: np.ndarray) -> None:
        """``rows``: float64 (n, 3, fields of `PairSums`), as `group_rows` gives them."""
        sizes = [value.size for value, *_ in groups]
        self.groups, self._rows = groups, rows
        self.candidate, self.own, self.between = (_differences(rows[:, k], sizes) for k in range(3))

    def __getitem__(self, i: int) -> Three:
        return Three(self.candidate[i], self.own[i], self.between[i], self.metrics[i])

    @cached_property
    def metrics(self) -> list[Metrics]:
        return _metrics(self._rows[:, 2], self.groups)


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
    row = _row(value, truth)
    return _differences(row, row[:, COUNT] + row[:, NONFINITE])[0]


def compare_each(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Difference]:
    """`compare` for many (value, truth), each of one shape, in one call."""
    found = _differences(_rows(pairs)[:, 0], [truth.size for _, truth in pairs])
    return [found[i] for i in range(len(pairs))]


def compare_three(groups: Groups) -> Threes:
    """Compare (value, reference, truth), each of one shape, for many sites in one call."""
    rows = np.empty((len(groups), 3, FIELDS))
    # Where the truth is the reference itself, two of the three comparisons are one.
    same = [i for i, (_, reference, truth) in enumerate(groups) if truth is reference]
    between = _rows([groups[i][:2] for i in same])
    rows[same] = between
    rows[same, 1, DIFF2] = rows[same, 1, MAX_DIFF] = 0.0
    apart = np.ones(len(groups), bool)
    apart[same] = (between[:, 0, MISMATCH] > 0) | (between[:, 0, UNIT] != 1.0)
    rows[apart] = _rows([groups[i] for i in np.flatnonzero(apart).tolist()])
    return Threes(groups, rows)


def compare_two(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Two]:
    """Compare (value, reference), each of one shape, for many sites in one call."""
    rows = _rows(groups)[:, 0]
    found = _differences(rows, [value.size for value, _ in groups])
    return [Two(found[i], metrics) for i, metrics in enumerate(_metrics(rows, groups))]


def equal(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bool]:
    """Whether the two arrays of each pair hold the same numbers, and NaN in the same places."""
    floats = [a.shape == b.shape and is_float(a) and is_float(b) for a, b in pairs]
    rows = group_rows([p for p, one in zip(pairs, floats, strict=True) if one])[:, 0]
    seen = iter(((rows[:, MAX_DIFF] == 0.0) & (rows[:, MISMATCH] == 0)).tolist())
    return [
        next(seen) if one else np.array_equal(a, b, equal_nan=True)
        for (a, b), one in zip(pairs, floats, strict=True)
    ]


def root_mean_squares(values: Sequence[np.ndarray]) -> list[float]:
    """Of the finite elements of each; 0 where there is none."""
    rows = _rows([(value, value) for value in values])[:, 0]
    count = np.maximum(rows[:, COUNT], 1.0)
    found: list[float] = (np.sqrt(rows[:, A2] / count) * rows[:, UNIT]).tolist()
    return found


def _differences(rows: np.ndarray, sizes: Any) -> Differences:
    """From float64 (n, fields of `PairSums`)."""
    table = np.empty((len(rows), 6))
    table[:, 0], table[:, 5] = sizes, rows[:, MISMATCH]
    norms = table[:, 1:5]
    norms[:] = rows[:, [DIFF2, MAX_DIFF, B2, MAX_B]]
    norms[:, ::2] = np.sqrt(norms[:, ::2])
    with np.errstate(over="ignore"):
        norms *= rows[:, UNIT, None]
    np.minimum(norms, sys.float_info.max, out=norms)
    return Differences(table)


def describe(candidate: Any, reference: Any) -> Metrics:
    """The metrics of the report: candidate against reference, as both ran; where they lie, as with
    `compare`."""
    return _metrics(_row(candidate, reference), [(candidate, reference)])[0]


def _rows(groups: Sequence[Sequence[Any]]) -> np.ndarray:
    """`group_rows` of arrays that may be complex: then of their real and imaginary parts."""
    return group_rows([real_parts(group) for group in groups])


def _row(a: Any, b: Any) -> np.ndarray:
    """Float64 (1, fields of `PairSums`)."""
    if all(isinstance(value, (np.ndarray, DeviceArray)) for value in (a, b)):
        row: np.ndarray = _rows([(a, b)])[0]
        return row
    try:
        from crosscheck.kernels.triton_pair import pair_sums as on_device
    except ImportError as error:
        raise DeviceUnavailable(
            f"{type(a).__name__} against {type(b).__name__}: tensors are compared on their device "
            f"by Triton ({error}). Fix: pip install triton, or give NumPy arrays"
        ) from error
    return np.array([astuple(on_device(a, b))])


def _metrics(rows: np.ndarray, groups: Sequence[Sequence[Any]]) -> list[Metrics]:
    """Of groups that begin with (candidate, reference), from (n, fields of `PairSums`)."""
    diff2, a2, b2, unit = (rows[:, k] for k in (DIFF2, A2, B2, UNIT))
    with np.errstate(all="ignore"):
        rel_l2 = np.where(b2 > 0.0, np.sqrt(diff2 / b2), np.sqrt(diff2) * unit)
        norms = np.sqrt(a2) * np.sqrt(b2)
        cosine = np.where(norms > 0.0, rows[:, AB] / norms, 0.0)
    cosine[diff2 == 0.0] = 1.0  # which a product of roots need not give
    differ = rows[:, MISMATCH] > 0
    place = np.where(differ, rows[:, FIRST_MISMATCH], rows[:, ARGMAX]).astype(np.int64)
    counts = (rows[:, k].astype(np.int64).tolist() for k in (NONFINITE, MISMATCH))
    columns = (column.tolist() for column in (rel_l2, rows[:, MAX_DIFF] * unit, cosine))
    halves = [1 + any_complex(one[0].dtype, one[1].dtype) for one in groups]
    places = _places(place // np.array(halves, np.int64), [one[1].shape for one in groups])
    parts = (place % 2 * (np.array(halves) - 1)).tolist()
    found = []
    for (value, reference, *_), index, part, rel, top, cos, nonfinite, mismatch in zip(
        groups, places, parts, *columns, *counts, strict=True
    ):
        worst: list[float | None] = [None, None]
        if index is not None:  # of complex numbers, a part: 0 the real, 1 the imaginary
            numbers = reference[index], value[index]
            worst = [float(n.imag if part else n.real) for n in numbers]
        made = {
            "rel_l2": rel,
            "max_abs": top,
            "worst_index": index,
            "cosine": cos,
            "nonfinite": nonfinite,
            "nonfinite_mismatch": mismatch,
            "worst_reference": worst[0],
            "worst_candidate": worst[1],
        }
        found.append(Metrics.of(made))
    return found


def _places(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
    """Where the elements with these numbers lie, each in an array of its shape; None below 0."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        alike[shape].append(i)
    found: list[tuple[int, ...] | None] = [None] * len(shapes)
    for shape, numbers in alike.items():
        rest = flat[numbers]
        there, axes = (rest >= 0).tolist(), np.empty((len(numbers), len(shape)), np.int64)
        for axis, size in reversed(list(enumerate(shape))):
            rest, axes[:, axis] = np.divmod(rest, max(size, 1))
        for i, here, index in zip(numbers, there, axes.tolist(), strict=True):
            found[i] = tuple(index) if here else None
    return found


def tally(candidate: np.ndarray, reference: np.ndarray, floor: float, *, seed: int = 0) -> Tally:
    """How many elements are off by more than ``floor`` (absolute), and by how many units in the
    last place those of a sample are: one from each of 4,096 equal stretches, drawn by ``seed``.

    Args:
        candidate, reference: floating point, of one shape.
    """
    over = int(group_rows([(candidate, reference)], [floor])[0, 0, OVER])
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
