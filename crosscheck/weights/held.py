"""Which layers hold the same numbers already: the strongest sign of what belongs together.

Only where the two sides are said to be equal (``weights="keep"``): before a copy, the candidate
holds nothing that means anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.fingerprints import fingerprint, looks_like
from crosscheck.noise import unit_roundoff
from crosscheck.weights.layers import Layer
from crosscheck.weights.layouts import transforms
from crosscheck.weights.transform import Transform

__all__ = ["among_equals", "holds"]


def among_equals(
    score: np.ndarray, likeness: np.ndarray, ours: Sequence[Layer], theirs: Sequence[Layer]
) -> tuple[np.ndarray, np.ndarray]:
    """Leave to a layer that has equals only those; the others keep what they have.

    Args:
        score: (len(ours), len(theirs)), 0 where two layers do not fit.
        likeness: of their paths, of the same shape.
    """
    equal = np.zeros(score.shape, bool)
    prints = [_prints(layer) for layer in ours], [_prints(layer) for layer in theirs]
    for i, j in zip(*np.nonzero(score), strict=True):
        shared = prints[0][i].keys() & prints[1][j].keys()
        equal[i, j] = bool(shared) and all(
            bool(looks_like(prints[0][i][role][None], prints[1][j][role])[0])
            and holds(ours[i].parameters[role], theirs[j].parameters[role])
            for role in shared
        )
    rows, columns = equal.any(axis=1, keepdims=True), equal.any(axis=0, keepdims=True)
    allowed = equal | ~(rows | columns)
    return np.where(allowed, score, 0.0), np.where(allowed, likeness, 0.0)


def _prints(layer: Layer) -> dict[str, np.ndarray]:
    """role -> fingerprint of each parameter that tells something: not of ones, nor of zeros."""
    return {
        role: fingerprint(p.value)
        for role, p in layer.parameters.items()
        if is_float(p.value) and p.value.size and bool((p.value != p.value.flat[0]).any())
    }


def holds(reference: Parameter, candidate: Parameter) -> bool:
    """Whether the candidate holds the reference's numbers in some layout, up to their dtypes."""
    unit = unit_roundoff(reference.value.dtype, candidate.value.dtype)
    truth = candidate.value.astype(np.float64)
    made = (t.to_candidate(reference.value) for t in _layouts(reference, candidate))
    return any(np.allclose(m.astype(np.float64), truth, rtol=2 * unit, atol=0.0) for m in made)


def _layouts(reference: Parameter, candidate: Parameter) -> list[Transform]:
    """As they are named, or, of an embedding's table that is also a kernel, by shape alone."""
    named = transforms(reference, candidate)
    return named or transforms(replace(reference, axes=None), replace(candidate, axes=None))
