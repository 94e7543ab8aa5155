"""One pass over two arrays in NumPy, in blocks that stay in the cache.

Each block is read from memory once; everything that is wanted of it is computed while it is hot.
Sums are taken in float64. Non-finite elements are counted and left out of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BLOCK", "PairSums", "pair_sums"]

BLOCK = 32768  # float64 temporaries of 256 KiB: they live in the second-level cache
_SMALL = 2.0**-600  # brings the largest float64 to where its square is finite


@dataclass
class PairSums:
    """Sums over the elements of ``a`` and ``b`` that are finite in both; counts of the others.

    Attributes:
        count: finite pairs.
        diff2, a2, b2, ab: sums of (a−b)², a², b² and ab, in units of ``unit``².
        max_diff: the largest |a − b|; ``argmax`` its flat index (−1 for none). Also in ``unit``.
        max_a, max_b: the largest |a| and |b|, in ``unit``.
        over: how many |a − b| are above the limit that was given.
        nonfinite: elements that are NaN or Inf in a or b; ``mismatch``: those of a different kind
            or sign; ``first_mismatch``: the first one's flat index (−1 for none).
        unit: 1, or a large power of two where the squares would overflow otherwise (an attention
            mask may hold the lowest float64).
    """

    count: int = 0
    diff2: float = 0.0
    a2: float = 0.0
    b2: float = 0.0
    ab: float = 0.0
    max_diff: float = 0.0
    argmax: int = -1
    max_a: float = 0.0
    max_b: float = 0.0
    over: int = 0
    nonfinite: int = 0
    mismatch: int = 0
    first_mismatch: int = -1
    unit: float = 1.0

    @classmethod
    def of(cls, row: Sequence[float]) -> PairSums:
        """From the columns `crosscheck.kernels.plan.FIELDS`, and the unit where there is one."""
        count, diff2, a2, b2, ab, max_diff, argmax, max_a, max_b, *counts = row
        over, nonfinite, mismatch, first = map(int, counts[:4])
        return cls(
            int(count),
            diff2,
            a2,
            b2,
            ab,
            max_diff,
            int(argmax),
            max_a,
            max_b,
            over,
            nonfinite,
            mismatch,
            first,
            *counts[4:],
        )


def pair_sums(a: np.ndarray, b: np.ndarray, limit: float = math.inf) -> PairSums:
    """Compare two arrays of one shape. Any real dtype; strided and broadcast arrays are fine.

    Args:
        limit: differences above are counted (`PairSums.over`).

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    total = _sums(flat_a, flat_b, limit, 1.0)
    if math.isfinite(total.diff2 + total.a2 + total.b2):
        return total
    return _sums(flat_a, flat_b, limit, _SMALL)


def _sums(a: np.ndarray, b: np.ndarray, limit: float, scale: float) -> PairSums:
    total = PairSums(unit=1.0 / scale)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, a.size, BLOCK):
            one = a[start : start + BLOCK].astype(np.float64)
            two = b[start : start + BLOCK].astype(np.float64)
            if scale != 1.0:
                one *= scale
                two *= scale
            _add_block(total, start, one, two, limit * scale)
    return total


def _add_block(total: PairSums, start: int, a: np.ndarray, b: np.ndarray, limit: float) -> None:
    a2, b2 = _dot(a, a), _dot(b, b)
    finite = None
    if not math.isfinite(a2 + b2):
        finite = np.isfinite(a) & np.isfinite(b)
        _count_nonfinite(total, start, a, b, finite)
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        a2, b2 = _dot(a, a), _dot(b, b)
    difference = a - b
    total.count += a.size if finite is None else int(np.count_nonzero(finite))
    total.diff2 += _dot(difference, difference)
    total.a2 += a2
    total.b2 += b2
    total.ab += _dot(a, b)
    np.abs(difference, out=difference)
    if finite is not None:
        difference[~finite] = -1.0  # not the place of a largest difference, even of zero
    where = int(difference.argmax())
    if difference[where] > (total.max_diff if total.argmax >= 0 else -1.0):
        total.max_diff, total.argmax = float(difference[where]), start + where
    total.max_a = max(total.max_a, _largest(a))
    total.max_b = max(total.max_b, _largest(b))
    if limit < math.inf:
        total.over += int(np.count_nonzero(difference > limit))


def _largest(x: np.ndarray) -> float:
    return max(float(x.max()), -float(x.min()))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    # Not BLAS: its sums depend on the number of threads, and its threads fight the frameworks'.
    return float(np.einsum("i,i->", a, b))


def _count_nonfinite(
    total: PairSums, start: int, a: np.ndarray, b: np.ndarray, finite: np.ndarray
) -> None:
    same = (np.isnan(a) & np.isnan(b)) | (a == b)
    different = ~finite & ~same
    total.nonfinite += int(np.count_nonzero(~finite))
    total.mismatch += int(np.count_nonzero(different))
    if total.first_mismatch < 0 and different.any():
        total.first_mismatch = start + int(different.argmax())
