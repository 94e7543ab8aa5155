"""Which layer of one side goes with which of the other, from scores."""

from __future__ import annotations

import numpy as np

from crosscheck.aligning.assignment import best_monotone

__all__ = ["assign"]

NAMESAKE = 0.75
"""Likeness of two paths from which on they are taken for the same layer, in whatever order."""


def assign(score: np.ndarray, likeness: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column): namesakes first, then repeatedly the best order-preserving alignment.

    Namesakes are defined in any order (query, key and value; the branches of a block). For the
    others one round suffices where both sides define their layers in the same order; further
    rounds pick up branches that are defined in another order.
    """
    found = _namesakes(likeness)
    rows = [i for i in range(score.shape[0]) if i not in {i for i, _ in found}]
    columns = [j for j in range(score.shape[1]) if j not in {j for _, j in found}]
    while rows and columns:
        pairs = best_monotone(score[np.ix_(rows, columns)])
        if not pairs:
            break
        found += [(rows[i], columns[j]) for i, j in pairs]
        taken_r, taken_c = {i for i, _ in pairs}, {j for _, j in pairs}
        rows = [r for i, r in enumerate(rows) if i not in taken_r]
        columns = [c for j, c in enumerate(columns) if j not in taken_c]
    return sorted(found)


def _namesakes(likeness: np.ndarray) -> list[tuple[int, int]]:
    """Pairs alike in name that are, by a margin, each other's most alike."""
    if not likeness.size:
        return []
    found = []
    for i, j in enumerate(likeness.argmax(axis=1).tolist()):
        best = likeness[i, j]
        others = [*np.delete(likeness[i], j), *np.delete(likeness[:, j], i)]
        if best >= NAMESAKE and max(others, default=0.0) <= best - 0.05:
            found.append((i, j))
    return found
