"""Many small groups of arrays in NumPy: those of one size are the rows of matrices.

A call of NumPy on a kilobyte costs more than the numbers in it. Each row is summed as
`crosscheck.kernels.blocked` sums one block: the same bits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple

import numpy as np

from crosscheck.kernels import blocked
from crosscheck.kernels.blocked import PairSums

__all__ = ["LONGEST", "matrix", "of_one_size", "stacked_rows", "stacked_squares"]

LONGEST = blocked.BLOCK // 4
"""Elements of an array from which on it is worth calls of its own."""
AT_ONCE = blocked.BLOCK  # elements of a matrix: as large as the blocks that stay in the cache
_NONE = astuple(PairSums())
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
    try:
        np.concatenate(arrays, out=rows.reshape(-1, *arrays[0].shape[1:]), casting="unsafe")
    except ValueError:  # of other shapes, or of none
        flat = [array.reshape(-1) for array in arrays]
        np.concatenate(flat, out=rows.reshape(-1), casting="unsafe")
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
        sums = zip(some, *(column.tolist() for column in squares), strict=True)
        found |= {i: (error, truth) for i, error, truth in sums if math.isfinite(error + truth)}
    return found


def stacked_rows(
    groups: Groups, limits: Sequence[float], pairs: Pairs, out: np.ndarray
) -> np.ndarray:
    """What `blocked.pair_sums` gives for ``pairs`` of the arrays in each group.

    Args:
        groups: arrays of one shape, in any real dtypes and strides.
        limits: for each group, the difference above which elements are counted.
        pairs: (index in a group, index in a group).
        out: float64 (groups, pairs, fields of `PairSums`); the rows of small groups are written.

    Returns:
        bool (groups,): the small groups that are finite throughout. Rows of others mean nothing.
    """
    done = np.zeros(len(groups), bool)
    for some in of_one_size([arrays[0].size for arrays in groups]):
        rows = _rows([groups[i] for i in some], [limits[i] for i in some], pairs)
        out[some] = rows
        done[some] = np.isfinite(rows).all(axis=(1, 2))
    return done


def _rows(groups: Groups, limits: Sequence[float], pairs: Pairs) -> np.ndarray:
    """For some groups of one size; not finite where not all numbers are."""
    with np.errstate(invalid="ignore", over="ignore"):
        sides = [matrix([arrays[k] for arrays in groups]) for k in range(len(groups[0]))]
        squares = [_dots(side, side) for side in sides]
        largest = [np.maximum(side.max(axis=1), -side.min(axis=1)) for side in sides]
        rows = np.empty((len(groups), len(pairs), len(_NONE)))
        rows[:] = _NONE
        rows[:, :, 0] = sides[0].shape[1]
        for k, (i, j) in enumerate(pairs):
            diff2, ab, top, place, over = _columns(sides[i], sides[j], limits)
            columns = diff2, squares[i], squares[j], ab, top, place, largest[i], largest[j], over
            for field, column in enumerate(columns, start=1):
                rows[:, k, field] = column
    return rows


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
