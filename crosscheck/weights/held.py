"""Which layers hold the same numbers already: the strongest sign of what belongs together.

Only where the two sides are said to be equal (``weights="keep"``): before a copy, the candidate
holds nothing that means anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.fingerprints import fingerprint, looks_like
from crosscheck.arrays import is_float
from crosscheck.judging.noise import unit_roundoff
from crosscheck.weights.layers import Layer
from crosscheck.weights.layouts import transforms
from crosscheck.weights.transform import Transform

__all__ = ["among_equals", "equal_layers", "equal_layout", "holds", "is_placeholder", "tells"]

Prints = dict[str, np.ndarray]


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
        equal[i, j] = _equal(ours[i], theirs[j], prints[0][i], prints[1][j])
    rows, columns = equal.any(axis=1, keepdims=True), equal.any(axis=0, keepdims=True)
    allowed = equal | ~(rows | columns)
    return np.where(allowed, score, 0.0), np.where(allowed, likeness, 0.0)


def equal_layers(ours: Layer, theirs: Layer) -> bool:
    """Whether two layers hold the same numbers, or neither holds any that tell something."""
    prints = _prints(ours), _prints(theirs)
    return not any(prints) or _equal(ours, theirs, *prints)


def _equal(ours: Layer, theirs: Layer, our_prints: Prints, their_prints: Prints) -> bool:
    shared = our_prints.keys() & their_prints.keys()
    return bool(shared) and all(
        bool(looks_like(our_prints[role][None], their_prints[role])[0])
        and holds(ours.parameters[role], theirs.parameters[role])
        for role in shared
    )


def _prints(layer: Layer) -> Prints:
    """role -> fingerprint of each parameter that tells something: not of ones, nor of zeros."""
    return {role: fingerprint(p.value) for role, p in layer.parameters.items() if tells(p.value)}


def is_placeholder(value: np.ndarray) -> bool:
    """Whether one number stands in all places, which take no memory: of any size that a file may
    claim, and not to be looked through."""
    return not any(value.strides)


def tells(value: np.ndarray) -> bool:
    """Whether an array holds more than one number."""
    if not is_float(value) or not value.size or is_placeholder(value):
        return False
    return bool((value != value.flat[0]).any())


def holds(reference: Parameter, candidate: Parameter) -> bool:
    """Whether the candidate holds the reference's numbers in some layout, up to their dtypes."""
    return equal_layout(reference, candidate) is not None


def equal_layout(reference: Parameter, candidate: Parameter) -> Transform | None:
    """The first layout in which the candidate holds the reference's numbers, up to their dtypes."""
    unit = unit_roundoff(reference.value.dtype, candidate.value.dtype)
    for layout in _layouts(reference, candidate):
        made = layout.to_candidate(reference.value).astype(np.float64)
        if np.allclose(made, candidate.value.astype(np.float64), rtol=2 * unit, atol=0.0):
            return layout
    return None


def _layouts(reference: Parameter, candidate: Parameter) -> list[Transform]:
    """As they are named, or, of an embedding's table that is also a kernel, by shape alone."""
    named = transforms(reference, candidate)
    return named or transforms(replace(reference, axes=None), replace(candidate, axes=None))
