"""Which layer of one side goes with which of the other, from scores."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from crosscheck.aligning.assignment import best_monotone

__all__ = ["assign"]

NAMESAKE = 0.75
"""Likeness of two paths from which on they are taken for the same layer, in whatever order."""


def assign(
    score: np.ndarray,
    likeness: np.ndarray,
    *,
    around: tuple[Container[int], Container[int]] = ((), ()),
) -> list[tuple[int, int]]:
    """Pairs (row, column): namesakes first, then repeatedly the best order-preserving alignment.

    Namesakes are defined in any order (query, key and value; the branches of a block). For the
    others one round suffices where both sides define their layers in the same order; further
    rounds pick up branches that are defined in another order.

    Args:
        score: float64 (n, m), how well every two fit; 0: not at all.
        likeness: of their names, in the same places.
        around: the rows and columns that hold others. When in its call a layer uses what is its own
            (a token in front, a scale at the end) is not known, so that these have no place in the
            order of the others, and come in the second round.
    """
    found = _namesakes(likeness)
    rows = [i for i in range(score.shape[0]) if i not in {i for i, _ in found}]
    columns = [j for j in range(score.shape[1]) if j not in {j for _, j in found}]
    some = [i for i in rows if i not in around[0]], [j for j in columns if j not in around[1]]
    while rows and columns:
        pairs = best_monotone(score[np.ix_(*some)])
        if not pairs and some == (rows, columns):
            break
        found += [(some[0][i], some[1][j]) for i, j in pairs]
        taken_r, taken_c = {i for i, _ in found}, {j for _, j in found}
        rows = [i for i in rows if i not in taken_r]
        columns = [j for j in columns if j not in taken_c]
        some = rows, columns
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
