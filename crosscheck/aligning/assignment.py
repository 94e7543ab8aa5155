"""Order-preserving assignment of two sequences (for layers, and for sites)."""

from __future__ import annotations

import numpy as np

__all__ = ["best_monotone"]


def best_monotone(score: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column), increasing in both, with the largest total score.

    Args:
        score: (n, m); a pair with score 0 is not allowed. Takes O(n·m).
    """
    n, m = score.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(n - 1, -1, -1):  # best[i, j] = max(take, best[i + 1, j], best[i, j + 1])
        take = np.where(score[i] > 0, score[i] + best[i + 1, 1:], -1.0)
        row = np.maximum(take, best[i + 1, :m])
        best[i, :m] = np.maximum.accumulate(row[::-1])[::-1]
    pairs, i, j = [], 0, 0
    while i < n and j < m:
        if score[i, j] > 0 and best[i, j] == score[i, j] + best[i + 1, j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1, j] >= best[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs
