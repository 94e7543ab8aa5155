"""Many small groups of arrays in NumPy: those of one size are the rows of matrices.

A call of NumPy on a kilobyte costs more than the numbers in it. Each row is summed as
`crosscheck.kernels.blocked` sums one block: the same bits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from crosscheck.kernels import blocked
from crosscheck.kernels.blocked import PairSums

__all__ = ["LONGEST", "matrix", "of_one_size", "stacked_sums", "stacked_squares"]

LONGEST = blocked.BLOCK // 4
"""Elements of an array from which on it is worth calls of its own."""
AT_ONCE = blocked.BLOCK // 2  # elements of a matrix: three of them stay in the cache
Groups = Sequence[Sequence[np.ndarray]]
Pairs = Sequence[Sequence[int]]


def of_one_size(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of the small arrays among those of the given sizes: of one size, as many as are
    looked at together."""
    numbers: defaultdict[int, list[int]] = defaultdict(list)
    for number, size in enumerate(sizes):
        if 0 < size <= LONGEST:
            numbers[size].append(number)
    for size, alike in numbers.items():
        at_once = max(AT_ONCE // size, 1)
        for first in range(0, len(alike), at_once):
            yield alike[first : first + at_once]


def matrix(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Float64 (number of arrays, size): each a row, in the order of its own axes."""
    rows = np.empty((len(arrays), arrays[0].size))
    for row, array in zip(rows, arrays, strict=True):
        row[:] = array.reshape(-1)
    return rows


def stacked_squares(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[int, tuple[float, float]]:
    """Σ(a−b)² and Σb² of the small pairs of one shape that are finite, by number."""
    found: dict[int, tuple[float, float]] = {}
    for some in of_one_size([b.size if a.shape == b.shape else 0 for a, b in pairs]):
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = (matrix([pairs[i][side] for i in some]) for side in (0, 1))
            difference = a - b
            squares = _dots(difference, difference), _dots(b, b)
        sums = zip(some, _by_row(squares), strict=True)
        found |= {i: both for i, both in sums if math.isfinite(sum(both))}
    return found


def stacked_sums(
    groups: Groups, limits: Sequence[float], pairs: Pairs
) -> dict[int, tuple[PairSums, ...]]:
    """What `blocked.pair_sums` gives for ``pairs`` of the arrays in each group.

    Args:
        groups: arrays of one shape, in any real dtypes and strides.
        limits: for each group, the difference above which elements are counted.
        pairs: (index in a group, index in a group).

    Returns:
        By number, the small groups that are finite throughout.
    """
    found: dict[int, tuple[PairSums, ...]] = {}
    for some in of_one_size([arrays[0].size for arrays in groups]):
        sums = _rows([groups[i] for i in some], [limits[i] for i in some], pairs)
        found.update((i, s) for i, s in zip(some, sums, strict=True) if s is not None)
    return found


def _rows(
    groups: Groups, limits: Sequence[float], pairs: Pairs
) -> Iterator[tuple[PairSums, ...] | None]:
    """For each of some groups of one size; None where not all numbers are finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        sides = [matrix([arrays[k] for arrays in groups]) for k in range(len(groups[0]))]
        squares = [_dots(side, side) for side in sides]
        largest = [np.maximum(side.max(axis=1), -side.min(axis=1)) for side in sides]
        found = []
        for i, j in pairs:
            columns = _columns(sides[i], sides[j], limits)
            columns += [squares[i], squares[j], largest[i], largest[j]]
            found.append([_sums(sides[0].shape[1], *row) for row in _by_row(columns)])
        finite = np.isfinite(sum(squares)).tolist()
    for plain, sums in zip(finite, zip(*found, strict=True), strict=True):
        yield sums if plain and all(math.isfinite(s.diff2) for s in sums) else None


def _by_row(columns: Sequence[np.ndarray]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _columns(a: np.ndarray, b: np.ndarray, limits: Sequence[float]) -> list[np.ndarray]:
    """Σ(a−b)², Σab, max |a−b|, its place, and how many are above the limit, for each row."""
    difference = a - b
    sums = _dots(difference, difference), _dots(a, b)
    np.abs(difference, out=difference)
    places = difference.argmax(axis=1)
    largest = difference[np.arange(len(places)), places]
    over = np.zeros(len(places), np.int64)
    if min(limits) < math.inf:
        over = np.count_nonzero(difference > np.array(limits)[:, None], axis=1)
    return [*sums, largest, places, over]


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.einsum("ij,ij->i", a, b)
    return sums


def _sums(
    size: int,
    diff2: float,
    ab: float,
    max_diff: float,
    argmax: int,
    over: int,
    a2: float,
    b2: float,
    max_a: float,
    max_b: float,
) -> PairSums:
    return PairSums(size, diff2, a2, b2, ab, max_diff, argmax, max_a, max_b, over)
