"""Stage 6, compare: two arrays in one layout -> how they differ. One pass over memory."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from crosscheck.kernels.blocked import pair_sums
from crosscheck.results import Metrics

__all__ = ["Difference", "compare", "describe"]


@dataclass(frozen=True)
class Difference:
    """The error of ``value`` against ``truth``, in absolute norms.

    Attributes:
        size: number of elements.
        l2, maximum: ‖value − truth‖₂ and max |value − truth| over elements finite in both.
            Norms beyond the float64 range are its largest number, so that ratios stay defined.
        truth_l2, truth_max: ‖truth‖₂ and max |truth| over the same elements.
        mismatch: elements that are NaN or Inf on one side, or of another kind or sign.
    """

    size: int
    l2: float
    maximum: float
    truth_l2: float
    truth_max: float
    mismatch: int

    @property
    def rms_truth(self) -> float:
        """Root mean square of ``truth``."""
        return self.truth_l2 / math.sqrt(self.size) if self.size else 0.0


def compare(value: np.ndarray, truth: np.ndarray) -> Difference:
    """The error of ``value`` against ``truth`` (same shape, any dtypes; computed in float64)."""
    s = pair_sums(value, truth)
    return Difference(
        size=value.size,
        l2=_norm(math.sqrt(s.diff2), s.unit),
        maximum=_norm(s.max_diff, s.unit),
        truth_l2=_norm(math.sqrt(s.b2), s.unit),
        truth_max=_norm(s.max_b, s.unit),
        mismatch=s.mismatch,
    )


def _norm(value: float, unit: float) -> float:
    return min(value * unit, sys.float_info.max)


def describe(candidate: np.ndarray, reference: np.ndarray) -> Metrics:
    """The metrics of the report: candidate against reference, as both ran."""
    s = pair_sums(candidate, reference)
    flat = s.first_mismatch if s.mismatch else s.argmax
    index = None
    if flat >= 0:
        index = tuple(int(i) for i in np.unravel_index(flat, reference.shape))
    norms = math.sqrt(s.a2) * math.sqrt(s.b2)
    both_zero = s.a2 == 0.0 and s.b2 == 0.0
    return Metrics(
        rel_l2=math.sqrt(s.diff2 / s.b2) if s.b2 > 0.0 else math.sqrt(s.diff2) * s.unit,
        max_abs=s.max_diff * s.unit,
        worst_index=index,
        cosine=1.0 if both_zero else (s.ab / norms if norms > 0.0 else 0.0),
        nonfinite=s.nonfinite,
        nonfinite_mismatch=s.mismatch,
        worst_reference=None if index is None else float(reference[index]),
        worst_candidate=None if index is None else float(candidate[index]),
    )
