"""Which elements of scores are masked: those that hold some number for minus infinity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.compare import Difference, compare
from crosscheck.judging.noise import Floor, judge

__all__ = ["hidden_by", "hidden_in", "number_of", "ratio_beside"]

HIDDEN = -1e3
"""What is masked is at most this,"""
APART = 10.0
"""and so many times as large as all that is not."""
_PLAIN = (-1e30, -1e8)  # tried first: beside these, scores may be large themselves


def hidden_by(value: np.ndarray) -> np.ndarray | None:
    """Which elements of scores are masked; None where none are, or it cannot be told."""
    if not is_float(value) or not np.min(value, initial=0.0) <= HIDDEN:
        return None
    for most in (*_PLAIN, HIDDEN):
        hidden = value <= most
        rest = value[~hidden]
        if not rest.size or rest.size == value.size or not np.isfinite(rest).all():
            continue
        if -np.max(value[hidden]) >= APART * np.max(np.abs(rest)):
            return np.asarray(hidden)
    return None


def hidden_in(value: np.ndarray) -> np.ndarray:
    """The same, with nothing but False where none are."""
    hidden = hidden_by(value)
    return np.zeros(value.shape, dtype=bool) if hidden is None else hidden


def number_of(value: np.ndarray, hidden: np.ndarray) -> str:
    """What masked elements hold, for the reader."""
    low, high = float(np.min(value[hidden])), float(np.max(value[hidden]))
    if low == high:
        return f"{high:.6g}"
    if np.isfinite(low) and abs(low - high) <= 0.1 * abs(high):
        return f"about {high:.2g}"
    return f"numbers from {low:.2g} to {high:.2g}"


def ratio_beside(
    hidden: np.ndarray,
    value: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray,
    own: Difference,
    floor: Floor,
) -> float:
    """How far ``value`` is from a prediction over the floor η, masked elements apart from the
    others: beside their number, everything else would be rounding.

    Args:
        hidden: where ``reference`` is masked.
        own: the reference's error against the oracle, where it is not masked.
    """
    bare = replace(floor, pert_l2=0.0, pert_max=0.0)  # measured with what is masked
    seen, there = reference[~hidden], prediction[hidden]
    scale = compare(seen, seen)
    own = replace(own, truth_l2=scale.truth_l2, truth_max=scale.truth_max)
    rest = judge(compare(value[~hidden], prediction[~hidden]), own, bare)
    masked = judge(compare(value[hidden], there), compare(there, there), bare)
    return max(rest.ratio, masked.ratio)
