"""Adding the elements of an array to random rows with random signs, compiled.

A model of a hundred million parameters has as many gradients, and each is looked at once: in NumPy,
which takes eight passes over four times the memory, that is half of a comparison's time.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["GROUPS", "add_signed"]

GROUPS = 4


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def add_signed(block: np.ndarray, words: np.ndarray, rows: np.ndarray) -> None:
    """Add every element to one row in each of four groups of rows, with a sign.

    Args:
        block: float64 (n,).
        words: uint64 (n,), random. Of each 16 bits, the lowest is the sign and the others the row.
        rows: float64 (k,), k a multiple of 4; is added to.
    """
    per_group = rows.size // GROUPS
    for i in range(block.size):
        word = words[i]
        value = block[i]
        for group in range(GROUPS):
            bits = np.int64((word >> np.uint64(16 * group)) & np.uint64(0xFFFF))
            row = group * per_group + (((bits >> 1) * per_group) >> 15)
            if bits & 1:
                rows[row] += value
            else:
                rows[row] -= value
