"""Partial results -> results, always in the same order."""

from __future__ import annotations

import numpy as np

from crosscheck.kernels.plan import FIELDS

__all__ = ["combined"]

_LARGEST = [FIELDS.index(name) for name in ("max_diff", "max_a", "max_b")]


def combined(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Add up the rows of each job.

    Args:
        rows: float64 (rows, pairs, `FIELDS`).
        first: the first row of each job.

    Returns:
        float64 (jobs, pairs, `FIELDS`); the places are the lowest among equals.
    """
    if len(first) == len(rows):
        return rows
    total = np.add.reduceat(rows, first)
    total[..., _LARGEST] = np.maximum.reduceat(rows[..., _LARGEST], first)
    lengths = np.diff(np.append(first, len(rows)))
    top = FIELDS.index("max_diff")
    elsewhere = rows[..., top] < np.repeat(total[..., top], lengths, axis=0)
    for field, hidden in (("argmax", elsewhere), ("first_mismatch", False)):
        k = FIELDS.index(field)
        places = np.where((rows[..., k] < 0) | hidden, np.inf, rows[..., k])
        lowest = np.minimum.reduceat(places, first)
        total[..., k] = np.where(np.isinf(lowest), -1.0, lowest)
    return total
