"""A graph from points: who is near whom."""

from __future__ import annotations

import numpy as np


def neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """(N, features) -> (N, N), one where either of two points is among the other's ``count``
    nearest; nobody is their own neighbour."""
    distance = ((points[:, None] - points[None]) ** 2).sum(axis=-1)  # (N, N)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :count]
    joined = np.zeros(distance.shape, dtype=bool)
    np.put_along_axis(joined, nearest, True, axis=1)
    return (joined | joined.T).astype(np.float32)


def normalised(adjacency: np.ndarray) -> np.ndarray:
    """Â = D^-½ (A + I) D^-½, D the degrees of A + I (Kipf, Welling, 2017).

    Float32 (N, N); symmetric like A.
    """
    looped = adjacency + np.eye(len(adjacency), dtype=adjacency.dtype)
    root = 1 / np.sqrt(looped.sum(axis=1))
    return (looped * root[:, None] * root).astype(np.float32)
